"""What a network is told is a function of time that can be undone."""

from __future__ import annotations

import pytest
import torch

import ebbtide as ebb
from ebbtide.core import registry
from ebbtide.denoise.network import CLOCKS, TIMES, Network
from ebbtide.interop import schedulers


@pytest.mark.parametrize("name", sorted(TIMES))
@pytest.mark.parametrize("process", ["vp-linear", "flow"])
def test_times_undo_clocks(name: str, process: str) -> None:
    """From the first train step, below which an index stays zero."""
    t = torch.linspace(1e-3, 1, 50, dtype=torch.float64)
    told = CLOCKS[name](registry.make("process", {"name": process}), t, 1000.0)
    torch.testing.assert_close(TIMES[name](told, 1000.0), t, rtol=0, atol=1e-12)


def test_timesteps_of_levels_are_no_times() -> None:
    """EDM counts in log(sigma) / 4, so its list of timesteps cannot be read."""
    found = schedulers.read({"_class_name": "EDMEulerScheduler"}, 5)
    with pytest.raises(ebb.EbbError, match="give sigmas"):
        found.times([1.0, 0.5])


@pytest.mark.parametrize("twice", [False, True])
def test_a_learned_variance_is_set_aside(twice: bool) -> None:
    """Twice as many channels hold the mean first; whatever the second half says, the prediction stays."""
    x, t = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)), torch.full((3,), 0.5).double()
    process = registry.make("process", {"name": "vp-linear"})

    def call(module: object, x: torch.Tensor, clock: torch.Tensor, cond: object) -> torch.Tensor:
        return torch.cat([0.1 * x, 9 + x], 1) if twice else 0.1 * x

    mean = Network(None, process, predicts="eps", call=call)(x, t, {}).mean  # type: ignore[arg-type]
    torch.testing.assert_close(mean, process.to_x0("eps", 0.1 * x, x, t, {}), rtol=0, atol=0)
