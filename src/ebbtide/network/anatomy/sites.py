"""What an anatomy is made of: ports, sites, blocks and skip connections. Names and references, never a tensor."""

from __future__ import annotations

import functools
import inspect
import textwrap
from ast import FunctionDef, Name, Return, Tuple, parse, walk
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ebbtide.core.errors import EbbError

# What a block of a U-Net applies one after another at each of its places; the last there is gives the skip.
LAYERS = ("resnets", "temp_convs", "attentions", "temp_attentions", "motion_modules")


@dataclass(frozen=True)
class Port:
    """Where a call takes a stream, and where its answer gives it.

    name   the argument that takes it; empty where the call only gives it
    place  that argument's position
    index  its place in the tuple that the call returns; None where the answer is the stream
    """

    name: str
    place: int
    index: int | None = None

    def taken(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The stream as a call with these arguments takes it."""
        return kwargs[self.name] if self.name in kwargs else args[self.place]

    def handed(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], x: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with `x` for the stream."""
        if self.name in kwargs:
            return args, {**kwargs, self.name: x}
        return (*args[: self.place], x, *args[self.place + 1 :]), dict(kwargs)

    def given(self, out: Any) -> Any:
        """The stream in an answer."""
        return out if isinstance(out, Tensor) else out[self.index or 0]

    def answered(self, out: Any, x: Any) -> Any:
        """The answer with `x` for the stream."""
        if isinstance(out, Tensor):
            return x
        if isinstance(out, Mapping):  # an answer by names, whose first is the stream
            return type(out)(**{**out, next(iter(out)): x})
        at = self.index or 0
        return (*out[:at], x, *out[at + 1 :])


@dataclass(frozen=True, eq=False)
class Site:
    """A named place in a network where a stream can be read, replaced, or not computed.

    path    its dotted name in the network
    module  what gives its output
    kind    of attention "self", "cross" or "joint"; "feed-forward", or "context-feed-forward" for the text beside
    hidden  where its call takes and gives the hidden state
    before  the modules that work only for `module` and are called before it: a feed-forward that its block spells out
            has one for each layer but the last. Whoever replaces the answer of `module` may let them pass what they take
    """

    path: str
    module: nn.Module
    kind: str
    hidden: Port
    before: tuple[tuple[str, nn.Module], ...] = ()

    @property
    def parts(self) -> tuple[tuple[str, nn.Module], ...]:
        """All that it is made of, named."""
        return (*self.before, (self.path, self.module))

    @property
    def pairs(self) -> dict[str, nn.Module]:
        """What makes the keys and what makes the values of an attention, named; empty where one layer makes them together."""
        found = {name: getattr(self.module, name, None) for name in ("to_k", "to_v")}
        return {f"{self.path}.{k}": m for k, m in found.items() if isinstance(m, nn.Module)}

    def linears(self) -> Iterator[tuple[str, nn.Linear]]:
        """Every linear layer in it, named."""
        for path, part in self.parts:
            for name, module in part.named_modules(prefix=path):
                if isinstance(module, nn.Linear):
                    yield name, module


@dataclass(frozen=True, eq=False)
class Block(Site):
    """A layer of a network, as its own code calls it.

    kind      "down", "mid" or "up" in a U-Net; "joint" where two streams run through it, "single" in the second list
              of such a network, "block" otherwise
    context   where it takes and gives the second stream; None where it gives only one
    sites     attention and feed-forward within it, in the order of their answers
    residual  where a "down" block gives its skip tensors and an "up" block takes them, as a tuple; None elsewhere
    residuals how many they are
    """

    context: Port | None = None
    sites: tuple[Site, ...] = ()
    residual: Port | None = None
    residuals: int = 0

    @property
    def attention(self) -> tuple[Site, ...]:
        """Its attention, in order."""
        return tuple(s for s in self.sites if s.kind in ("self", "cross", "joint"))

    @property
    def feed_forward(self) -> tuple[Site, ...]:
        """Its feed-forwards, in order."""
        return tuple(s for s in self.sites if s.kind.endswith("feed-forward"))

    @property
    def turned(self) -> str | None:
        """The argument that turns queries and keys by their place (rotary embeddings); None where it takes none."""
        takes = _told(type(self.module).forward)[0]
        return next((k for k in takes if "rotary" in k or "rope" in k or k == "position_embeddings"), None)

    @property
    def turning(self) -> Port | None:
        """Where its call takes what turns queries and keys by their place; None where it takes none."""
        return None if self.turned is None else port(self.module, self.turned)

    def layers(self) -> Iterator[tuple[int, nn.Module]]:
        """What a block of a U-Net applies one after another, with the place of each: that of the skip made or taken there.

        What makes a smaller picture comes after the last; what makes a larger one is left out.
        """
        for name in LAYERS:
            found = getattr(self.module, name, None)
            if isinstance(found, nn.ModuleList):
                yield from enumerate(found)
        last = len(self.module.get_submodule("resnets")._modules)
        yield from ((last, m) for m in getattr(self.module, "downsamplers", None) or ())

    def idle(self, *args: Any, **kwargs: Any) -> Any:
        """Its streams as they came, whatever their shape, and as many skips as it makes: for blocks that nobody hears."""
        x = self.hidden.taken(args, kwargs)
        streams: dict[int | None, Any] = {self.hidden.index: x}
        if self.kind == "down" and self.residual is not None:
            streams[self.residual.index] = (x,) * self.residuals
        if None in streams:
            return x
        return tuple(streams.get(k) for k in range(max(k for k in streams if k is not None) + 1))

    def passed(self, *args: Any, **kwargs: Any) -> Any:
        """What the block would answer if it did nothing: its streams as they came.

        Raises EbbError for "down" and "up", whose answer has another shape.
        """
        if self.kind in ("down", "up"):
            raise EbbError(f"{self.path} changes the shape of what it takes, so it cannot be passed over.")
        x = self.hidden.taken(args, kwargs)
        if self.hidden.index is None:
            return x
        streams = {self.hidden.index: x}
        if self.context is not None and self.context.index is not None:
            streams[self.context.index] = self.context.taken(args, kwargs)
        return tuple(streams.get(k) for k in range(max(streams) + 1))


@dataclass(frozen=True, eq=False)
class Skip:
    """A tensor that a U-Net carries from its way down to its way up, where it is joined to the channels, last.

    source  the name of the module that makes it, and `origin` that module
    down    the number of its block; None for the input layer
    place   its place in the tuple that this block gives
    target  the name of the residual layer that takes it, and `module` that layer
    up      the number of its block
    slot    its place in the tuple that this block takes
    """

    source: str
    origin: nn.Module
    down: int | None
    place: int
    target: str
    module: nn.Module
    up: int
    slot: int


def passing(x: Any, *args: Any, **kwargs: Any) -> Any:
    """What it was given, as layers within a block answer: a forward for those that are passed over."""
    return x if kwargs.get("return_dict", True) else (x,)


@functools.lru_cache(512)
def _told(forward: Callable[..., Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the arguments of a forward, and of the tuple that it returns; empty where there is none."""
    takes = tuple(inspect.signature(forward).parameters)[1:]
    try:
        tree = parse(textwrap.dedent(inspect.getsource(inspect.unwrap(forward))))
    except (OSError, TypeError, SyntaxError):  # a builtin, or written where no file keeps it
        return takes, ()
    body = next((node for node in tree.body if isinstance(node, FunctionDef)), None)
    returns = [r.value for r in walk(body) if isinstance(r, Return)] if body else []
    given = next((v for v in returns if isinstance(v, Tuple)), None)
    return takes, tuple(e.id if isinstance(e, Name) else "" for e in given.elts) if given else ()


def port(module: nn.Module, name: str | None = None) -> Port | None:
    """The port of the stream called `name`, or of the hidden state; None if the module does not take it.

    The hidden state is what is called so, or the first argument. A name in the returned tuple tells its place there.
    """
    takes, gives = _told(type(module).forward)
    if name is None:
        name = "hidden_states" if "hidden_states" in takes else next(iter(takes), "")
        return Port(name, max(0, takes.index(name) if takes else 0), gives.index(name) if name in gives else None)
    if name not in takes:
        return None
    return Port(name, takes.index(name), gives.index(name) if name in gives else None)


def gives_more(module: nn.Module) -> Port:
    """The port of the tuple that a "down" block gives beside its hidden state."""
    _, gives = _told(type(module).forward)
    hidden = port(module)
    own = hidden.index if hidden is not None else None
    return Port("", -1, next((k for k in range(len(gives)) if k != own), 1))
