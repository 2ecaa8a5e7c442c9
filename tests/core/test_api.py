"""The functions that users call: who fails fails alone, and how samples are batched or resumed changes none of them."""

from __future__ import annotations

import pytest
import torch

import ebbtide as ebb
from ebbtide.api import begin
from ebbtide.core import registry
from ebbtide.core.errors import EbbError
from ebbtide.core.parts import Denoiser, Layer, Start
from ebbtide.core.registry import make, part
from ebbtide.core.state import Pred
from ebbtide.denoise.exact import Gaussian, GaussianMixture

FLOW = make("process", {"name": "flow"})
LIKE = torch.zeros(2, dtype=torch.float64)


@pytest.fixture
def own():
    """What a test registers is gone after it."""
    yield
    for key in [k for k, e in registry._registry.items() if not e.cls.__module__.startswith("ebbtide.")]:
        del registry._registry[key]


def mixture():
    """Two classes of Gaussians in the plane."""
    means = [[2.0, 0.0], [-2.0, 1.0], [0.0, -3.0]]
    return ebb.load(GaussianMixture(FLOW, [0.5, 0.3, 0.2], means, 0.1, [0, 1, 1]), like=LIKE, labels=2)


class Bad(Denoiser):
    """E[x0] = x / 2, but not a number below the time `at` of the element's condition."""

    process = FLOW

    def __call__(self, x, t, cond):
        return Pred(mean=torch.where((t < cond["at"])[:, None], torch.nan, x / 2))


def bad():
    return ebb.load(Bad(), like=LIKE)


TEN = ebb.Plan(grid={"name": "linear", "steps": 10})

# ---------------------------------------------------------------- failures


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("solve", ["euler", {"name": "euler", "eta": 1.0}, "dpmpp-2m"])
def test_an_element_that_fails_fails_alone(batch, solve):
    at = torch.tensor([0.0, 0.65, 0.0, 0.15, 0.0], dtype=torch.float64)
    plan = TEN.replace(solve=solve)
    out = ebb.sample(bad(), plan, cond={"at": at}, n=5, seed=40, batch=batch)
    # times 1, 0.9, ... : 0.6 is the first below 0.65, at the fifth step
    assert [tuple(f) for f in out.failed] == [(1, 41, 5), (3, 43, 10)]
    assert str(out.failed[0]) == "sample 1 (seed 41) is not finite from step 5 on"
    good = ebb.sample(bad(), plan, cond={"at": at * 0}, n=5, seed=40)
    assert not good.failed
    assert torch.equal(out.x[[0, 2, 4]], good.x[[0, 2, 4]])
    assert not out.x[[1, 3]].isfinite().any()


def test_the_step_of_a_failure_is_that_of_its_own_seed():
    """Where it fails depends on the noise: each element alone fails at the step that the batches report."""

    class Loud(Denoiser):
        process = FLOW

        def __call__(self, x, t, cond):
            return Pred(mean=torch.where((t < x[:, :1].abs().amax(1))[:, None], torch.nan, x))

    model = ebb.load(Loud(), like=LIKE)
    failed = ebb.sample(model, TEN, n=6, seed=3, batch=4).failed
    alone = [ebb.sample(model, TEN, n=1, seed=3 + j).failed for j in range(6)]
    assert failed == [f._replace(place=j) for j, found in enumerate(alone) for f in found]
    assert len({f.step for f in failed}) > 2


def test_a_run_whose_every_element_failed_ends_early_and_says_so():
    out = ebb.sample(bad(), ebb.Plan(grid={"name": "linear", "steps": 100}), cond={"at": 2.0}, n=3, seed=[7, 8, 9])
    assert [tuple(f) for f in out.failed] == [(0, 7, 1), (1, 8, 1), (2, 9, 1)]
    assert out.calls < 3 * 100


def test_a_start_that_is_not_finite_is_refused(own):
    @part("start", "broken")
    class Broken(Start):
        """Broken: a start whose second element is not a number."""

        def __call__(self, like, cond, seeds, ask):
            state = make("start", {"name": "prior"})(like, cond, seeds, ask)
            state.x[1] = torch.inf
            return state

    with pytest.raises(EbbError, match=r"the start holds values that are not finite, in element 1"):
        ebb.sample(mixture(), ebb.Plan(start="broken"), n=3)


def test_a_guide_that_did_nothing_is_an_error(own):
    @part("guide", "lazy", off={"power": 0.0})
    class Lazy(Layer):
        """Lazy: a guide that acts below a time."""

        power: float = 1.0
        below: float = 0.0

        def many(self, queries, memory, inner, ask, before):
            if bool((ask.state.t < self.below).any()):
                ask.note("lazy", 1)
            return inner(queries), memory

    with pytest.raises(EbbError, match=r"guide 'lazy' is switched on but did nothing"):
        ebb.sample(mixture(), ebb.Plan(guide="lazy"), n=2)
    ebb.sample(mixture(), ebb.Plan(guide={"name": "lazy", "power": 0.0}), n=2)
    ebb.sample(mixture(), ebb.Plan(guide={"name": "lazy", "below": 0.1}), n=2)


def test_a_correction_that_did_nothing_is_an_error():
    """A time is read from the spread of a unit's numbers; one number has none."""
    process = make("process", {"name": "vp-cosine"})
    shift = ebb.Plan(correct="time-shift", grid={"name": "linear", "steps": 8})
    one, many = (GaussianMixture(process, [1.0], [[1.0] * k], 0.01) for k in (1, 64))
    with pytest.raises(EbbError, match=r"correct 'time-shift' is switched on but did nothing"):
        ebb.sample(ebb.load(one, like=torch.zeros(1)), shift, n=2)
    ebb.sample(ebb.load(many, like=torch.zeros(64)), shift, n=2)
    ebb.sample(ebb.load(one, like=torch.zeros(1)), shift.replace(correct={"name": "time-shift", "window": 0}), n=2)


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"n": 0}, "n is the number of samples, at least 1, not 0"),
        ({"n": -2}, "n is the number of samples, at least 1, not -2"),
        ({"n": 2, "batch": 0}, "a batch holds at least one sample, not 0"),
        ({"n": 2, "cond": 2}, "has labels 0 to 1, not 2"),
        ({"n": 2, "cond": -2}, "has labels 0 to 1, not -2"),
        ({"n": 2, "cond": [0, 5]}, "has labels 0 to 1, not 5"),
        ({"n": 3, "cond": [0, 1]}, "'label' holds 2 rows for 3 samples"),
        ({"n": 2, "cond": "seven"}, "a condition is a label, a list of labels or a dict of tensors, not 'seven'"),
        ({"n": 2, "seed": [1, 2, 3]}, "3 seeds were given for 2 samples"),
        ({"n": 2, "plan": ebb.Plan(process="bridge")}, "cannot be sampled in 'bridge'"),
        ({"n": 2, "plan": ebb.Plan(process={"name": "masked", "vocab": 3})}, "cannot be sampled in 'masked'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(given, sentence):
    for call in (ebb.sample, lambda *a, **k: list(ebb.run(*a, **k))):
        if "batch" in given and call is not ebb.sample:
            continue
        with pytest.raises(EbbError, match=sentence) as caught:
            call(mixture(), given.get("plan"), **{k: v for k, v in given.items() if k != "plan"})
        assert str(caught.value).endswith(".")


def test_a_label_needs_a_model_that_knows_labels():
    with pytest.raises(EbbError, match="knows no labels; leave the label out"):
        ebb.sample(bad(), cond=1)
    with pytest.raises(EbbError, match="needs the process that it was trained on"):
        ebb.load(lambda x, t: x, like=LIKE)
    with pytest.raises(EbbError, match=r"give like=torch\.zeros"):
        ebb.load(lambda x, t: x, process="flow")
    with pytest.raises(EbbError, match="neither a shipped model nor a path"):
        ebb.load("no-such-model")


def test_labels_choose_the_classes():
    near = lambda label: ebb.sample(mixture(), TEN.replace(solve="heun"), n=64, cond=label).x  # noqa: E731
    assert (near(0)[:, 0] > 0.5).all()
    assert (near(1)[:, 0] < 1).all()
    by_list = near([0, 1] * 32)
    assert torch.equal(by_list[0::2], near(0)[0::2])
    assert torch.equal(by_list[1::2], near(torch.tensor(1))[1::2])


# ---------------------------------------------------------------- the same samples by every way

SOLVERS = ["euler", "heun", "dpmpp-2m", "ancestral"]


@pytest.mark.parametrize("solve", SOLVERS)
def test_a_run_goes_on_from_every_state_and_from_files(tmp_path, solve):
    model, plan = mixture(), TEN.replace(solve=solve, guide={"name": "cfg", "scale": 1.5})
    given = {
        "cond": {"label": torch.tensor([0, 1, 1]), "null": {"label": torch.tensor([-1, -1, -1])}},
        "n": 3,
        "seed": 5,
    }
    states = [step.state for step in ebb.run(model, plan, **given)]
    assert len(states) == 10
    whole = ebb.sample(model, plan, **given)
    assert torch.equal(states[-1].x, whole.x)
    for k, state in enumerate(states[:-1]):
        path = tmp_path / f"{k}.safetensors"
        state.save(path)
        for source in (state, path, str(path)):
            rest = [step.state for step in ebb.resume(model, plan, source)]
            assert len(rest) == 9 - k
            assert torch.equal(rest[-1].x, whole.x)
    assert not list(ebb.resume(model, plan, states[-1]))


def test_a_file_that_is_no_state_cannot_be_resumed(tmp_path):
    with pytest.raises(EbbError, match="cannot be read as a saved state"):
        next(ebb.resume(mixture(), TEN, tmp_path / "none"))


@pytest.mark.parametrize("solve", SOLVERS)
def test_batches_make_the_samples_of_one(solve):
    plan = TEN.replace(solve=solve)
    whole = ebb.sample(mixture(), plan, n=7, seed=3, cond=[0, 1, 0, 1, 0, 1, 0], trace=True)
    parts = ebb.sample(mixture(), plan, n=7, seed=3, cond=[0, 1, 0, 1, 0, 1, 0], batch=3, trace=True)
    assert torch.equal(whole.x, parts.x)
    assert whole.calls == parts.calls
    assert len(whole.trace) == len(parts.trace) == 10
    assert all(torch.equal(a, b) for a, b in zip(whole.trace, parts.trace, strict=True))
    assert torch.equal(whole.trace[-1], whole.x)


def test_seeds_may_be_a_list_in_any_order():
    plan = TEN.replace(solve="ancestral")
    row = ebb.sample(mixture(), plan, n=4, seed=10)
    assert row.seeds == [10, 11, 12, 13]
    mixed = ebb.sample(mixture(), plan, n=3, seed=[13, 10, 2**40])
    assert torch.equal(mixed.x[:2], row.x[[3, 0]])
    assert torch.equal(ebb.sample(mixture(), plan, n=1, seed=2**40).x[0], mixed.x[2])
    assert len(ebb.sample(mixture(), plan, n=1, seed=[-(2**70)])) == 1


def test_the_plan_of_samples_repeats_them():
    out = ebb.sample(mixture(), TEN.replace(solve="ancestral"), n=3, seed=8, cond=[0, 1, 1])
    again = ebb.Plan.from_dict(out.plan.to_dict())
    asked = {k: again.run[k] for k in ("n", "seed", "cond")}
    assert torch.equal(ebb.sample(mixture(), again, **asked).x, out.x)


# ---------------------------------------------------------------- another process

OTHERS = [{"name": "vp-linear"}, {"name": "vp-cosine"}, {"name": "edm"}, {"name": "ve"}, {"name": "flow"}]


@pytest.mark.parametrize("process", OTHERS, ids=lambda spec: spec["name"])
def test_a_model_sampled_in_another_process_reaches_the_same_ends(process):
    """The probability flow of a Gaussian, in whatever process, keeps how many deviations from the mean an element is."""
    mean, var = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.25, 4.0]).double()
    model = ebb.load(Gaussian(FLOW, mean, var), like=LIKE)
    plan = ebb.Plan(process=process, solve="heun", grid={"name": "log-snr", "steps": 200, "last": 1e-4})
    first = begin(model, plan, n=16, seed=1)[1]
    own = make("process", process)
    a, c = own.a(first.t)[:, None], own.c(first.t)[:, None]
    deviations = (first.x - a * mean) / (a**2 * var + c**2).sqrt()
    got = ebb.sample(model, plan, n=16, seed=1).x
    assert torch.allclose((got - mean) / var.sqrt(), deviations, rtol=0, atol=0.01)


def test_a_mixture_sampled_in_another_process_has_the_same_law():
    """With fresh noise at every step: the share of each mode, and the mean within it, are those of the data."""
    plan = ebb.Plan(process="vp-linear", solve="ancestral", grid={"name": "log-snr", "steps": 60})
    n = 4000
    x = ebb.sample(mixture(), plan, n=n).x
    means = torch.tensor([[2.0, 0.0], [-2.0, 1.0], [0.0, -3.0]]).double()
    mode = torch.cdist(x, means).argmin(1)
    for k, share in enumerate([0.5, 0.3, 0.2]):
        inside = x[mode == k]
        assert abs(len(inside) / n - share) < 4 * (share * (1 - share) / n) ** 0.5
        assert (abs(inside.mean(0) - means[k]) < 5 * (0.1 / len(inside)) ** 0.5).all()
        assert torch.allclose(inside.T.cov(), 0.1 * torch.eye(2).double(), rtol=0, atol=0.02)
