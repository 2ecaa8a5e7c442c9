"""The loop, alone: what a step commits, what it forgets, whom it asks and what it leaves behind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ebbtide.core.errors import EbbError
from ebbtide.core.loop import Loop
from ebbtide.core.parts import Correct, Denoiser, Grid, Layer, Solver, Start, Steer
from ebbtide.core.state import NULL, Move, Pred, Query, Step
from ebbtide.denoise.network import Border
from ebbtide.process.flow import Flow

FLOW = Flow()

# ---------------------------------------------------------------- small parts


class Level(Denoiser):
    """E[x0] = (x + level) / 2 with the level of the row's condition; keeps what it was told."""

    process = FLOW

    def __init__(self, nulls=None, fails=False):
        self.log, self.nulls, self.fails = [], nulls or {}, fails

    def __call__(self, x, t, cond):
        self.log.append((tuple(x.shape), sorted(cond), torch.is_grad_enabled()))
        if self.fails:
            raise RuntimeError("the network failed")
        level = cond["level"] if "level" in cond else torch.zeros(len(x), dtype=x.dtype)
        return Pred(mean=(x + level.reshape(-1, *(1,) * (x.ndim - 1))) / 2)

    def null(self, name, leaf):
        return torch.full_like(leaf, self.nulls[name]) if name in self.nulls else None


class Here(Start):
    def __call__(self, like, cond, seeds, ask):
        t = ask.ahead(0)
        return replace(ask.state, x=FLOW.prior(like, t, ask.noise, cond), t=t)


class Walk(Grid):
    """Times (n + 1,) for all, (B, n + 1) for each element or (B, F, n + 1) for each unit; `refuse(s, tries)` rejects."""

    def __init__(self, times, refuse=None):
        self.times, self.refuse = torch.as_tensor(times, dtype=torch.float64), refuse

    def init(self, state, ask):
        points = self.times.expand(*state.t.shape, -1)
        return {"points": points.clone(), "tries": torch.zeros(len(state), dtype=torch.int64)}

    def ahead(self, state, memory, k):
        points = memory["points"]
        return points.gather(-1, (state.i + k).clamp(max=points.shape[-1] - 1)[..., None])[..., 0]

    def settle(self, state, memory, s, move):
        accept = s != state.t
        if self.refuse is not None:
            accept = accept & ~self.refuse(s, memory["tries"])
        return None if bool(accept.all()) else accept, {**memory, "tries": memory["tries"] + 1}

    def done(self, state, memory):
        return state.t <= 0


class Pace(Solver):
    """Euler that remembers how many steps it made since its history began, which counts from 10, and uses the number."""

    def init(self, state, ask):
        return {"seen": torch.full(state.t.shape, 10.0, dtype=torch.float64)}

    def step(self, state, memory, s, ask, process):
        pred = ask(state.x, state.t)
        x = process.move(state.x, pred, state.t, s, 0.0, ask.noise, state.cond)
        seen = memory["seen"].reshape(*state.t.shape, *(1,) * (x.ndim - state.t.ndim))
        return Move(x + seen / 100, {"seen": memory["seen"] + 1}), pred


class Tally(Layer):
    """Passes queries on and remembers for how many steps each element did so, counting from 5."""

    def init(self, state, ask):
        return {"asked": torch.full((len(state),), 5.0)}

    def many(self, queries, memory, inner, ask, before):
        return inner(queries), {"asked": before["asked"] + 1}


class Add(Correct):
    """Adds 1 and keeps a list of who was corrected, by the first key."""

    def __init__(self):
        self.log = []

    def __call__(self, state, memory, pred, ask, process):
        self.log.append((sorted(state.key.tolist()), pred is None))
        return replace(state, x=state.x + 1), memory


def made(grid, *, n=3, cond=None, shape=(2,), units=(), denoiser=None, guides=(), seeds=None, **slots):
    """A loop made by hand, its denoiser and its first state."""
    denoiser = denoiser or Level()
    slots = {"solve": Pace(), **slots}
    loop = Loop(FLOW, Here(), grid, layers=(*guides, Border(denoiser, FLOW)), **slots)
    like = torch.zeros(n, *shape, dtype=torch.float64)
    return loop, denoiser, loop.begin(like, cond or {}, seeds or range(n), units)


def end(loop, state):
    for step in loop.run(state):
        state = step.state
    return state


def same(a, b, but=()):
    left, right = a.flat(), b.flat()
    assert left.keys() == right.keys()
    for name in left:
        assert name in but or torch.equal(left[name], right[name]), name


TIMES = [1.0, 0.75, 0.5, 0.25, 0.0]

# ---------------------------------------------------------------- rejected steps


def test_a_rejected_step_leaves_no_trace():
    """Element 1 is refused twice: once it has taken as many steps, it is what it would have been."""
    refuse = lambda s, tries: (torch.arange(3) == 1) & (tries >= 1) & (tries <= 2)  # noqa: E731
    loop, _, state = made(Walk(TIMES, refuse), guides=(Tally(),))
    one = loop.step(state).state
    step = loop.step(one)
    two, row = step.state, torch.tensor([1])
    assert step.accepted.tolist() == [True, False, True]
    same(two.take(row), one.take(row), but=["memory.grid.tries"])
    assert two.memory["grid"]["tries"].tolist() == [2, 2, 2]
    assert two.memory["solve"]["seen"].tolist() == [12, 11, 12]
    assert two.memory["guide/0"]["asked"].tolist() == [7, 6, 7]
    straight, _, begun = made(Walk(TIMES), guides=(Tally(),))
    same(end(loop, two), end(straight, begun), but=["memory.grid.tries"])


def test_units_are_rejected_one_by_one_and_layers_follow_their_element():
    refuse = lambda s, tries: torch.tensor([[False, True], [True, True]]) & (tries == 0)[:, None]  # noqa: E731
    loop, _, state = made(Walk(TIMES, refuse), n=2, shape=(2, 3), units=(2,), guides=(Tally(),))
    after = loop.step(state).state
    assert after.t.tolist() == [[0.75, 1], [1, 1]]
    assert after.i.tolist() == [[1, 0], [0, 0]]
    assert after.memory["solve"]["seen"].tolist() == [[11, 10], [10, 10]]
    assert after.memory["guide/0"]["asked"].tolist() == [6, 5]
    assert torch.equal(after.x[0, 1], state.x[0, 1])
    assert torch.equal(after.x[1], state.x[1])
    assert not torch.equal(after.x[0, 0], state.x[0, 0])


# ---------------------------------------------------------------- jumps


def test_history_is_void_where_time_went_up_and_kept_elsewhere():
    times = [[1, 0.6, 0.4, 0.2, 0], [1, 0.5, 0.75, 0.25, 0]]
    loop, _, state = made(Walk(times), n=2, guides=(Tally(),))
    two = loop.step(loop.step(state).state).state
    assert two.t.tolist() == [0.4, 0.75]
    assert two.memory["solve"]["seen"].tolist() == [12, 10]
    assert two.memory["guide/0"]["asked"].tolist() == [7, 5]
    assert two.memory["grid"]["tries"].tolist() == [2, 2]
    assert end(loop, two).memory["solve"]["seen"].tolist() == [14, 12]


def test_units_jump_one_by_one():
    loop, _, state = made(Walk([[[1, 0.5, 0], [0.5, 0.75, 0]]]), n=1, shape=(2, 3), units=(2,), guides=(Tally(),))
    after = loop.step(state).state
    assert after.memory["solve"]["seen"].tolist() == [[11, 10]]
    assert after.memory["guide/0"]["asked"].tolist() == [5]


# ---------------------------------------------------------------- corrections


def test_a_correction_may_change_the_shape():
    class Double(Correct):
        def __call__(self, state, memory, pred, ask, process):
            grows = state.x.shape[1] == 2 and bool((state.t <= 0.5).all())
            return (replace(state, x=state.x.repeat(1, 2)) if grows else state), {"n": memory.get("n", state.t * 0) + 1}

    loop, denoiser, state = made(Walk(TIMES), correct=(Double(),), guides=(Tally(),))
    two = loop.step(loop.step(state).state).state
    assert two.x.shape == (3, 4)
    assert two.memory["solve"]["seen"].tolist() == [10] * 3
    assert two.memory["guide/0"]["asked"].tolist() == [5] * 3
    assert two.memory["grid"]["tries"].tolist() == [2] * 3
    last = end(loop, two)
    assert last.memory["correct/0"]["n"].tolist() == [5] * 3  # the start and four steps
    assert torch.equal(last.x[:, :2], last.x[:, 2:])
    assert [shape for shape, *_ in denoiser.log] == [(3, 2)] * 2 + [(3, 4)] * 2


def test_corrections_run_on_the_start_and_on_what_moved():
    add = Add()
    times = [[1, 0.5, 0, 0], [1, 0.75, 0.5, 0]]
    loop, _, state = made(Walk(times), n=2, correct=(add,))
    both, slow = sorted(state.key.tolist()), [state.key[1].item()]
    assert add.log == [(both, True)]
    bare = made(Walk(times), n=2)[2]
    assert torch.equal(state.x, bare.x + 1)
    last = end(loop, state)
    assert [who for who, _ in add.log[1:]] == [both, both, slow]
    for j in range(2):
        alone, _, begun = made(Walk(times[j]), n=1, seeds=[j], correct=(Add(),))
        assert torch.equal(end(alone, begun).x[0], last.x[j])


def test_a_correction_that_asks_is_counted_and_heard():
    class Look(Correct):
        def __call__(self, state, memory, pred, ask, process):
            return replace(state, x=ask(state.x, state.t, role="look").mean), memory

    loop, _, state = made(Walk(TIMES), correct=(Look(),), guides=(Tally(),))
    assert state.memory["guide/0"]["asked"].tolist() == [6] * 3
    assert loop.step(state).calls == 6


# ---------------------------------------------------------------- queries


def test_a_prediction_already_paid_for_is_not_asked_again():
    class Twice(Solver):
        def step(self, state, memory, s, ask, process):
            pred = ask(state.x, state.t)
            stage = ask(state.x / 2, s, role="stage")
            return Move(pred.mean + stage.mean), pred

    loop, denoiser, state = made(Walk(TIMES), solve=Twice())
    paid = loop.ask(state)(state.x, state.t)
    denoiser.log.clear()
    given, plain = loop.advance(state, given=paid), loop.advance(state)
    assert (given.calls, plain.calls) == (3, 6)
    assert len(denoiser.log) == 3
    same(given.state, plain.state)
    strange = loop.advance(state, given=Pred(mean=paid.mean + 1))
    assert torch.allclose(strange.state.x, plain.state.x + 1)


def test_queries_of_one_shape_are_one_call():
    loop, denoiser, state = made(Walk(TIMES), cond={"level": torch.tensor([1.0, 2.0, 3.0]).double()})
    some = torch.tensor([2, 0])
    queries = [
        Query(state.x, state.t),
        Query(state.x * 3, state.t / 2, role="look"),
        Query(state.x[some], state.t[some], of=some),
    ]
    ask = loop.ask(state)
    together = ask.many(queries)
    assert [shape for shape, *_ in denoiser.log] == [(8, 2)]
    assert ask.calls == 8
    for got, q in zip(together, queries, strict=True):
        assert torch.equal(got.mean, loop.ask(state).many([q])[0].mean)
    denoiser.log.clear()
    mixed = [queries[0], Query(state.x.repeat(1, 2), state.t), queries[2]]
    answers = loop.ask(state).many(mixed)
    assert sorted(shape for shape, *_ in denoiser.log) == [(3, 4), (5, 2)]
    assert [tuple(p.mean.shape) for p in answers] == [(3, 2), (3, 4), (2, 2)]
    assert torch.equal(answers[2].mean, together[2].mean)


def test_conditions_follow_their_owners():
    level = torch.tensor([10.0, 20.0, 30.0], dtype=torch.float64)
    loop, _, state = made(Walk(TIMES), cond={"level": level})
    of = torch.tensor([2, 2, 0, 1])
    ask, rows = loop.ask(state), torch.zeros(4, 2, dtype=torch.float64)
    t = torch.ones(4, dtype=torch.float64)
    assert ask(rows, t, of=of).mean[:, 0].tolist() == [15, 15, 5, 10]
    own = {"level": torch.arange(4.0, dtype=torch.float64)}
    assert ask(rows, t, of=of, cond=own).mean[:, 0].tolist() == [0, 0.5, 1, 1.5]


@pytest.mark.parametrize("of", [None, torch.tensor([2, 0])])
def test_null_is_the_given_one_then_the_models_own(of):
    level, rows = torch.tensor([10.0, 20.0, 30.0]).double(), 3 if of is None else 2
    x, t = torch.zeros(rows, 2, dtype=torch.float64), torch.ones(rows, dtype=torch.float64)
    ask = lambda made: made[0].ask(made[2])(x, t, cond=NULL, of=of).mean[:, 0] * 2  # noqa: E731
    both = made(Walk(TIMES), cond={"level": level, "null": {"level": level + 1}}, denoiser=Level({"level": -4.0}))
    assert torch.equal(ask(both), (level + 1)[slice(None) if of is None else of])
    assert all("null" not in names for _, names, _ in both[1].log)
    own = made(Walk(TIMES), cond={"level": level}, denoiser=Level({"level": -4.0}))
    assert ask(own).tolist() == [-4] * rows
    for cond in ({"level": level}, {}, {"level": level, "null": {}}):
        with pytest.raises(EbbError, match="no null condition"):
            ask(made(Walk(TIMES), cond=cond))


def test_calls_are_rows_and_waiting_elements_cost_nothing():
    times = [[1, 0.5, 0, 0], [1, 0.75, 0.5, 0], [1, 0, 0, 0]]
    loop, denoiser, state = made(Walk(times))
    assert [step.calls for step in loop.run(state)] == [3, 2, 1]
    assert [shape[0] for shape, *_ in denoiser.log] == [3, 2, 1]


# ---------------------------------------------------------------- steering


class Best(Steer):
    """Tries every element twice, on fresh keys, and gives each request its candidate of the largest mean."""

    def init(self, state, ask):
        return {"won": torch.zeros(len(state))}

    def step(self, state, memory, advance, ask, process):
        paid = ask(state)(state.x, state.t)
        twice = torch.arange(len(state)).repeat(2)
        tried = advance(state.take(twice), given=paid.map(lambda v: v[twice]))
        after, score = tried.state, tried.state.x.mean(1)
        best = [int(torch.where(after.group == g, score, -torch.inf).argmax()) for g in state.group]
        after = after.take(torch.tensor(best))
        return Step(after.remember("steer", {"won": memory["won"] + 1}), None, tried.calls + len(state), None, {})


def requests(groups, seeds):
    loop, _, state = made(Walk(TIMES), n=len(groups), seeds=seeds, steer=Best())
    return loop, replace(state, group=torch.tensor(groups))


def test_steering_goes_around_the_step_and_groups_stay_apart():
    loop, state = requests([0, 0, 4, 4], range(4))
    step = loop.step(state)
    after = step.state
    assert step.calls == 4  # each element once; its two candidates share what was paid
    assert after.group.tolist() == [0, 0, 4, 4]
    assert len(set(after.key.tolist())) == 4
    assert after.memory["steer"]["won"].tolist() == [1] * 4
    assert torch.equal(after.x[0], after.x[1])
    assert torch.equal(after.x[2], after.x[3])
    plain = loop.advance(state).state.x
    for pair in ([0, 1], [2, 3]):
        assert torch.equal(after.x[pair[0]], plain[pair][plain[pair].mean(1).argmax()])
    alone, first = requests([7, 7], [2, 3])
    assert torch.equal(end(alone, first).x, end(loop, state).x[2:])


# ---------------------------------------------------------------- modes


@pytest.mark.parametrize("outside", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_gradients_are_as_the_loop_says_inside_and_as_the_caller_says_outside(outside, inside):
    with torch.set_grad_enabled(outside):
        loop, denoiser, state = made(Walk(TIMES))
        loop = replace(loop, gradients=inside)
        run = loop.run(state)
        for _ in range(2):
            next(run)
            assert torch.is_grad_enabled() == outside
        run.close()
        assert torch.is_grad_enabled() == outside
        assert [grad for *_, grad in denoiser.log] == [inside] * 2
        denoiser.fails = True
        with pytest.raises(RuntimeError, match="the network failed"):
            loop.step(state)
        assert torch.is_grad_enabled() == outside
        assert len(denoiser.log) == 3


def test_the_parts_of_one_step_draw_apart():
    """Solver, two guides, two corrections and steering at one state: six draws, no two alike, and each the same again."""
    drawn: dict[str, list[torch.Tensor]] = {}

    def heard(name, ask):
        drawn.setdefault(name, []).append(ask.noise.normal(torch.zeros(3, 4, dtype=torch.float64)))

    class Listening(Layer):
        def __init__(self, name):
            self.name = name

        def many(self, queries, memory, inner, ask, before):
            heard(self.name, ask)
            return inner(queries), memory

    class Drawing(Pace):
        def step(self, state, memory, s, ask, process):
            out = super().step(state, memory, s, ask, process)
            heard("solve", ask)
            return out

    class Mending(Correct):
        def __init__(self, name):
            self.name = name

        def __call__(self, state, memory, pred, ask, process):
            if pred is not None:
                heard(self.name, ask)
            return state, memory

    guides = (Listening("outer"), Listening("inner"))
    loop, _, state = made(
        Walk((1.0, 0.5, 0.0)), guides=guides, solve=Drawing(), correct=(Mending("first"), Mending("second"))
    )
    for _ in range(2):
        loop.step(state)
        heard("steer", loop.ask(state))
    each = {name: v[0] for name, v in drawn.items() if name not in ("first", "second")}
    assert all(torch.equal(v[0], v[1]) for v in drawn.values())
    # corrections draw at the state after the step, whose count is one more
    each |= {"first": drawn["first"][0], "second": drawn["second"][0]}
    names = list(each)
    assert len(names) == 6
    for k, one in enumerate(names):
        for other in names[k + 1 :]:
            assert not torch.equal(each[one], each[other]), (one, other)
