"""Patches: what one computes depends on its own element alone, and the network is left as it was."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import nn

from ebbtide.core.loop import Loop
from ebbtide.core.registry import make
from ebbtide.core.state import Query
from ebbtide.denoise.network import Border, Network
from ebbtide.guide.cfg import CFG
from ebbtide.network.patch import Patch, Rows, reused, rewired
from ebbtide.process.flow import Flow

FLOW = Flow()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.7, -0.4, 0.2], dtype=torch.float64))
        self.calls = 0

    def forward(self, h, clock, level):
        self.calls += 1
        return torch.tanh(h * self.weight + level[:, None]) + clock[:, None]


class Net(nn.Module):
    """x0 = block(x) / 2, row by row; raises where it is told to."""

    def __init__(self):
        super().__init__()
        self.block, self.fails = Block(), False

    def forward(self, x, clock, level):
        out = self.block(x, clock, level) / 2
        if self.fails:
            raise RuntimeError("the network failed")
        return out


class Reuse(Patch):
    """The block is computed at every `every`-th own step of an element, and its last output used between."""

    def __init__(self, every: int = 2):
        self.every = every

    def init(self, state, ask):
        return {"born": torch.ones(len(state))}

    @contextmanager
    def enter(self, network, rows: Rows, name: str):
        own = network.block.forward

        def forward(h, *args):
            fresh, out = own(h, *args), []
            for run in rows.runs:
                place = f"{run.tag}|{run.role}"
                old = rows.get(name, place)
                kept = torch.zeros_like(fresh[run.rows]) if old is None else old[run.owners]
                again = (rows.state.i[run.owners] % self.every != 0) & kept.any(1)
                out.append(reused(fresh[run.rows], again, kept))
                rows.put(name, place, run.owners, out[-1])
            return torch.cat(out)

        with rewired(network.block, forward):
            yield


def made(seeds, patches=None, solve="euler", guides=(), module=None, steps=6):
    """A loop over a patched network and its first state; the level of an element is its seed's tenth."""
    network = Network(module or Net(), FLOW, predicts="x0", clock="time", nulls={"level": -1.0})
    solver, patches = make("solve", {"name": solve}), (Reuse(),) if patches is None else patches
    grid = make("grid", {"name": "linear", "steps": steps})
    loop = Loop(FLOW, make("start", {"name": "prior"}), grid, (*guides, Border(network, FLOW, patches)), solver)
    level = torch.tensor(seeds, dtype=torch.float64) / 10
    return loop, loop.begin(torch.zeros(len(seeds), 3, dtype=torch.float64), {"level": level}, seeds)


def end(loop, state):
    for step in loop.run(state):
        state = step.state
    return state


def same(a, b):
    left, right = a.flat(), b.flat()
    assert left.keys() == right.keys()
    for name, leaf in left.items():
        assert torch.equal(leaf, right[name]), name


SETTINGS = {
    "plain": {},
    "two calls": {"solve": "heun"},
    "guided": {"guides": (CFG(2.0),)},
    "both": {"solve": "heun", "guides": (CFG(2.0),)},
}


@pytest.fixture(params=SETTINGS)
def setting(request):
    return SETTINGS[request.param]


def test_the_block_is_reused_at_every_second_own_step():
    """Told from the clock: with weights of zero the block's output is tanh(level) + t of the step that computed it."""
    net = Net()
    nn.init.zeros_(net.block.weight)
    loop, state = made([1, 2], module=net)
    times, seen = [], []
    for step in loop.run(state):
        times.append(state.t.clone())
        seen.append(step.pred.mean[:, 0] * 2 - torch.tanh(state.cond["level"]))
        state = step.state
    for k in range(6):
        assert torch.allclose(seen[k], times[k - k % 2].float().double(), rtol=0, atol=1e-15)


def test_reuse_changes_samples_and_none_does_not(setting):
    plain, state = made([1, 2, 3], patches=(), **setting)
    never, begun = made([1, 2, 3], patches=(Reuse(every=1),), **setting)
    reuse, first = made([1, 2, 3], **setting)
    assert torch.equal(end(plain, state).x, end(never, begun).x)
    assert not torch.isclose(end(plain, state).x, end(reuse, first).x, rtol=0, atol=1e-6).all(1).any()


def test_solo_is_batch(setting):
    loop, state = made([1, 2, 3], **setting)
    whole = end(loop, state)
    for j, seed in enumerate([1, 2, 3]):
        alone = end(*made([seed], **setting))
        same(replace(whole.take(torch.tensor([j])), group=alone.group), alone)


def test_elements_may_be_taken_and_joined_in_mid_run(setting):
    """At every step, some taken, or joined with one that begins now: each ends as it would have by itself."""
    loop, state = made([1, 2, 3], **setting)
    order = torch.tensor([2, 0])
    whole, alone = end(loop, state), end(*made([4], **setting))
    for step in loop.run(state):
        same(end(loop, step.state.take(order)), whole.take(order))
        late = made([4], **setting)[1]
        both = end(loop, step.state.take(order).cat(late))
        assert torch.equal(both.x, torch.cat([whole.x[order], alone.x]))


def test_memory_is_kept_by_tag_and_role():
    _, state = made([1, 2])
    assert state.memory["network"]["0"]["born"].tolist() == [1, 1]
    for name, places in {
        "plain": {"main|point"},
        "two calls": {"main|point", "main|stage"},
        "guided": {"main|point", "main/null|point"},
        "both": {"main|point", "main|stage", "main/null|point", "main/null|stage"},
    }.items():
        loop, state = made([1, 2], **SETTINGS[name])
        slot = loop.step(state).state.memory["network"]["0"]
        assert set(slot) == {"born"} | places
        rows = torch.stack([slot[p] for p in places])
        assert len(rows.reshape(-1, 3).unique(dim=0)) == 2 * len(places)  # nobody has what is another's


def test_two_patches_keep_apart():
    loop, state = made([1, 2], patches=(Reuse(3), Reuse(2)))
    memory = loop.step(state).state.memory["network"]
    assert set(memory) == {"0", "1"}


def test_rows_know_their_owners():
    loop, state = made([5, 6, 7])
    some = torch.tensor([2, 0])
    seen = []

    class Spy(Patch):
        @contextmanager
        def enter(self, network, rows, name):
            seen.extend(rows.runs)
            yield

    border = Border(loop.layers[-1].denoiser, FLOW, (Spy(),))
    ask = replace(loop, layers=(border,)).ask(state)
    ask.many([Query(state.x, state.t), Query(state.x[some], state.t[some] / 2, tag="other", role="look", of=some)])
    first, second = seen
    assert (first.rows, first.owners.tolist(), first.tag, first.role) == (slice(0, 3), [0, 1, 2], "main", "point")
    assert (second.rows, second.owners.tolist(), second.tag, second.role) == (slice(3, 5), [2, 0], "other", "look")
    assert torch.equal(second.t, state.t[some] / 2)


def test_what_is_stored_for_some_is_theirs():
    _, state = made([5, 6, 7])
    rows = Rows((), (), state, {})
    assert rows.get("0", "m") is None
    rows.put("0", "m", torch.tensor([2, 0]), torch.tensor([[3.0], [1.0]]))
    rows.put("0", "m", torch.tensor([0]), torch.tensor([[4.0]]))
    assert rows.get("0", "m").tolist() == [[4], [0], [3]]
    assert rows.get("1", "m") is None


# ---------------------------------------------------------------- nothing is left


@pytest.mark.parametrize("forward", [None, lambda h, clock, level: h * 0.5], ids=["its class's", "one of its own"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_module_is_left_as_it_was(forward, fails):
    net = Net()
    if forward is not None:
        net.block.forward = forward
    before = [dict(m.__dict__) for m in net.modules()]
    loop, state = made([1, 2], patches=(Reuse(), Reuse(3)), module=net)
    state = loop.step(state).state
    if fails:
        net.fails = True
        with pytest.raises(RuntimeError, match="the network failed"):
            loop.step(state)
        net.fails = False
    net.block.__dict__.pop("calls")
    after = [dict(m.__dict__) for m in net.modules()]
    before[1].pop("calls")
    assert [{k: id(v) for k, v in d.items()} for d in after] == [{k: id(v) for k, v in d.items()} for d in before]
    assert net.block.__dict__.get("forward") is forward


def test_a_patch_that_fails_on_entering_leaves_nothing():
    class Broken(Patch):
        def enter(self, network, rows, name):
            raise RuntimeError("no such site")

    net = Net()
    loop, state = made([1], patches=(Reuse(), Broken()), module=net)
    with pytest.raises(RuntimeError, match="no such site"):
        loop.step(state)
    assert "forward" not in net.block.__dict__
