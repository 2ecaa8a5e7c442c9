"""RAS: a short step is the whole network on the chosen tokens, with keys, values and outputs of the others as they were."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

import ebbtide as ebb
from ebbtide.core.state import Query, State
from ebbtide.network.patch import Rows, settled
from ebbtide.network.ras import RAS, SHORT, WHOLE

LABELS = [0, 3, 6, 9]


@pytest.fixture(scope="module")
def model():
    return ebb.load("digits")


@contextmanager
def hooked(module, hook):
    handle = module.register_forward_hook(hook)
    yield
    handle.remove()


class Calls:
    """A network under the patch, asked again and again with memory between."""

    def __init__(self, model, **knobs):
        self.model = model
        self.net, ((self.patch, self.seen),) = settled(model.denoiser.module, [RAS(**knobs)])
        self.memory = {}

    def rows(self, x, mode):
        return Rows([Query(x, torch.ones(len(x)))], State.blank(x, {}, LABELS), self.memory).of("0", mode)

    def __call__(self, mode, x, t):
        rows = self.rows(x, mode)
        with self.patch.enter(self.seen, rows):
            out = asked(self.model, self.net, x, t)
        self.memory = rows.memory
        return out


def asked(model, net, x, t):
    with torch.no_grad():
        return model.denoiser.call(net, x, torch.full((len(x),), t), {"label": torch.tensor(LABELS)})


def point(k):
    return torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(k))


def test_asked_the_same_again_it_says_the_same(model):
    calls = Calls(model)
    first = calls(WHOLE, point(0), 600.0)
    assert torch.equal(first, asked(model, model.denoiser.module, point(0), 600.0))
    for _ in range(3):
        assert torch.allclose(calls(SHORT, point(0), 600.0), first, rtol=0, atol=1e-5)


def test_a_short_step_is_the_network_with_the_others_as_they_were(model):
    """The other way: all tokens are computed, and hooks put back keys, values and outputs of those that sit out."""
    calls, net = Calls(model), model.denoiser.module
    calls(WHOLE, point(0), 600.0)
    before = dict(calls.memory["0"]["main|point"])
    chosen = calls.patch.choose(calls.rows(point(1), SHORT))
    mine = calls(SHORT, point(1), 500.0)

    sits = torch.ones(4, 64, dtype=torch.bool).scatter_(1, chosen, False)[..., None]

    def put_back(name):
        return lambda m, args, out: torch.where(sits, before[name.replace(".", "/")], out)

    hooks = [(net.get_submodule(name), put_back(name)) for name in calls.seen.pairs]
    taps = [module.register_forward_hook(hook) for module, hook in [*hooks, (net.proj_out_2, put_back("out"))]]
    try:
        other = asked(model, net, point(1), 500.0)
    finally:
        for tap in taps:
            tap.remove()
    assert torch.allclose(mine, other, rtol=0, atol=1e-5)
    assert not torch.allclose(mine, asked(model, net, point(1), 500.0), rtol=0, atol=1e-2)


def test_who_sits_out():
    """Of eight tokens of deviation 1 to 8, four sit out: two of the largest and two of the smallest, in turns."""
    x = torch.zeros(4, 1, 32, 32)
    rows = Rows([Query(x, torch.ones(4))], State.blank(x, {}, LABELS), {}).of("0", SHORT)
    level = torch.arange(1.0, 9.0)[None, :, None] * torch.tensor([-1.0, 1.0])
    rows.save("out", level.expand(4, 8, 2))
    rows.save("idle", torch.zeros(4, 8, dtype=torch.float64))
    fair = RAS(ratio=0.5, high=0.5, starvation=10.0)
    assert fair.choose(rows)[0].tolist() == [2, 3, 4, 5]
    assert rows.load("idle")[0].tolist() == [1, 1, 0, 0, 0, 0, 1, 1]
    assert fair.choose(rows)[0].tolist() == [0, 1, 6, 7]
    unfair = RAS(ratio=0.5, high=0.5, starvation=0.0)
    assert unfair.choose(rows)[0].tolist() == unfair.choose(rows)[0].tolist() == [2, 3, 4, 5]
    assert RAS(ratio=0.5, high=1.0).choose(rows).shape == (4, 4)


@pytest.mark.parametrize(("starvation", "longest"), [(3.0, 2), (0.0, 11)])
def test_nobody_sits_out_for_long(model, starvation, longest):
    spec = {"name": "ras", "starvation": starvation, "whole": 1, "resets": ()}
    plan = ebb.Plan(grid={"name": "linear", "steps": 14}, network=[spec])
    steps = list(ebb.run(model, plan, cond=LABELS, n=4))
    idle = [s.state.memory["network"]["0"]["main|point"]["idle"] for s in steps]
    most = int(torch.stack(idle).max())
    assert most <= longest if starvation else most >= longest
    assert [s.info.get("ras", 0) for s in steps] == [0, *[4] * 13]


def test_whole_steps_are_the_first_and_the_resets(model):
    plan = ebb.Plan(grid={"name": "linear", "steps": 9}, network=[{"name": "ras", "whole": 3, "resets": [5]}])
    noted = [s.info.get("ras", 0) for s in ebb.run(model, plan, cond=LABELS, n=4)]
    assert [k for k, n in enumerate(noted) if not n] == [0, 1, 2, 5]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("digits-unet", "'ras' runs some tokens of a plain stack of blocks"),
        ("moving-digits", "'ras' knows tokens in one row"),
    ],
)
def test_what_cannot_be(name, said):
    with pytest.raises(ebb.EbbError, match=said):
        ebb.sample(ebb.load(name), ebb.Plan(network=["ras"]), cond=[1], n=1)


def test_two_caches_of_one_site(model):
    both = [{"name": "ras"}, {"name": "bac", "steps": 20, "schedule": {"transformer_blocks.0.ff": [0]}}]
    with pytest.raises(ebb.EbbError, match=r"'ras' and 'bac' both replace what transformer_blocks.0.attn1 gives"):
        ebb.sample(model, ebb.Plan(network=both), cond=[1], n=1)
