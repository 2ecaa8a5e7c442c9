"""Strips: one picture computed by several processes, each a strip of it, over torch.distributed with gloo.

    sample("digits", Plan(network=[{"name": "pcpp", "strips": 2}]), processes=2)

Every process runs the same plan from the same seeds; the patch `pcpp` of the plan computes its own strip of every network
call and hands over what the others must see. So all of them hold the same state at every step, and what the first gives is
the answer.

Paper    Li et al. 2024, "DistriFusion" (arXiv 2402.19481), section 4
Off      processes = 1 samples in this process, by `ebb.sample`.
Differs  a model is given by name or folder: each process opens its own.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.spawn import ProcessException, spawn

from ebbtide.api import sample as alone
from ebbtide.core.errors import EbbError
from ebbtide.core.plan import Plan
from ebbtide.network.links import Link, linked


class Shared(NamedTuple):
    """What several processes made.

    x     the samples
    calls rows that each of them computed its strip of
    sent  bytes that each process sent
    """

    x: Tensor
    calls: int
    sent: tuple[int, ...]


def available() -> bool:
    """Whether this torch can do it: torch.distributed with gloo."""
    return torch.distributed.is_available() and torch.distributed.is_gloo_available()


def sample(
    model: str | os.PathLike[str], plan: Plan, *, processes: int = 2, seconds: float = 600, **asked: Any
) -> Shared:
    """Draw samples in several processes; `asked` is what `ebb.sample` takes (cond, n, seed, batch).

    seconds  how long they may wait for each other

    Raises EbbError where torch has no gloo, for a plan whose strips are not as many as the processes, and where one fails.
    """
    if processes < 1:
        raise EbbError(f"a picture is made by at least one process, not {processes}.")
    if processes == 1:
        out = alone(str(model), plan, **asked)
        return Shared(out.x, out.calls, (0,))
    if not available():
        raise EbbError("this torch has no gloo, over which processes would talk: sample with processes=1.")
    strips = [part.strips for part in plan.parts("network") if part.called == "pcpp"]
    if strips != [processes]:
        raise EbbError(
            f"{processes} processes share a picture by network=[{{'name': 'pcpp', 'strips': {processes}}}]; this plan has "
            f"{strips[0] if strips else 'no'} strips."
        )
    with tempfile.TemporaryDirectory() as folder:
        job = (processes, folder, str(model), plan.to_dict(), seconds, asked)
        try:
            spawn(_work, job, nprocs=processes, join=True)
        except ProcessException as error:
            last = str(error).strip().splitlines()[-1]
            raise EbbError(f"a process that made a strip failed: {last}") from error
        parts = [torch.load(Path(folder) / f"{p}.pt", weights_only=True) for p in range(processes)]
    return Shared(parts[0]["x"], parts[0]["calls"], tuple(p["sent"] for p in parts))


def _work(rank: int, size: int, folder: str, model: str, plan: dict[str, Any], seconds: float, asked: Any) -> None:
    """One of the processes: its own model, the whole plan, its strip of every call."""
    import datetime

    import torch.distributed as distributed

    torch.set_num_threads(1)
    wait = datetime.timedelta(seconds=seconds)
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=size, timeout=wait)
    try:
        with linked(Link(rank, size)) as link:
            out = alone(model, Plan.from_dict(plan), **asked)
        torch.save({"x": out.x, "calls": out.calls, "sent": link.sent}, Path(folder) / f"{rank}.pt")
    finally:
        distributed.destroy_process_group()
