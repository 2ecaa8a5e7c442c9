"""Training systems: what their cards measure with."""

from __future__ import annotations

import pytest
import torch

from ebbtide.core.key import Noise, keys
from ebbtide.learn.recovery import Energies
from ebbtide.systems.train import cdrl, dtr, immiscible
from ebbtide.zoo import routing


def pair() -> cdrl.PlanePair:
    return cdrl.PlanePair(Noise(keys([3]), torch.zeros(1, dtype=torch.int64)))


def test_auroc_counts_pairs_in_order():
    inside, outside = torch.tensor([0.9, 0.3, 0.7]), torch.tensor([0.1, 0.5, 0.2, 0.8])
    assert cdrl.auroc(inside, outside) == pytest.approx(float((inside[:, None] > outside).double().mean()))
    assert cdrl.auroc(inside, inside - 1) == 1
    assert cdrl.auroc(outside - 1, outside) == 0


def test_energies_are_compared_with_the_truth_by_rank_alone():
    class Truth:
        def energy(self, x, t, labels):
            return 3 * cdrl.TRUTH.log_prob(x.double(), t.double()) - 5

    class Flat:
        def energy(self, x, t, labels):
            return -x.square().sum(1)

    correlation, said, true = cdrl.energies(Truth())  # type: ignore[arg-type]
    assert correlation > 0.999
    assert said == pytest.approx(true, abs=1e-3)
    assert cdrl.energies(Flat())[0] < 0.5  # type: ignore[arg-type]


def test_the_ladder_is_the_grid_of_the_preset():
    lam = cdrl.PROCESS.lam(torch.tensor(cdrl.LEVELS))
    assert cdrl.LEVELS[-1] == pytest.approx(1)
    assert (-lam[:-1]).exp().tolist() == pytest.approx(cdrl.GRID["sigmas"][-2:0:-1])


def test_a_pair_is_a_model_with_a_mean_and_a_draft_of_its_own():
    x, t = cdrl.TRUTH.sample(6).float(), torch.full((6,), 0.3, dtype=torch.float64)
    net = pair()
    with torch.no_grad():
        pred = Energies(net, cdrl.PROCESS)(x, t, {})
        up, down = (
            net.energy(x + h, t.float(), None).double() for h in (torch.tensor([s, 0.0]) for s in (1e-2, -1e-2))
        )
    score = cdrl.PROCESS.from_x0("score", pred.mean, x, t, {})
    assert torch.allclose((up - down) / 2e-2, score[:, 0].double(), atol=2e-3)
    assert not torch.allclose(pred.mean, pred.aux["draft"], atol=0.1)


def test_the_sum_of_two_energies_has_the_sum_of_their_slopes():
    x, t = cdrl.TRUTH.sample(6).float(), torch.full((6,), 0.3, dtype=torch.float64)
    net = pair()
    with torch.no_grad():
        each = [Energies(net, cdrl.PROCESS)(x, t, {"label": torch.full((6,), k)}) for k in (-1, 1)]
        both = Energies(cdrl.Both(net), cdrl.PROCESS)(x, t, {})
    slopes = [cdrl.PROCESS.from_x0("score", p.mean, x, t, {}) for p in (*each, both)]
    assert torch.allclose(slopes[0] + slopes[1], slopes[2], atol=1e-4)
    assert not torch.allclose(slopes[0], slopes[1], atol=0.05)


def normal(salt: int, n: int = 4000) -> torch.Tensor:
    return Noise(keys([1]), torch.zeros(1, dtype=torch.int64)).normal(torch.zeros(1, n, 2).double(), salt)[0]


@pytest.mark.parametrize("wrong", ["mean", "variance", "tails"])
def test_noises_that_are_not_normal_are_seen(wrong: str) -> None:
    e = normal(1)
    assert immiscible.off_normal(e) < 3.5
    changed = {"mean": e + 0.1, "variance": e * 1.08, "tails": torch.special.ndtr(e).sub(0.5) * 12**0.5}[wrong]
    assert immiscible.off_normal(changed) > 5


def test_targets_that_meet_differ_by_their_variance() -> None:
    """Independent pairs: at t = 1 the target e - x has the variance of x; where x follows e it has none."""
    x, e = 3 * normal(2), normal(3)
    assert immiscible.spread(x, e, t=1.0) == pytest.approx(18, rel=0.1)
    assert immiscible.spread(2 * e, e, t=0.98) < 0.05


def test_nothing_is_exchanged_in_the_control() -> None:
    x, e = immiscible.pairs(False, batches=2)
    y, own = immiscible.pairs(True, batches=2)
    assert torch.equal(x, y)
    assert not torch.equal(e, own)
    assert torch.equal(e.sum(1).sort().values, own.sum(1).sort().values)
    assert (own - x).square().mean() < 0.8 * (e - x).square().mean()


def test_masks_of_the_card() -> None:
    sliding, drawn, shared = (dtr.table(name) for name in ("sliding", "drawn", "shared"))
    for table in (sliding, drawn, shared):
        assert table.shape == (dtr.LEVELS, dtr.WIDTH)
        assert bool((table.sum(1) == int(0.8 * dtr.WIDTH)).all())
    assert bool((shared == shared[0]).all())
    assert dtr.drift(drawn) == pytest.approx(1, abs=0.1)
    # of 13 steps that the window takes, round(13 / 16) = 1 lies in the lower half
    assert dtr.drift(sliding) == pytest.approx(12)
    assert int(dtr.overlap(sliding, 999)[0]) == dtr.WIDTH - 2 * 13


def test_a_block_that_writes_outside_its_window_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dtr.untouched(dtr.table("sliding")) == 0

    def leaks(block, table, x, *args, timestep, **kwargs):
        level = timestep.round().long().clamp(0, len(table) - 1)
        mask = table[level][:, None]
        return type(block).forward(block, x * mask, *args, timestep=timestep, **kwargs) + x * ~mask

    monkeypatch.setattr(routing, "_through", leaks)
    assert dtr.untouched(dtr.table("sliding")) > 1e-3
