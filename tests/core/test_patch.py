"""Patches: what one computes depends on its own element alone, and the network is left as it was."""

from __future__ import annotations

import functools
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import nn

from ebbtide.core.errors import EbbError
from ebbtide.core.loop import Loop
from ebbtide.core.registry import make
from ebbtide.core.state import Query
from ebbtide.denoise.network import Border, Network
from ebbtide.guide.cfg import CFG
from ebbtide.network.patch import Patch, Rows, rewired
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

    def mode(self, network, rows: Rows):
        kept = rows.load("out")
        again = torch.zeros(len(rows), dtype=torch.bool) if kept is None else kept.any(1)
        return (again & (rows.i % self.every != 0)).long()

    @contextmanager
    def enter(self, network, rows: Rows):
        own = network.block.forward

        def forward(h, *args):
            if rows.mode:
                return rows.load("out")
            rows.save("out", own(h, *args))
            return rows.load("out")

        with rewired(network.block, forward):
            yield


def made(seeds, patches=None, solve="euler", guides=(), module=None, steps=6):
    """A loop over a patched network and its first state; the level of an element is its seed's tenth."""
    network = Network(module or Net(), FLOW, predicts="x0", clock="time", nulls={"level": -1.0})
    solver, patches = make("solve", {"name": solve}), (Reuse(),) if patches is None else patches
    grid = make("grid", {"name": "linear", "steps": steps})
    loop = Loop(FLOW, make("start", {"name": "prior"}), grid, (*guides, Border.of(network, FLOW, patches)), solver)
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
        rows = torch.stack([slot[p]["out"] for p in places])
        assert len(rows.reshape(-1, 3).unique(dim=0)) == 2 * len(places)  # nobody has what is another's


def test_two_patches_keep_apart():
    loop, state = made([1, 2], patches=(Reuse(3), Reuse(2)))
    memory = loop.step(state).state.memory["network"]
    assert set(memory) == {"0", "1"}


class Spy(Patch):
    """Listens to every call."""

    def __init__(self, modes=None):
        self.calls, self.modes = [], modes

    def mode(self, network, rows):
        return super().mode(network, rows) if self.modes is None else self.modes[rows.owners]

    @contextmanager
    def enter(self, network, rows):
        self.calls.append(rows)
        yield


def test_rows_know_their_owners():
    loop, state = made([5, 6, 7])
    some, spy = torch.tensor([2, 0]), Spy()
    border = Border.of(loop.layers[-1].denoiser, FLOW, (spy,))
    ask = replace(loop, layers=(border,)).ask(state)
    ask.many([Query(state.x, state.t), Query(state.x[some], state.t[some] / 2, tag="other", role="look", of=some)])
    (call,) = spy.calls
    first, second = call.runs
    assert (first.rows, first.owners.tolist(), first.tag, first.role) == (slice(0, 3), [0, 1, 2], "main", "point")
    assert (second.rows, second.owners.tolist(), second.tag, second.role) == (slice(3, 5), [2, 0], "other", "look")
    assert torch.equal(second.t, state.t[some] / 2)
    assert call.owners.tolist() == [0, 1, 2, 2, 0]
    assert len(call) == 5


def test_rows_of_one_mode_are_called_together_and_answered_in_order():
    """Of two queries: five rows in two modes are two calls, and each row is told what it would be told alone."""
    plain, state = made([5, 6, 7], patches=())
    some, spy = torch.tensor([2, 0]), Spy(torch.tensor([1, 4, 1]))
    queries = [Query(state.x, state.t), Query(state.x[some] + 1, state.t[some] / 2, tag="other", of=some)]
    border = Border.of(plain.layers[-1].denoiser, FLOW, (spy,))
    told = replace(plain, layers=(border,)).ask(state).many(queries)
    for one, other in zip(told, plain.ask(state).many(queries), strict=True):
        assert torch.equal(one.mean, other.mean)
    assert [(c.mode, c.owners.tolist()) for c in spy.calls] == [(1, [0, 2, 2, 0]), (4, [1])]


def test_what_is_saved_of_some_is_theirs():
    _, state = made([5, 6, 7])
    whole, memory = torch.zeros(3, 1), {}

    def rows(*queries):
        return Rows(queries, state, memory).of("0")

    def query(owners, tag="main"):
        return Query(whole[: len(owners)], torch.zeros(len(owners)), tag=tag, of=torch.tensor(owners))

    assert rows(query([0])).load("m") is None
    for owners, values in (([2, 0], [[3.0], [1.0]]), ([0], [[4.0]])):
        asked = rows(query(owners))
        asked.save("m", torch.tensor(values))
        memory = asked.memory
    assert rows(Query(whole, torch.zeros(3))).load("m").tolist() == [[4], [0], [3]]
    assert rows(query([2, 0]), query([1], tag="other")).load("m").tolist() == [[3], [4], [0]]
    assert rows(query([2], tag="other")).load("m") is None
    assert Rows([query([0])], state, memory).of("1").load("m") is None


# ---------------------------------------------------------------- nothing is left


@pytest.mark.parametrize("fails", [False, True])
def test_the_module_is_left_as_it_was(fails):
    net = Net()
    before = [dict(m.__dict__) for m in net.modules()]
    loop, state = made([1, 2], patches=(Reuse(), Reuse(3)), module=net)
    shell = loop.layers[-1].denoiser.module
    inside = dict(shell.block.__dict__)
    state = loop.step(state).state
    if fails:
        shell.fails = True
        with pytest.raises(RuntimeError, match="the network failed"):
            loop.step(state)
    after = [dict(m.__dict__) for m in net.modules()]
    assert [{k: id(v) for k, v in d.items()} for d in after] == [{k: id(v) for k, v in d.items()} for d in before]
    assert shell.block.__dict__.keys() == inside.keys()
    assert "forward" not in inside


def test_the_weights_are_shared():
    net = Net()
    loop, state = made([1, 2], patches=(Reuse(),), module=net)
    with torch.no_grad():
        net.block.weight.zero_()
    assert torch.equal(loop.step(state).pred.mean[:, 0] * 2, torch.tanh(state.cond["level"]) + state.t)


def test_a_forward_put_there_by_hooks_is_heard_with_what_is_within():
    """As those do that move weights: a partial over the module that calls the forward it had."""

    def moved(module, *args, **kwargs):
        return 3 * module._old_forward(*args, **kwargs)

    net = Net()
    net._old_forward = net.forward
    net.forward = functools.partial(moved, net)
    loop, state = made([1, 2], patches=(Reuse(),), module=net)
    first = loop.step(state)
    twice = loop.step(first.state)
    level = torch.tanh(state.x * net.block.weight + state.cond["level"][:, None])
    assert torch.equal(first.pred.mean, 3 * (level + 1) / 2)
    assert torch.equal(twice.pred.mean, first.pred.mean)  # the block within it was reused


def test_a_patch_that_fails_on_entering_leaves_nothing():
    class Broken(Patch):
        def enter(self, network, rows):
            raise RuntimeError("no such site")

    net = Net()
    loop, state = made([1], patches=(Reuse(), Broken()), module=net)
    with pytest.raises(RuntimeError, match="no such site"):
        loop.step(state)
    assert "forward" not in loop.layers[-1].denoiser.module.block.__dict__


def test_two_patches_on_one_site_are_refused():
    class Claims(Spy):
        def claims(self, network):
            return (network.block,)

    with pytest.raises(
        EbbError, match="network 'Claims' and 'Claims' both replace what block gives; leave one of them out"
    ):
        made([1], patches=(Claims(), Claims()))
