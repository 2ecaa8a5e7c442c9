"""Hearing a pipeline: a copy of it is called with an ear in place of its denoiser, and what it says to the ear is kept.

    twin = copy of the pipeline;  twin.unet = Ear(unet);  twin(prompt=...)  ->  the arguments of every denoiser call

So text, sizes, ids, masks and embedded guidance are encoded by the pipeline's own code, whichever pipeline it is, and the
network is never called for it. Nothing is written to the pipeline: its parts are shared, its scheduler is copied.

Source   diffusers 0.42, `DiffusionPipeline`: every pipeline calls one denoiser, then `scheduler.step`, in a loop
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ebbtide.core.errors import EbbError

SLOTS = ("unet", "transformer", "prior")
"""Where pipelines keep their denoiser."""

Said = dict[str, Any]


class Answer(tuple[Any, ...]):
    """What a stand-in gives back, in all the forms that pipelines read."""

    @property
    def sample(self) -> Any:
        """A prediction."""
        return self[0]

    @property
    def prev_sample(self) -> Any:
        """The sample after a step."""
        return self[0]


class Ear:
    """A stand-in for a denoiser: it notes what it is told, says nothing (zeros), and is the denoiser in all else."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._names = signature(type(module).forward)
        self._first = list(self._names.parameters)[1]
        self.said: list[Said] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def cache_context(self, *args: Any, **kwargs: Any) -> contextlib.AbstractContextManager[None]:
        """No context: the denoiser is not called in it, and its name would be one for all threads."""
        return contextlib.nullcontext()

    def _reset_stateful_cache(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to reset, for the same reason."""

    def __call__(self, *args: Any, **kwargs: Any) -> Answer:
        if args:
            said = dict(self._names.bind(self.module, *args, **kwargs).arguments)
            del said["self"]
            said.update(said.pop("kwargs", {}))
        else:
            said = {self._first: kwargs.get(self._first), **kwargs}
        self.said.append(said)
        x = said[self._first]
        if not isinstance(x, Tensor):
            raise EbbError(
                f"the {type(self.module).__name__} of this pipeline is told no tensor as its first argument "
                f"({self._first!r}); it cannot be called here."
            )
        shape = x.shape
        if x.ndim > 3 and (channels := getattr(self.module.config, "out_channels", None)):
            shape = torch.Size((len(x), channels, *x.shape[2:]))
        return Answer((x.new_zeros(()).expand(shape),))

    def turn(self) -> list[Said]:
        """What was said since the last turn."""
        said, self.said = self.said, []
        return said


@dataclass
class Heard:
    """What a pipeline said on the way.

    turns      of each step, the arguments of its denoiser calls
    samples    of each step, the time and the latents that the scheduler was given
    scheduler  the pipeline's own, a copy, as the run left it
    times      what `set_timesteps` was given beside the number of steps: sigmas, timesteps, mu
    encoded    what `encode_prompt` gave, where the pipeline has it
    """

    turns: list[list[Said]] = field(default_factory=list)
    samples: list[tuple[float, Tensor]] = field(default_factory=list)
    scheduler: Any = None
    times: dict[str, Any] = field(default_factory=dict)
    encoded: Any = None


class _Enough(BaseException):
    """Raised out of the pipeline when all was heard."""


def denoiser(pipe: Any) -> str:
    """The name of the pipeline's denoiser. Raises EbbError for a pipeline without one, or with two."""
    name = next((s for s in SLOTS if isinstance(getattr(pipe, s, None), nn.Module)), None)
    kind = type(pipe).__name__
    if name is None:
        raise EbbError(f"{kind} keeps no denoiser under {', '.join(SLOTS)}; load the network alone, with its process.")
    if isinstance(getattr(pipe, f"{name}_2", None), nn.Module):
        raise EbbError(f"{kind} changes its denoiser on the way ({name}, {name}_2), which is not done here.")
    return name


@functools.lru_cache(256)
def signature(function: Callable[..., Any]) -> inspect.Signature:
    """What calling takes; read once, since every call of a pipeline asks."""
    return inspect.signature(function)


def parameters(pipe: Any) -> Mapping[str, inspect.Parameter]:
    """The arguments that calling the pipeline takes."""
    return signature(type(pipe).__call__).parameters


def twin(pipe: Any, **changed: Any) -> Any:
    """A copy of the pipeline with some attributes of its own; its networks are the same objects."""
    made = copy.copy(pipe)
    made.__dict__.update(changed)  # not setattr, by which a pipeline rewrites its config
    return made


def standing_in(
    pipe: Any, scheduler: Any, step: Callable[..., Any], encode: Callable[..., Any] | None
) -> tuple[Any, Ear]:
    """A quiet twin with an ear for its denoiser, this scheduler with `step` for its step, and `encode` for its text."""
    name = denoiser(pipe)
    ear = Ear(getattr(pipe, name))
    scheduler.step = step
    changed: dict[str, Any] = {name: ear, "scheduler": scheduler}
    if encode is not None and hasattr(pipe, "encode_prompt"):
        changed["encode_prompt"] = encode
    return twin(pipe, _progress_bar_config={"disable": True}, **changed), ear


def hear(pipe: Any, steps: int, turns: int = 1, **asked: Any) -> Heard:
    """What the pipeline says in the first `turns` of a run of `steps`, when it is called with `asked`.

    Raises EbbError in the pipeline's own words where it refuses the call.
    """
    heard = Heard(scheduler=copy.deepcopy(pipe.scheduler))
    set_timesteps = heard.scheduler.set_timesteps

    def step(model_output: Any, timestep: Any, sample: Tensor, **rest: Any) -> Answer:
        heard.turns.append(ear.turn())
        heard.samples.append((float(timestep), sample))
        if len(heard.turns) == turns:
            raise _Enough
        return Answer((sample,))

    def timed(*args: Any, **kwargs: Any) -> None:
        heard.times = {k: v for k, v in kwargs.items() if k in ("sigmas", "timesteps", "mu") and v is not None}
        set_timesteps(*args, **kwargs)

    def encode(*args: Any, **kwargs: Any) -> Any:
        heard.encoded = pipe.encode_prompt(*args, **kwargs)
        return heard.encoded

    timed.__signature__ = inspect.signature(set_timesteps)  # type: ignore[attr-defined]  # pipelines read it
    heard.scheduler.set_timesteps = timed
    other, ear = standing_in(pipe, heard.scheduler, step, encode)
    try:
        with torch.no_grad():
            other(**asked, num_inference_steps=steps)
    except _Enough:
        return heard
    except (ValueError, TypeError) as error:
        raise EbbError(f"{type(pipe).__name__}: {str(error).splitlines()[0]}") from error
    raise EbbError(f"{type(pipe).__name__} ended before its denoiser was asked; it cannot be sampled here.")


def decode(pipe: Any, x: Tensor, encoded: Any, **asked: Any) -> Tensor:
    """What the pipeline makes of the latents `x` (1, ...) at the end of a run: pictures in [0, 1], or frames.

    encoded   what its `encode_prompt` is to give, so that no text is encoded for it
    """
    encode = None if encoded is None else lambda *args, **kwargs: encoded
    other, _ = standing_in(pipe, copy.deepcopy(pipe.scheduler), lambda *args, **kwargs: Answer((x,)), encode)
    with torch.no_grad():
        out = other(**asked, num_inference_steps=2, output_type="pt", return_dict=False)[0]
    return torch.as_tensor(out)
