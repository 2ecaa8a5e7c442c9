"""Solvers of tokens against what is known by enumeration. Laws are compared by chi-square at 1 percent, seeds fixed."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import ebbtide as ebb
from ebbtide.core.errors import EbbError
from ebbtide.core.state import State
from ebbtide.core.time import invert
from ebbtide.denoise.exact import MarkovChain
from ebbtide.measure.fit import cells, chi_square, kolmogorov
from ebbtide.process.masked import Masked
from ebbtide.process.uniform import Uniform
from ebbtide.solve.tau_leaping import TauLeaping, forward_rates, reverse_rates

V = 3
INITIAL = [0.5, 0.3, 0.2]
ONTO = [[0.7, 0.2, 0.1], [0.1, 0.7, 0.2], [0.25, 0.05, 0.7]]
LEVEL = 0.01
SCHEDULES: Any = ("linear", "quadratic", "cosine", "geometric")


def chain(process: Any, length: int) -> MarkovChain:
    return MarkovChain(process, INITIAL, ONTO, length)


def law(source: MarkovChain) -> Tensor:
    return source.log_prob(torch.cartesian_prod(*[torch.arange(V)] * source.length)).exp()


def draw(source: MarkovChain, n: int, **slots: Any) -> Any:
    model = ebb.load(source, like=torch.zeros(source.length, dtype=torch.int64))
    return ebb.sample(model, ebb.Plan(**slots), n=n, seed=5)


def hit(length: int, n: int, process: Any = None, **params: Any) -> Any:
    source = chain(process or Masked(V), length)
    return draw(source, n, solve={"name": "first-hitting", **params}, grid="events")


# ---------------------------------------------------------------- first hitting


def test_first_hitting_has_the_law_of_the_data_and_two_at_a_time_has_not() -> None:
    truth = law(chain(Masked(V), 4))
    assert chi_square(cells(hit(4, 20_000).x, V), truth) > LEVEL
    assert chi_square(cells(hit(4, 20_000, tokens=2).x, V), truth) < 1e-6


def test_a_mask_within_the_vocabulary_is_never_drawn() -> None:
    source = MarkovChain(Masked(4, mask=1), [0.5, 0, 0.3, 0.2], torch.ones(4, 4) + torch.eye(4), 3)
    x = draw(source, 4000, solve="first-hitting", grid="events").x
    assert not bool((x == 1).any())


@pytest.mark.parametrize("tokens", [1, 2, 3, 7])
def test_it_calls_once_for_every_token_or_handful_of_tokens(tokens: int) -> None:
    out = hit(5, 6, tokens=tokens)
    assert out.calls == 6 * math.ceil(5 / tokens)
    assert int(out.x.max()) < V


def test_the_schedule_says_when_and_never_what() -> None:
    """The paper's title: masked models know no time. And the moments are those of independent tokens."""
    length, n = 5, 20_000
    first, *others = (hit(length, 300, Masked(V, schedule=s)).x for s in SCHEDULES)
    assert all(torch.equal(first, x) for x in others)
    for schedule in SCHEDULES:
        process = Masked(V, schedule=schedule)
        model = ebb.load(chain(process, length), like=torch.zeros(length, dtype=torch.int64))
        loop = model.loop(ebb.Plan(solve="first-hitting", grid="events"))
        start = loop.begin(torch.zeros(n, length, dtype=torch.int64), {}, range(n))
        times = [step.state.t for step in loop.run(start)]
        assert len(times) == length
        assert not bool(times[-1].any())
        assert all(bool((b < a).all()) for a, b in itertools.pairwise(times))
        for k, t in enumerate(times[:-1], 1):  # the k-th to show leaves k - 1 or fewer shown before it
            gone = 1 - process.alpha(t)
            below = sum(math.comb(length, j) * gone ** (length - j) * (1 - gone) ** j for j in range(k))
            assert kolmogorov(torch.as_tensor(below)) > LEVEL / 16, (schedule, k)


def test_every_hidden_place_is_as_likely_to_be_next() -> None:
    loop, state = begun(torch.tensor([[3, 3, 1, 3, 3]]).repeat(6000, 1))
    shown = loop.step(state).state.x != V
    shown[:, 2] = False
    assert bool((shown.sum(1) == 1).all())
    assert chi_square(shown.sum(0), torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])) > LEVEL


def begun(x: Tensor, units: tuple[int, ...] = (), t: Tensor | None = None) -> tuple[Any, State]:
    source = chain(Masked(V), x.shape[1])
    loop = ebb.load(source, like=x[0]).loop(ebb.Plan(solve="first-hitting", grid="events"))
    state = loop.begin(torch.zeros_like(x), {}, range(len(x)), units)
    return loop, replace(state, x=x, t=state.t if t is None else t)


def end(loop: Any, state: State) -> tuple[Tensor, int]:
    calls = 0
    for step in loop.run(state):
        state, calls = step.state, calls + step.calls
    return state.x, calls


def test_what_is_given_stays_costs_nothing_and_is_heeded() -> None:
    """Prompts of different lengths side by side, and the law of the rest under them."""
    given = torch.tensor([[3, 2, 3, 1], [0, 3, 3, 3]]).repeat(8000, 1)
    x, calls = end(*begun(given))
    assert calls == 8000 * (2 + 3)
    assert torch.equal(x[given != V], given[given != V])
    table = law(chain(Masked(V), 4)).reshape(V, V, V, V)
    assert chi_square(cells(x[0::2][:, [0, 2]], V), table[:, 2, :, 1].flatten()) > LEVEL
    assert chi_square(cells(x[1::2, 1:], V), table[0].flatten()) > LEVEL


def test_tokens_at_times_of_their_own_still_show_one_by_one() -> None:
    n = 8000
    t = torch.tensor([1.0, 0.3, 0.8, 0.0], dtype=torch.float64).repeat(n, 1)
    start = torch.full((n, 4), V)
    start[:, 3] = 2
    x, calls = end(*begun(start, (4,), t))
    assert calls == 3 * n
    assert bool((x[:, 3] == 2).all())
    table = law(chain(Masked(V), 4)).reshape(V, V, V, V)
    assert chi_square(cells(x[:, :3], V), table[..., 2].flatten()) > LEVEL


def test_other_grids_are_refused_with_the_one_that_fits() -> None:
    with pytest.raises(EbbError, match="grid events"):
        ebb.Plan(solve="first-hitting", grid="linear")


# ---------------------------------------------------------------- rates, by enumeration of all states

PROCESSES = [Masked(V), Masked(V, schedule="cosine"), Uniform(V), Uniform(V, schedule="geometric")]
named = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: f"{p.entry.name}-{p.schedule}")


def at(time: float, n: int) -> Tensor:
    return torch.full((n,), time, dtype=torch.float64)


def states(process: Any) -> Tensor:
    return torch.cartesian_prod(torch.arange(process.states), torch.arange(process.states))


def noised(process: Any, time: float) -> Tensor:
    """q_t of all pairs of tokens, (states^2,)."""
    q = process.transition(at(0, 1), at(time, 1))[0, :V]
    return torch.einsum("ab,ai,bj->ij", law(chain(process, 2)).reshape(V, V), q, q).flatten()


def says(process: Any, time: float) -> Tensor:
    every = states(process)
    logits = chain(process, 2)(every, at(time, len(every)), {}).logits
    assert isinstance(logits, Tensor)
    return logits


def generator(process: Any, rates: Tensor) -> Tensor:
    """Rates of each token (S, 2, states) as the rates between all pairs (S, S), rows summing to 0."""
    k, n = process.states, len(rates)
    out = torch.zeros(n, k, k, dtype=torch.float64)
    every, rows = states(process), torch.arange(n)
    for v in range(k):
        out[rows, v, every[:, 1]] += rates[:, 0, v]
        out[rows, every[:, 0], v] += rates[:, 1, v]
    out = out.reshape(n, n)
    return out - torch.diag(out.sum(1))


def jumps(process: Any, time: float) -> tuple[Tensor, Tensor]:
    every = states(process)
    t = at(time, len(every))
    there, back = forward_rates(process, every, t), reverse_rates(process, every, says(process, time), t)
    return generator(process, there), generator(process, back)


@named
def test_rates_move_the_law_as_the_process_does_and_both_together_keep_it(process: Any) -> None:
    """Kolmogorov: dq/dt = q R = -q R^ for the law of all noised sequences; so q (R + R^) = 0, which correctors use."""
    for time in invert(process.alpha, torch.tensor([0.85, 0.5, 0.15], dtype=torch.float64)).tolist():
        q, step = noised(process, time), 1e-5
        slope = (noised(process, time + step) - noised(process, time - step)) / (2 * step)
        there, back = jumps(process, time)
        assert torch.allclose(q @ there, slope, rtol=0, atol=1e-7)
        assert torch.allclose(q @ back, -slope, rtol=0, atol=1e-7)
        assert float((q @ (there + back)).abs().max()) < 1e-12
        assert float(slope.abs().max()) > 0.01


def test_a_leap_is_that_many_poisson_jumps() -> None:
    poisson = pytest.importorskip("scipy.stats").poisson
    x, h = torch.tensor([[0]]), torch.tensor([0.3], dtype=torch.float64)
    for a, b in ((0.2, 0.1), (4.0, 2.0), (1e9, 1e9)):
        rates = torch.tensor([[[0.0, a, b]]], dtype=torch.float64)
        mean, share = 0.3 * (a + b), torch.tensor([a, b], dtype=torch.float64) / (a + b)
        for several, jump in (("reject", poisson.pmf(1, mean)), ("first", poisson.sf(0, mean))):
            found = TauLeaping(several=several).leap(x, rates, h)[0, 0]  # type: ignore[arg-type]
            assert torch.allclose(found, torch.cat([torch.tensor([1 - jump]), share * jump]), atol=1e-12)


def walked(process: Any, solver: TauLeaping, times: list[float]) -> Tensor:
    """The law in which a run over these times ends, by multiplying up its steps over all pairs of tokens."""
    every = states(process)
    n = len(every)

    def onto(each: Tensor) -> Tensor:
        return torch.einsum("nu,nv->nuv", each[:, 0], each[:, 1]).reshape(n, n)

    p = noised(process, 1.0)
    for t, s in itertools.pairwise(times):
        if s == 0:
            p = p @ onto(process.posterior(every, says(process, t), at(t, n), at(0, n)))
            break
        p = p @ onto(solver.leap(every, reverse_rates(process, every, says(process, t), at(t, n)), at(t - s, n)))
        both = reverse_rates(process, every, says(process, s), at(s, n)) + forward_rates(process, every, at(s, n))
        for _ in range(solver.corrector):
            p = p @ onto(solver.leap(every, both, at(solver.size * (t - s), n)))
    size = process.states
    return p.reshape(size, size)[:V, :V].flatten()


def off(process: Any, times: list[float], **params: Any) -> float:
    """Total variation between where a run ends and the data."""
    found = walked(process, TauLeaping(**params), times)
    assert float(found.sum()) == pytest.approx(1)
    return float((found - law(chain(process, 2))).abs().sum() / 2)


def even(n: int) -> list[float]:
    return [1 - k / n for k in range(n)] + [0.0]


@named
@pytest.mark.parametrize("several", ["reject", "first"])
def test_leaps_are_exact_as_they_shrink_at_order_one(process: Any, several: str) -> None:
    errors = [off(process, even(n), several=several) for n in (64, 128, 256)]
    assert errors[-1] < 0.03
    assert math.log2(errors[1] / errors[2]) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("process", [Masked(V), Uniform(V)], ids=["masked", "uniform"])
def test_correctors_bring_the_law_nearer(process: Any) -> None:
    """Each more than the one before; and many short ones undo whatever the steps before them did."""
    times = [1.0, 0.8, 0.6, 0.4, 0.2, 0.05, 0.0]
    plain, *corrected = (off(process, times, corrector=m, several="first", size=0.5) for m in (0, 1, 2, 4))
    assert all(b < a for a, b in zip([plain, *corrected], corrected, strict=False))
    hasty = [1.0, 0.02, 0.0]
    assert off(process, hasty) > 0.1
    assert off(process, hasty, corrector=4000, size=0.005) < 0.01


@pytest.mark.parametrize("process", [Masked(V), Uniform(V)], ids=["masked", "uniform"])
@pytest.mark.parametrize("corrector", [0, 2])
@pytest.mark.parametrize("several", ["reject", "first"])
def test_runs_end_in_the_law_worked_out(process: Any, corrector: int, several: Any) -> None:
    """The sampler does what the enumeration of its steps says: its errors too, and those are seen."""
    solver = {"name": "tau-leaping", "corrector": corrector, "several": several}
    out = draw(chain(process, 2), 20_000, solve=solver, grid={"name": "linear", "steps": 4})
    assert out.calls == 20_000 * (4 + 3 * corrector)
    mine = walked(process, TauLeaping(corrector=corrector, several=several), even(4))
    assert chi_square(cells(out.x, V), mine) > LEVEL
    assert chi_square(cells(out.x, V), law(chain(process, 2))) < 1e-6


@pytest.mark.parametrize("process", [Masked(V), Uniform(V)], ids=["masked", "uniform"])
def test_long_sequences_end_in_the_law_of_the_data(process: Any) -> None:
    solver, grid = {"name": "tau-leaping", "several": "first"}, {"name": "linear", "steps": 150}
    out = draw(chain(process, 4), 2000, solve=solver, grid=grid)
    assert chi_square(cells(out.x, V), law(chain(process, 4))) > LEVEL


def test_only_elements_that_leap_are_corrected() -> None:
    """Beside one at its last step, another is corrected as if alone: the same tokens, no call more."""
    process = Uniform(V)
    model = ebb.load(chain(process, 4), like=torch.zeros(4, dtype=torch.int64))
    loop = model.loop(ebb.Plan(solve={"name": "tau-leaping", "corrector": 2}, grid={"name": "linear", "steps": 3}))
    one, two = (loop.begin(torch.zeros(1, 4, dtype=torch.int64), {}, [seed]) for seed in (1, 2))
    for _ in range(2):
        one = loop.step(one).state
    step = loop.step(one.cat(two))
    assert step.calls == 1 + 3
    assert torch.equal(step.state.x[1:], loop.step(two).state.x)
    assert torch.equal(step.state.x[:1], loop.step(one).state.x)


@pytest.mark.parametrize("process", [Masked(V), Uniform(V)], ids=["masked", "uniform"])
def test_tokens_that_have_landed_stay_while_others_leap(process: Any) -> None:
    n = 200
    model = ebb.load(chain(process, 4), like=torch.zeros(4, dtype=torch.int64))
    grid = {"name": "staggered", "steps": 3, "delay": 1}
    loop = model.loop(ebb.Plan(solve={"name": "tau-leaping", "corrector": 2}, grid=grid))
    state = loop.begin(torch.zeros(n, 4, dtype=torch.int64), {}, range(n), (4,))
    for step in loop.run(state):
        landed = state.t == 0
        assert torch.equal(step.state.x[landed], state.x[landed])
        state = step.state
    assert int(state.x.max()) < V
    seen = cells(state.x[:, :1], V)  # the first lands on what the model says of it under noise alone, in three steps
    assert int((seen > 0).sum()) == V


# ---------------------------------------------------------------- which token is the surest


@pytest.mark.parametrize(
    ("rule", "first"),
    [("confidence", 0), ("margin", 1), ("entropy", 2), ("left", 0)],
)
def test_what_sure_means_decides_which_token_is_shown_first(rule: str, first: int) -> None:
    """Three places, the first of which has the largest probability, the second the largest margin, the third least entropy."""
    law = torch.tensor([[0.55, 0.225, 0.225, 0, 0], [0.54, *[0.115] * 4], [0.53, 0.47, 0, 0, 0]], dtype=torch.float64)
    process = Masked(5)

    def network(x: Tensor, clock: Tensor) -> Tensor:
        return law.clamp_min(1e-9).log().expand(len(x), 3, 5)

    model = ebb.load(network, process=process, predicts="logits", like=torch.zeros(3, dtype=torch.int64))
    plan = ebb.Plan(solve={"name": "confidence", "rule": rule}, grid={"name": "linear", "steps": 3})
    x = next(iter(ebb.run(model, plan))).state.x[0]
    assert (x != process.mask).nonzero()[:, 0].tolist() == [first]
