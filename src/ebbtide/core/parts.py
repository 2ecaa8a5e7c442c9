"""The contracts of the eight slots, as base classes: what a part of each must offer and what it may leave out.

A part is a frozen dataclass of numbers and functions, never of tensors with a batch axis: those live in `State.cond`
or in the part's slot of `State.memory`, so they follow `take`. Zeros in memory mean "nothing stored".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise
from ebbtide.core.state import Move, Pred, Query, State, Step
from ebbtide.core.tree import Memory, Tree

if TYPE_CHECKING:
    from ebbtide.core.loop import Ask
    from ebbtide.core.registry import Entry

# Features that a model, its process or a condition gives; all others come from parts of the plan.
OF_MODEL = frozenset(
    {"affine", "continuous", "gaussian", "end", "masked", "uniform", "discrete", "joint", "null", "module"}
)

Inner = Callable[[Sequence[Query]], list[Pred]]


class Part:
    """What every part has. `gives` and `reads` may be properties where they depend on parameters.

    reads     leaves of the condition that the part reads during the run: they stay in the state, a start that takes them
              out leaves them, and no network is told of them
    examples  parameters that the contract tests also try; the first stands in for defaults that a part lacks
    """

    entry: ClassVar[Entry]
    examples: ClassVar[tuple[dict[str, Any], ...]] = ()
    if TYPE_CHECKING:

        @property
        def gives(self) -> frozenset[str]: ...
        @property
        def reads(self) -> frozenset[str]: ...

    else:
        gives = reads = frozenset()

    @property
    def called(self) -> str:
        """The name that plans know it by; of one that is not registered, its class."""
        entry = getattr(self, "entry", None)
        return type(self).__name__ if entry is None else entry.name

    @property
    def on(self) -> bool:
        """Whether the part does anything: not where its parameters are those that switch it off."""
        off = getattr(getattr(self, "entry", None), "off", None)
        return off is None or any(getattr(self, k) != v for k, v in off.items())

    def init(self, state: State, ask: Ask) -> Memory:
        """The part's memory at the start, and again after a jump; empty unless it needs more than zeros."""
        return {}

    def remarks(self, notes: Mapping[str, int]) -> list[str]:
        """What should be said at the end of a run whose steps noted this, one sentence each; mostly nothing."""
        return []


class Process(Part):
    """How data becomes noise."""

    def move(
        self, x: Tree, pred: Pred | None, t: Tensor, s: Tensor, eta: float, noise: Noise, cond: dict[str, Tree]
    ) -> Tree:
        """x_s given x_t and a prediction of the data.

        s < t steps towards the data (eta 0 as deterministic as the process allows, 1 the posterior of its Markov chain);
        s > t is the forward transition and ignores `pred`; s = t is the identity. After `corrupt(t)`, with the true
        prediction, the law is that of `corrupt(s)`.
        """
        raise NotImplementedError

    def corrupt(self, x0: Tree, t: Tensor, noise: Noise, cond: dict[str, Tree]) -> Tree:
        """x_t ~ q(x_t | x0)."""
        raise NotImplementedError

    def prior(self, like: Tree, t: Tensor, noise: Noise, cond: dict[str, Tree]) -> Tree:
        """A start at time t that knows no data, shaped like `like`."""
        raise NotImplementedError


class Denoiser:
    """E[x0 | x_t] or log p(x0 | x_t): what stands behind the innermost layer. Closed forms and networks alike.

    process   the process whose x_t it understands; the border converts where a plan samples in another
    jumps     whether it knows the way from any time to any earlier one. It then finds the time to reach, in its own process,
              in cond["until"], shaped like t, and answers with the data that a step of `euler` from t must be given to land
              there exactly; where that time is t itself, this is E[x0 | x_t], and where it is 0, the end of the way
    """

    process: Process
    jumps: bool = False

    def __call__(self, x: Tree, t: Tensor, cond: dict[str, Tree]) -> Pred:
        """Answer rows: x (R, ...), t float64 on the CPU (R,) or (R, *units), cond (R, ...), in data space.

        A row's answer never depends on the other rows.
        """
        raise NotImplementedError

    def null(self, name: str, leaf: Tensor) -> Tensor | None:
        """What the condition `name` is when there is none, shaped like `leaf`; None where the model has no such thing."""
        return None

    def over(self, module: Any) -> Denoiser:
        """The same denoiser over another module than its own. Raises EbbError where it cannot have another."""
        raise EbbError(f"{type(self).__name__} keeps its network to itself, so nothing can rewrite it; leave that out.")


class Start(Part):
    """Where a run begins."""

    def __call__(self, like: Tree, cond: dict[str, Tree], seeds: Sequence[int], ask: Ask) -> State:
        """The first state, at a time of the grid (`ask.ahead(k)` is its k-th); may fill the slot `noise`."""
        raise NotImplementedError


class Grid(Part):
    """Which times a run visits, unit by unit. It sees every element; a unit whose next time is its own waits."""

    def ahead(self, state: State, memory: Memory, k: int) -> Tensor:
        """The time of each unit k steps from here; k = 0 on a blank state is the first time of the run."""
        raise NotImplementedError

    def settle(self, state: State, memory: Memory, s: Tensor, move: Move) -> tuple[Tensor | None, Memory]:
        """Which units accept the move to s (None: all of them), and the grid's memory after it."""
        raise NotImplementedError

    def done(self, state: State, memory: Memory) -> Tensor:
        """Which units have arrived, boolean."""
        raise NotImplementedError


class Layer(Part):
    """What is predicted instead: a guide, or, innermost, the network.

    calls  queries asked of the inner layer for each query answered
    """

    if TYPE_CHECKING:

        @property
        def calls(self) -> float: ...

    else:
        calls = 1

    def many(
        self, queries: Sequence[Query], memory: Memory, inner: Inner, ask: Ask, before: Memory
    ) -> tuple[list[Pred], Memory]:
        """Answer queries by asking `inner` others.

        Memory written here is seen by later calls of the same step; decisions that must not change within a step read
        `before`, the memory at its start.
        """
        raise NotImplementedError


class Solver(Part):
    """How to move. Declares what it costs and how exact it is.

    order       of the global error with exact history, None for a rule that does not end on the path of the process
    startup     the order from a cold start, where that is lower
    stochastic  whether it draws noise of its own
    calls       network evaluations of one interior step
    """

    if TYPE_CHECKING:  # a part may say them once and for all, or make them depend on its parameters

        @property
        def order(self) -> float | None: ...
        @property
        def startup(self) -> float | None: ...
        @property
        def stochastic(self) -> bool: ...
        @property
        def calls(self) -> float: ...

    else:
        order, startup, stochastic, calls = 1, None, False, 1

    def step(self, state: State, memory: Memory, s: Tensor, ask: Ask, process: Any) -> tuple[Move, Pred]:
        """Propose a move of every unit to time s, and the prediction at (x, t) that it rests on.

        `process` is an `Affine` for a solver that needs "affine", and so on.
        """
        raise NotImplementedError


class Correct(Part):
    """What must hold after a step."""

    def __call__(
        self, state: State, memory: Memory, pred: Pred | None, ask: Ask, process: Process
    ) -> tuple[State, Memory]:
        """The state put right; runs once on the start (pred None) and after every step; may change shape, t and cond."""
        raise NotImplementedError


class Steer(Part):
    """Which candidates go on. It goes around the step; elements compete only inside their `group`.

    What was foreseen of a sample becomes what people see by `ask(state).pixels` and `.text`.
    """

    def step(
        self,
        state: State,
        memory: Memory,
        advance: Callable[..., Step],
        ask: Callable[[State], Ask],
        process: Process,
    ) -> Step:
        """One step of every request; `advance(state, given=pred)` steps any elements, `ask(state)` looks ahead."""
        raise NotImplementedError
