"""Operators: what a measurement keeps of a sample, by a name or as a function in a Python file.

    "mask"   {"name": "downsample", "factor": 4, "noise": 0.05}   "grayscale"   "lens.py:warp"          y = A(x) + noise z

An operator is a function of samples x (B, ...) in data space that gives measurements (B, ...), row by row. It may ask for
`mask`, the leaf of that name in the condition, 1 where a sample is hidden, or for `cond`, all of it; its other arguments are
parameters. Every spec may say `noise`, the standard deviation of the measurement.

A measurement may hold more than A keeps: what lies behind a mask, the equal colours of a grey picture. An attribute `read` of a
function says what of it counts, a function of y and the same arguments.

What methods need of A is one thing, J(x)^T r, which is A^T r for a linear one. Automatic differentiation gives it; a function
whose arithmetic lies outside of torch says it by itself, in an attribute `adjoint`: a function of r and the same arguments.
`trial` holds it to <A x, r> = <x, A^T r> before a run begins.

Shapes   x (B, ...); y (B, ...), in any form of its own; noise a number
Source   the linear operators of Kawar et al. 2022, "Denoising diffusion restoration models" (arXiv 2201.11793), section 5
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise, keys
from ebbtide.core.state import State
from ebbtide.core.time import right
from ebbtide.core.tree import Tree, tree_map
from ebbtide.measure.functions import Functions, Spec, line, told

MEASURED, MASK = "measured", "mask"
READ = frozenset({MEASURED, MASK})
"""The leaves of the condition that restoration reads: measurements, and what a mask hides."""

OPERATORS = Functions("operator", asked=(MASK, "cond"))
operator, names = OPERATORS.register, OPERATORS.names
_LEAST = 1e-3


# -------------------------------------------------------------------- the named ones


@operator("mask")
def masked(x: Tensor, mask: Tensor) -> Tensor:
    """What is left of a sample outside of the mask, zeros inside: inpainting."""
    return x * (1 - mask.to(x))


masked.read = masked  # type: ignore[attr-defined]


@operator("downsample")
def downsample(x: Tensor, factor: int = 2, kernel: Literal["box", "bicubic"] = "box") -> Tensor:
    """Fewer pixels by a whole factor, each the mean of a box or a cubic average: super-resolution."""
    _pictures(x, "downsample")
    if factor < 2 or x.shape[-1] % factor or x.shape[-2] % factor:
        raise EbbError(
            f"the operator 'downsample' takes a factor of at least 2 that divides the picture: {factor} does not "
            f"divide {x.shape[-2]} x {x.shape[-1]}."
        )
    if kernel == "box":
        return F.avg_pool2d(x, factor)
    if kernel != "bicubic":
        raise EbbError(f"the operator 'downsample' averages by 'box' or 'bicubic', not {kernel!r}.")
    return F.interpolate(x, scale_factor=1 / factor, mode="bicubic", antialias=True)


@operator("blur")
def blur(x: Tensor, kind: Literal["gaussian", "motion"] = "gaussian", width: float = 1.5, angle: float = 0.0) -> Tensor:
    """Each pixel mixed with its neighbours: by a Gaussian of this width, or along a line that long at an angle."""
    _pictures(x, "blur")
    if kind not in ("gaussian", "motion") or not 0 < width <= min(x.shape[-2:]) / 2:
        raise EbbError(
            f"the operator 'blur' is 'gaussian' or 'motion', of a width above 0 and at most {min(x.shape[-2:]) / 2:g} "
            f"here; it was given {kind!r} and {width:g}."
        )
    k = _bell(width) if kind == "gaussian" else _streak(width, angle)
    reach = k.shape[-1] // 2
    whole = F.pad(x, [min(reach, s - 1) for s in (x.shape[-1], x.shape[-1], x.shape[-2], x.shape[-2])], mode="reflect")
    k = k[reach - min(reach, x.shape[-2] - 1) :][: 2 * min(reach, x.shape[-2] - 1) + 1]
    k = k[:, reach - min(reach, x.shape[-1] - 1) :][:, : 2 * min(reach, x.shape[-1] - 1) + 1]
    k = (k / k.sum()).to(x).expand(x.shape[1], 1, *k.shape)
    return F.conv2d(whole, k, groups=x.shape[1])


@operator("grayscale")
def grayscale(x: Tensor) -> Tensor:
    """The brightness of a coloured picture: colourisation."""
    _pictures(x, "grayscale")
    if x.shape[1] != 3:
        raise EbbError(f"the operator 'grayscale' takes pictures of 3 channels, not {x.shape[1]}.")
    return (x * x.new_tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)).sum(1, keepdim=True)


def _gray(y: Tensor) -> Tensor:
    return grayscale(y) if y.ndim == 4 and y.shape[1] == 3 else y


grayscale.read = _gray  # type: ignore[attr-defined]


@operator("clip")
def clip(x: Tensor, low: float = -0.5, high: float = 0.5) -> Tensor:
    """All numbers held to a range, as by a sensor that saturates; it is not linear."""
    return x.clamp(low, high)


def _pictures(x: Tensor, name: str) -> None:
    if x.ndim != 4:
        raise EbbError(
            f"the operator {name!r} takes pictures (B, C, H, W), and these samples are {tuple(x.shape[1:])} each."
        )


def _bell(width: float) -> Tensor:
    """A Gaussian kernel out to three widths."""
    place = torch.arange(-math.ceil(3 * width), math.ceil(3 * width) + 1, dtype=torch.float64)
    one = (-(place**2) / (2 * width**2)).exp()
    return one[:, None] * one


def _streak(length: float, angle: float) -> Tensor:
    """A line through the middle, its ends soft; the angle is in degrees, against the clock from the right."""
    reach = max(1, math.ceil(length / 2))
    y, x = torch.meshgrid(*2 * [torch.arange(-reach, reach + 1, dtype=torch.float64)], indexing="ij")
    turn = math.radians(angle)
    along, across = x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)
    return (1 - across.abs()).clamp_min(0) * (length / 2 + 0.5 - along.abs()).clamp(0, 1)


# -------------------------------------------------------------------- finding them


@dataclass(frozen=True)
class Operator:
    """A function of samples bound to what it measures.

    f       A, its parameters given
    back    its own A^T, or None where automatic differentiation says it
    reads   what of a measurement counts, or None where all of it does
    cond    the conditions of the samples, of which the mask is one
    noise   the standard deviation of the measurements
    """

    name: str
    f: Callable[..., Any]
    back: Callable[..., Any] | None
    reads: Callable[..., Any] | None
    cond: Mapping[str, Tree]
    noise: float = 0.0

    def _asked(self, f: Callable[..., Any]) -> dict[str, Any]:
        wanted = inspect.signature(f).parameters
        extra: dict[str, Any] = {"cond": self.cond} if "cond" in wanted else {}
        if MASK in wanted:
            if MASK not in self.cond:
                raise EbbError(
                    f"the operator {self.name!r} needs a mask: give cond={{'mask': tensor shaped like x, 1 where it hides}}."
                )
            extra[MASK] = self.cond[MASK]
        return extra

    def __call__(self, x: Tensor) -> Tensor:
        """A(x)."""
        out: Tensor = self.f(x, **self._asked(self.f))
        return out

    @property
    def measured(self) -> Tensor:
        """y, the measurements of the samples. Raises EbbError where their conditions hold none."""
        y = self.cond.get(MEASURED)
        if not isinstance(y, Tensor):
            raise EbbError(
                "restoration needs what was measured: give cond={'measured': tensor}, as the operator gives it."
            )
        if self.reads is None:
            return y
        read: Tensor = self.reads(y, **self._asked(self.reads))
        return read

    def rows(self, index: Tensor) -> Operator:
        """The operator on some of its samples."""
        return replace(self, cond={k: tree_map(lambda v: v[index.to(v.device)], v) for k, v in self.cond.items()})

    def pull(self, x: Tensor, r: Tensor) -> Tensor:
        """J(x)^T r, shaped like x: A^T r where A is linear. Raises EbbError where there is no way to know it."""
        if self.back is not None:
            own: Tensor = self.back(r, **self._asked(self.back))
            return own
        with torch.enable_grad():
            here = x.detach().requires_grad_()
            out = self(here)
            if not out.requires_grad:
                raise EbbError(
                    f"the operator {self.name!r} lets no gradients pass: do its arithmetic in torch, or give it an "
                    "attribute `adjoint`."
                )
            (found,) = torch.autograd.grad(out, here, r, allow_unused=True)
        return torch.zeros_like(x) if found is None else found

    def residual(self, x: Tensor) -> Tensor:
        """A(x) - y, by rows (B, M)."""
        return (self(x) - self.measured).flatten(1)

    def misfit(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """|A(x) - y|^2 / 2 of each element, (B,) float64, and its gradient in x."""
        r = self(x) - self.measured
        return r.double().square().flatten(1).sum(1) / 2, self.pull(x, r)

    def rough(self, like: Tensor) -> Tensor:
        """A first guess of x, shaped like `like`: A^T y at the length that fits y best, A^+ y for masks and boxes."""
        y = self.measured
        x = self.pull(torch.zeros_like(like), y)
        there = self(x)
        fit = (there * y).double().flatten(1).sum(1)
        norm = there.double().square().flatten(1).sum(1)
        length = torch.where(norm > 0, fit / norm.clamp_min(1e-300), 0.0)
        return x * right(length, x).to(x)


def check(spec: Spec) -> None:
    """See that an operator can be meant by this, without running any file. Raises EbbError for what cannot."""
    OPERATORS.check(_split(spec)[0])


def find(spec: Spec, cond: Mapping[str, Tree]) -> Operator:
    """The operator that is meant, on samples with these conditions. Raises EbbError as `Functions.find` does."""
    bare, noise = _split(spec)
    f = OPERATORS.find(bare)
    name = told(bare)[0]
    own = {k: _bound(f, k) for k in ("adjoint", "read")}
    return Operator(str(name), f, own["adjoint"], own["read"], cond, noise)


def _bound(f: Callable[..., Any], name: str) -> Callable[..., Any] | None:
    """What a function carries under a name, given those of its parameters that it takes too."""
    plain = getattr(getattr(f, "func", f), name, None)
    if plain is None:
        return None
    known = inspect.signature(plain).parameters
    return functools.partial(plain, **{k: v for k, v in getattr(f, "keywords", {}).items() if k in known})


def noise_of(spec: Spec) -> float:
    """The standard deviation of the measurements that a spec says, 0 where it says none."""
    return _split(spec)[1]


def _split(spec: Spec) -> tuple[Spec, float]:
    """A spec without its noise, and the noise."""
    if isinstance(spec, str) or "noise" not in spec:
        return spec, 0.0
    noise = spec["noise"]
    if not isinstance(noise, int | float) or not 0 <= noise < math.inf:
        raise EbbError(f"the noise of an operator is a standard deviation, 0 or more, not {noise!r}.")
    return {k: v for k, v in spec.items() if k != "noise"}, float(noise)


# -------------------------------------------------------------------- before a run


def trial(spec: Spec, like: Tree, cond: Mapping[str, Tree]) -> Operator:
    """The operator on samples shaped like `like` (B, ...), tried once before any work.

    Raises EbbError, in one sentence, where it does not go with the samples, the measurements or the mask, hides all or
    nothing, fails, or has an adjoint that is none.
    """
    if not isinstance(like, Tensor) or not like.is_floating_point():
        raise EbbError("restoration works on one tensor of numbers an element, not on tokens or on several fields.")
    op = find(spec, cond)
    if MASK in inspect.signature(op.f).parameters:
        _masks(op, like)
    y = op.measured
    draw = Noise(keys(range(len(like))), torch.zeros(len(like), dtype=torch.int64), 0)
    x = draw.normal(like)
    try:
        there = op(x)
    except EbbError:
        raise
    except Exception as error:
        raise EbbError(
            f"the operator {op.name!r} fails on samples of shape {tuple(x.shape[1:])}: {line(error)}."
        ) from error
    if not isinstance(there, Tensor) or there.shape != y.shape:
        said = tuple(there.shape[1:]) if isinstance(there, Tensor) else type(there).__name__
        raise EbbError(
            f"the operator {op.name!r} makes {said} of a sample of {tuple(like.shape[1:])}, and what was measured is "
            f"{tuple(y.shape[1:])}: they must agree."
        )
    r = draw.fold(1).normal(there)
    try:
        back = op.pull(x, r)
    except EbbError:
        raise
    except Exception as error:
        raise EbbError(f"the adjoint of the operator {op.name!r} fails: {line(error)}.") from error
    if op.back is not None:
        far = _gap(there, r, x, back) if back.shape == x.shape else math.inf
        if far > _LEAST:
            raise EbbError(
                f"the adjoint of the operator {op.name!r} is none: <A x, y> and <x, A^T y> differ by {100 * far:.3g}% "
                "of what they could be; mend it, or leave it out and autograd finds it."
            )
    return op


def _gap(there: Tensor, r: Tensor, x: Tensor, back: Tensor) -> float:
    """|<A x, r> - <x, A^T r>| over the most that both could be, at the worst element."""
    dot = lambda a, b: (a * b).double().flatten(1).sum(1)  # noqa: E731
    most = (dot(there, there) * dot(r, r)).sqrt() + (dot(x, x) * dot(back, back)).sqrt()
    return float(((dot(there, r) - dot(x, back)).abs() / most.clamp_min(1e-300)).max())


def _masks(op: Operator, like: Tensor) -> None:
    """Hold a mask against the samples."""
    mask = op._asked(op.f)[MASK]
    try:
        fits = isinstance(mask, Tensor) and torch.broadcast_shapes(mask.shape, like.shape) == like.shape
    except RuntimeError:
        fits = False
    if not fits:
        shape = tuple(mask.shape[1:]) if isinstance(mask, Tensor) else type(mask).__name__
        raise EbbError(f"the mask is of {shape} where the samples are of {tuple(like.shape[1:])}: give it their shape.")
    hidden = mask.flatten(1) != 0
    if not bool(hidden.any(1).all()):
        raise EbbError("the mask has no hole, so there is nothing to fill in: mark with 1 (white) what is to be made.")
    if bool((mask.flatten(1) == 1).all(1).any()):
        raise EbbError("the mask hides everything, so there is nothing to go by: leave some of it 0 (black).")


def tried(spec: Spec, state: State) -> None:
    """`trial` where a run begins, and nothing later, as after jumps."""
    if not bool(state.i.any()):
        trial(spec, state.x, state.cond)
