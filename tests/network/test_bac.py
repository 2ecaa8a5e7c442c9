"""BAC: schedules are the best there are, and at a step the network is itself with what is not due put back."""

from __future__ import annotations

import itertools

import pytest
import torch

import ebbtide as ebb
from ebbtide.core.registry import make
from ebbtide.network.anatomy import anatomy
from ebbtide.network.bac import affinity, best, bubbled, units

LABELS = [0, 3, 6]


@pytest.fixture(scope="module")
def model():
    return ebb.load("digits")


@pytest.fixture(scope="module")
def sites(model):
    return units(anatomy(model.denoiser.module))


def plan(steps=6, **bac):
    return ebb.Plan(grid={"name": "linear", "steps": steps}, network=[{"name": "bac", "steps": steps, **bac}])


def walk(seed, steps=10):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(steps, 12, generator=draw).cumsum(0) + 3


@pytest.mark.parametrize("served", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_the_programme_finds_what_brute_force_finds(seed, served):
    """All ways to choose 3 more of 10 steps: the best sum of similarities, added up step by step."""
    b, k, budget = walk(seed), 10, 4

    def cosine(i, j):
        return float(torch.cosine_similarity(b[i], b[j], dim=0))

    def score(steps):
        total = 0.0
        for k_ in range(k):
            since = max(s for s in steps if s <= k_)
            total += 0 if since == k_ else cosine(since, k_) if served else cosine(k_ - 1, k_)
        return total

    every = [(0, *rest) for rest in itertools.combinations(range(1, k), budget - 1)]
    found = best(affinity(b, served), budget)
    assert found[0] == 0
    assert len(set(found)) == budget
    assert score(found) == pytest.approx(max(map(score, every)), abs=1e-5)


def test_a_budget_of_one_or_of_all():
    phi = affinity(walk(0))
    assert best(phi, 1) == [0]
    assert best(phi, 10) == best(phi, 99) == list(range(10))


def test_bubbling(sites):
    """The units that move most recompute wherever a feed-forward after them does; others keep their own schedule."""
    paths = [s.path for s in sites]
    chosen = {p: [0, k + 1] for k, p in enumerate(paths)}
    moves = {p: float(p in (paths[2], paths[5])) for p in paths}
    out = bubbled(sites, chosen, moves, 2)
    for k, path in enumerate(paths):
        later = {n + 1 for n in range(k + 1, len(paths)) if paths[n].endswith("ff")}
        assert out[path] == sorted({0, k + 1} | (later if k in (2, 5) else set()))


def test_a_budget_of_all_steps_is_the_network_itself(model):
    made = ebb.calibrate(model, plan(budget=6), cond=LABELS, n=3)
    steps = list(ebb.run(model, made, cond=LABELS, n=3))
    plain = list(ebb.run(model, made.replace(network=[]), cond=LABELS, n=3))
    assert torch.equal(steps[-1].state.x, plain[-1].state.x)


@pytest.mark.parametrize("steps", [[0, 2, 5], [0, 1, 4]])
def test_units_that_are_not_due_give_what_they_gave(model, sites, steps):
    """The other way: the whole network is computed, and what such a unit answers is put back by hooks."""
    names = [sites[k].path for k in (0, 3, 9)]
    made = plan(schedule=dict.fromkeys(names, steps))
    found = ebb.sample(model, made, cond=LABELS, n=3).x

    module, kept, taps = model.denoiser.module, {}, []
    step = {"k": 0}
    for path in names:

        def hook(m, args, out, path=path):
            if step["k"] in steps:
                kept[path] = out
            return kept[path]

        taps.append(module.get_submodule(path).register_forward_hook(hook))
    try:
        for k, s in enumerate(ebb.run(model, made.replace(network=[]), cond=LABELS, n=3)):
            step["k"], other = k + 1, s.state.x
    finally:
        for tap in taps:
            tap.remove()
    assert torch.allclose(found, other, rtol=0, atol=1e-6)
    assert not torch.allclose(found, ebb.sample(model, made.replace(network=[]), cond=LABELS, n=3).x, atol=1e-4)


def test_calibrated_schedules_are_plain_data_and_keep_the_budget(model, sites):
    made = ebb.calibrate(model, plan(steps=8, budget=3, upstream=0), cond=LABELS, n=3)
    schedule = made.network[0]["schedule"]
    assert list(schedule) == [s.path for s in sites]
    assert all(len(v) == 3 and v[0] == 0 for v in schedule.values())
    assert ebb.Plan.from_dict(made.to_dict()) == made
    info = [s.info.get("bac", 0) for s in ebb.run(model, made, cond=LABELS, n=3)]
    assert info == [3 * sum(k not in v for v in schedule.values()) for k in range(8)]


def test_a_record_holds_what_was_asked(model):
    """Every call of the run, in order; asked again, the network answers as it did."""
    made = ebb.record(model, plan().replace(network=[], solve="heun"), cond=LABELS, n=3)
    assert [a.step for a in made.asked] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    network = made.network
    first = next(iter(made.answers(network, {"head": network.proj_out_2})))
    out = model.denoiser(first[0].x, first[0].t, first[0].cond).mean
    with torch.no_grad():
        taken = []
        tap = model.denoiser.module.proj_out_2.register_forward_hook(lambda m, a, o: taken.append(o))
        assert torch.equal(model.denoiser(first[0].x, first[0].t, first[0].cond).mean, out)
        tap.remove()
    assert torch.equal(first[1]["head"], taken[0])


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"name": "bac"}, r"'bac' needs a schedule for this model: plan = ebb.calibrate\(model, plan\)"),
        ({"name": "bac", "steps": 4, "schedule": {"blocks.0": [0]}}, "'bac' knows no unit 'blocks.0'"),
        ({"name": "bac", "budget": 0}, "budget: input should be greater than or equal to 1"),
    ],
)
def test_what_cannot_be(model, spec, said):
    with pytest.raises(ebb.EbbError, match=said):
        ebb.sample(model, ebb.Plan(network=[spec]), cond=[1], n=1)


def test_nothing_to_calibrate(model):
    with pytest.raises(ebb.EbbError, match="nothing in this plan's slot network is calibrated"):
        ebb.calibrate(model, ebb.Plan(), cond=[1], n=1)
    assert make("network", {"name": "bac"}).on
