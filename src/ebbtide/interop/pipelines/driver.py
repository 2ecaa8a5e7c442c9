"""The driver: what an attached pipeline takes for its scheduler, and what runs ebbtide's loop, a step a turn.

    the pipeline   asks its denoiser (an ear), guides the silence, calls `step`
    the driver     takes what the ear heard as the condition, makes one step of the loop, hands the latents back

It lives for one call. Latents that a callback put in their place, and conditions that it changed, are taken up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.loop import Loop
from ebbtide.core.plan import Plan
from ebbtide.core.state import State
from ebbtide.core.tree import Tree
from ebbtide.denoise.network import Network
from ebbtide.interop.pipelines.asked import guides
from ebbtide.interop.pipelines.hearing import Answer, Ear, Said
from ebbtide.interop.pipelines.learning import overheard
from ebbtide.interop.pipelines.schedule import Schedule, begun
from ebbtide.interop.pipelines.voice import TIME, Voice
from ebbtide.network.still import still


class Driver:
    """A stand-in for a scheduler, for one call of a pipeline; it is the pipeline's own (a copy) in all else.

    plan    how the call is sampled; None: as the scheduler itself would
    given   the arguments that the caller gave
    scale   of guidance
    """

    order = 1

    def __init__(
        self, scheduler: Any, plan: Plan | None, ear: Ear, given: Mapping[str, Any], scale: float | None
    ) -> None:
        self._own, self._ear, self._given, self._scale = scheduler, ear, given, scale
        self._times = Schedule(scheduler, plan)
        self._first = self._done = 0
        self._voice: Voice | None = None
        self._loops: dict[bool, Loop] = {}
        self._state: State | None = None
        self._said: list[Any] = []
        self._last: Tensor | None = None
        self.timesteps = self.sigmas = torch.zeros(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    # ---------------------------------------------------------------- what pipelines ask of a scheduler

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
        **more: Any,
    ) -> None:
        """Lay out the times of the call."""
        said = {"timesteps": timesteps, "sigmas": sigmas, "mu": mu, **more}
        self._times.lay(num_inference_steps, device, said, self._given)
        self.timesteps, self.sigmas = self._times.timesteps, self._times.sigmas

    @property
    def init_noise_sigma(self) -> float:
        """By how much the pipeline is to scale unit noise."""
        return self._times.start

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample: its scale is the border's affair."""
        return sample

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Nothing: the first timestep that is stepped from says where the run begins."""

    def index_for_timestep(self, timestep: Any, schedule_timesteps: Any = None) -> int:
        """The place of a timestep in the list."""
        return self._times.place(timestep, listed=schedule_timesteps)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
        """x_t of known data and noise."""
        return self._times.noised(original_samples, noise, timesteps, self._first + self._done)

    def scale_noise(self, sample: Tensor, timestep: Any, noise: Tensor) -> Tensor:
        """`add_noise`, as flow schedulers call it."""
        return self.add_noise(sample, noise, timestep)

    def step(self, model_output: Any, timestep: Any, sample: Tensor, return_dict: bool = True, **rest: Any) -> Answer:
        """One step of the loop. `model_output` is silence: the loop asks the denoiser itself."""
        turn = self._ear.turn()
        if not turn:
            raise EbbError("this pipeline calls its denoiser where it cannot be heard; it cannot be attached to.")
        labels = self._given.get("class_labels")
        n = len(sample) if labels is None else len(labels)
        if self._voice is None:
            times = self._times
            self._voice = overheard(
                turn[0], float(timestep), sample, times.facts.clock, times.whole, first=labels is None
            )
        own = sample if len(sample) == n else sample[:n]
        state = self._listen(self._voice, turn, own, timestep)
        if self._last is not None and sample is not self._last:
            here = self._times.inward(own, self._first + self._done)
            state = replace(state, x=here.to(leaf(state.x)))
        self._state = self._loop("null" in state.cond).step(state).state
        self._done += 1
        out = self._times.outward(leaf(self._state.x), self._first + self._done).to(sample.dtype)
        self._last = out if own is sample else out.repeat(len(sample) // n, *(1,) * (out.ndim - 1))
        return Answer((self._last,))

    # ---------------------------------------------------------------- the loop

    def _listen(self, voice: Voice, turn: list[Said], x: Tensor, timestep: Any) -> State:
        """The state with the condition of this turn; most turns say what the one before said."""
        said = [v for one in turn for name, v in one.items() if name not in (voice.x, TIME)]
        same = len(said) == len(self._said) and all(a is b for a, b in zip(said, self._said, strict=True))
        self._said = said
        if self._state is not None and same:
            return self._state
        cond = voice.condition(turn, len(x))
        return self._begin(x, cond, timestep) if self._state is None else replace(self._state, cond=cond)

    def _begin(self, x: Tensor, cond: dict[str, Any], timestep: Any) -> State:
        self._first = self._times.place(timestep)
        loop = self._loop("null" in cond)
        return begun(loop, self._times.inward(x, self._first), cond, self._given.get("generator"))

    def _loop(self, guided: bool) -> Loop:
        """The plan bound to the denoiser, with guidance or, where nothing is said of a null condition, without."""
        if guided not in self._loops:
            times = self._times
            assert times.plan is not None
            # a part that changes the network, or works inside it, is given the network itself
            module = self._ear.module if times.plan.network else still(self._ear.module)
            network = Network(module, times.trained, call=self._voice, **times.facts.border)  # type: ignore[arg-type]
            gives = frozenset({"module", "null"} if guided else {"module"})
            chosen = guides(times.plan, self._scale if guided else None)
            self._loops[guided] = times.bind(network, self._first, chosen, gives)
        return self._loops[guided]


def leaf(x: Tree) -> Tensor:
    """The latents, which are one tensor."""
    assert isinstance(x, Tensor)
    return x
