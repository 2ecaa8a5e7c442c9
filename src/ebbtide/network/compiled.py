"""Compile: the network as one program that `torch.compile` (inductor) writes for its shapes; nothing falls back.

    first call at one batch size   a program for these shapes
    a second batch size            one more, whose batch is a variable: it serves all sizes from then on
    one element alone              may have its own

Shapes   any; a program is for one shape of an element
Source   Ansel et al. 2024, "PyTorch 2: faster machine learning through dynamic Python bytecode transformation and graph
         compilation" (ASPLOS), sections 3 and 5
Off      enabled = false is the network itself.
Differs  the whole network is compiled or none of it (`fullgraph`). The copy shares all weights of the original. It is closed:
         the last of the rewrites, and without patches.
         The first calls wait for the compiler: seconds to minutes.
Drift    of x0, the largest of 20 levels, and of samples after 20 Euler steps (bench/rewrites.py): 3e-7 and 2e-7 on
         `digits`, 1e-6 and 3e-7 on a small UNet with random weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ebbtide.core.errors import EbbError
from ebbtide.core.registry import part
from ebbtide.network.rewrite import Rewrite, copied

_SLOW = "a compiler runs for minutes; tests/network/test_rewrites.py compiles one network for all of it"


@part(
    "network",
    "compile",
    needs={"module"},
    off={"enabled": False},
    exempt=dict.fromkeys(("shapes", "needs", "off", "batch", "take", "resume", "pure", "calls", "ends"), _SLOW),
)
class Compile(Rewrite):
    """Compile: the network as one program that `torch.compile` (inductor) writes for its shapes; nothing falls back."""

    enabled: bool = True
    closed = True

    def __call__(self, network: nn.Module, record: Any = None) -> nn.Module:
        _require_compiler(next((p.device.type for p in network.parameters()), "cpu"))
        made = copied(network)
        program = torch.compile(made.forward, fullgraph=True)
        made.forward = functools.partial(_told, program)
        return made


def _require_compiler(device: str) -> None:
    if device != "cpu":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise EbbError(f"'compile' needs triton on {device}, which is not installed here; leave it out.")
        return
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        raise EbbError("'compile' needs a C++ compiler, and none is found; install g++ (or name one in CXX).") from None


def _told(program: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What the program answers; where there is none, why, in one sentence."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    try:
        return program(*args, **kwargs)
    except (TorchDynamoException, InductorError) as error:
        lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
        why = [lines[0], *(v.partition(": ")[2].rstrip(".") for v in lines if v.startswith("Explanation: "))]
        raise EbbError(
            f"this network cannot be compiled as a whole ({': '.join(why)}); leave 'compile' out."
        ) from error
