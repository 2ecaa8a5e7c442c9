"""FK steering: potentials multiply to the tilt, groups stay apart, and rewards that fail stop nobody else."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ebbtide as ebb
from ebbtide.core.errors import EbbError
from ebbtide.core.registry import make
from ebbtide.denoise.exact import Gaussian, GaussianMixture, Table
from ebbtide.measure.rewards import reward
from ebbtide.process.gaussian import VPLinear
from ebbtide.process.masked import Masked
from ebbtide.steer import particles

POINT = [1.0, -0.5]
MIX = GaussianMixture(VPLinear(), [0.3, 0.7], [[1.0, 0.0], [-1.0, 0.5]], 0.2)
MODEL = ebb.load(MIX, like=torch.zeros(2, dtype=torch.float64))


def plan(steps: int = 12, **steer) -> ebb.Plan:
    spec = {"name": "fk-steering", "reward": {"name": "near", "point": POINT}, "strength": 3.0, **steer}
    return ebb.Plan(solve="ancestral", grid={"name": "log-snr", "steps": steps}, steer=spec)


def near(x: torch.Tensor) -> torch.Tensor:
    return -(x - torch.tensor(POINT)).square().sum(-1) / 2


@pytest.mark.parametrize("potential", ["diff", "max", "add", "rt"])
@pytest.mark.parametrize("ess", [0.4, 1.0])
def test_potentials_along_a_lineage_multiply_to_the_tilt(potential: str, ess: float):
    *_, last = ebb.run(MODEL, plan(potential=potential, ess=ess, floor=-2.0), n=32, group=8)
    product = last.state.memory["steer"]["product"]
    assert torch.allclose(product, 3.0 * (near(last.state.x) + 2.0), atol=1e-9)
    assert len(last.state.key.unique()) == 32


def test_weights_that_were_carried_are_those_of_importance_sampling():
    """Resampled at the landing only, parents are drawn by exp(3 r(x0)): the mean over many requests is the weighted one."""
    k, groups = 4, 3000
    end = ebb.sample(MODEL, replace(plan(6), steer=None), n=k * groups).x.reshape(groups, k, 2)
    steered = ebb.sample(MODEL, plan(6, every=100), n=k * groups, group=k).x.reshape(groups, k, 2)
    weighted = ((3.0 * near(end)).softmax(1)[..., None] * end).sum(1)
    spread = steered.mean(1).std(0) / math.sqrt(groups)
    assert bool(((steered.mean(1) - weighted).mean(0).abs() < 4 * spread).all())
    for r in range(50):  # and nobody comes from another request
        assert all(bool((row == end[r]).all(-1).any()) for row in steered[r])


def test_many_particles_follow_the_tilted_gaussian():
    """N(0, v) tilted by exp(-g (x - p)^2 / 2) is N(g v p / (1 + g v), v / (1 + g v)); v is what steps leave."""
    p, strength, steps = 1.0, 2.0, 30
    model = ebb.load(Gaussian(VPLinear(), [0.0], 0.5), like=torch.zeros(1, dtype=torch.float64))
    v = float(ebb.sample(model, replace(plan(steps), steer=None), n=8192).x.var())
    gain = 1 + strength * v
    for ess in (0.5, 1.0):
        made = plan(steps, reward={"name": "near", "point": p}, strength=strength, ess=ess)
        x = ebb.sample(model, made, n=64 * 64, group=64).x.reshape(64, 64)
        assert float(x.mean()) == pytest.approx(strength * v * p / gain, abs=4 * float(x.mean(1).std()) / 8)
        assert float(x.var()) == pytest.approx(v / gain, rel=0.15)


def test_masked_tokens_follow_the_tilted_table():
    """Two coupled bits, tilted towards ones; the completion that is judged is a draw, the landing is what it is."""
    table = torch.tensor([0.4, 0.1, 0.1, 0.4]).double()
    model = ebb.load(Table(Masked(2), table.reshape(2, 2)), like=torch.zeros(2, dtype=torch.int64))
    steer = {"name": "fk-steering", "reward": "mean", "strength": 2.0}
    made = ebb.Plan(solve="ancestral", grid={"name": "linear", "steps": 8}, steer=steer)
    x = ebb.sample(model, made, n=64 * 128, group=64).x
    tilted = table * torch.tensor([0.0, 1.0, 1.0, 2.0]).double().exp()
    share = (2 * x[:, 0] + x[:, 1]).bincount(minlength=4).double() / len(x)
    assert torch.allclose(share, tilted / tilted.sum(), atol=0.03)


def test_requests_are_alone_in_a_batch_and_batches_hold_whole_requests():
    whole = ebb.sample(MODEL, plan(), n=12, group=4)
    assert torch.equal(ebb.sample(MODEL, plan(), n=12, group=4, batch=4).x, whole.x)
    assert torch.equal(ebb.sample(MODEL, plan(), n=4, group=4, seed=8).x, whole.x[8:])
    assert whole.plan.run["group"] == 4
    assert "group" not in ebb.sample(MODEL, plan(strength=0.0), n=2).plan.run


def test_parents_and_the_effective_number():
    w = torch.tensor([0.0, -torch.inf, math.log(3.0)]).double()
    lots = torch.tensor([0.1, 0.3, 0.99]).double()
    assert particles.parents(w, lots).tolist() == [0, 2, 2]
    assert particles.effective(w) == pytest.approx(1.6)
    assert particles.effective(torch.zeros(5).double()) == pytest.approx(5)
    assert [r.tolist() for r in particles.requests(torch.tensor([7, 2, 7, 2, 9]))] == [[1, 3], [0, 2], [4]]


# ---------------------------------------------------------------- rewards that fail


@reward("test-fussy")
def fussy(x: torch.Tensor, worst: str = "raise", below: float = 0.0) -> torch.Tensor:
    bad = x[:, 0] < below
    if worst == "raise" and bool(bad.any()):
        raise ZeroDivisionError("no such x")
    return torch.where(bad, torch.nan, 0.0 * x[:, 0])


@pytest.mark.parametrize(("worst", "said"), [("raise", "ZeroDivisionError: no such x"), ("nan", "no finite number")])
def test_a_sample_without_a_reward_gives_way_to_others(worst: str, said: str):
    out = ebb.sample(MODEL, plan(reward={"name": "test-fussy", "worst": worst, "below": -0.6}), n=64, group=8)
    assert bool((out.x[:, 0] >= -0.6).all())
    assert len(out.remarks) == 1
    assert said in out.remarks[0]
    assert not out.failed


@pytest.mark.parametrize("worst", ["raise", "nan"])
def test_where_no_reward_can_be_read_samples_are_those_of_the_plain_plan(worst: str):
    lost = plan(reward={"name": "test-fussy", "worst": worst, "below": 1e9})
    out = ebb.sample(MODEL, lost, n=8, group=4)
    assert torch.equal(out.x, ebb.sample(MODEL, lost.replace(steer=None), n=8).x)
    assert "unsteered" in out.remarks[-1]


def test_a_lost_request_leaves_the_other_as_it_is():
    far = plan(reward={"name": "test-fussy", "worst": "nan", "below": 0.0}, strength=1.0)
    both = ebb.sample(MODEL, far, n=16, group=8).x
    assert torch.equal(both[8:], ebb.sample(MODEL, far, n=8, group=8, seed=8).x)


# ---------------------------------------------------------------- what is refused, before any work


class Silent(type(MIX)):  # type: ignore[misc]
    """A denoiser that must not be asked."""

    def __call__(self, *args):
        raise AssertionError("work was done")


SILENT = ebb.load(Silent(VPLinear(), [1.0], [[0.0, 0.0]], 1.0), like=torch.zeros(2, dtype=torch.float64))


def refused(match: str, spec=None, model=SILENT, **asked) -> None:
    __tracebackhide__ = True
    with pytest.raises(EbbError, match=match) as told:
        ebb.sample(model, plan() if spec is None else plan(reward=spec), **{"n": 4, "group": 2, **asked})
    assert "\n" not in str(told.value)


def test_groups_that_cannot_be(tmp_path: Path):
    refused("group=4", n=4, group=1)
    refused("do not divide n = 6", n=6, group=4)
    refused("do not divide batch = 3", n=8, group=4, batch=3)
    refused("at least one", group=0)


def test_rewards_that_cannot_be(tmp_path: Path):
    (tmp_path / "own.py").write_text("def flat(x): return x.mean()\ndef rows(x): return x.mean(1)\n")
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    refused("no reward 'neer'; did you mean near", "neer")
    refused("no parameter 'pint'", {"name": "near", "pint": 1})
    refused("mapping with a 'name'", {"point": 1})
    refused("there is no file", f"{tmp_path}/none.py:rows")
    refused("names no function", f"{tmp_path}/own.py")
    refused("no function 'row'; did you mean rows", f"{tmp_path}/own.py:row")
    refused("cannot be run: ModuleNotFoundError", f"{tmp_path}/broken.py:rows")
    refused(r"one score a sample.*not \(\)", f"{tmp_path}/own.py:flat")
    refused("makes no text", "vowels")
    refused("give it a label", "digit")
    with pytest.raises(EbbError, match="stochastic"):
        plan().replace(solve="euler").check(VPLinear())


def test_a_file_is_run_when_a_run_begins_and_gives_what_the_same_name_gives(tmp_path: Path):
    file = tmp_path / "own.py"
    text = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"
    text += "def near(x, point): return -(x - x.new_tensor(point)).square().sum(1) / 2\n"
    file.write_text(text)
    own = plan(reward={"name": f"{file}:near", "point": POINT})
    make("steer", own.steer)
    assert not (tmp_path / "ran").exists()
    out = ebb.sample(MODEL, own, n=8, group=8)
    assert (tmp_path / "ran").exists()
    assert torch.allclose(out.x, ebb.sample(MODEL, plan(), n=8, group=8).x)


def test_rewards_see_pixels_text_and_conditions():
    """Latents are decoded; the reward of a digit reads the label each sample was asked for; text is read as text."""
    shown = replace(MODEL, decode=lambda x: x + torch.tensor(POINT), medium="image")
    here = plan(reward={"name": "near", "point": [2 * v for v in POINT]})
    assert torch.allclose(ebb.sample(shown, here, n=8, group=8).x, ebb.sample(MODEL, plan(), n=8, group=8).x)
    letters = ebb.load(
        Table(Masked(2), torch.full((2, 2), 0.25)),
        like=torch.zeros(2, dtype=torch.int64),
        medium="text",
        decode=lambda row: "".join("xa"[v] for v in row.tolist()),
    )
    steer = {"name": "fk-steering", "reward": "vowels", "strength": 50.0}
    out = ebb.sample(
        letters, ebb.Plan(solve="ancestral", grid={"name": "linear", "steps": 4}, steer=steer), n=32, group=32
    )
    assert set(out.text()) == {"aa"}


def test_the_plan_of_a_sample_is_that_of_its_request():
    """None of a request is made alone; the file of one sample of many holds what makes them all again."""
    from ebbtide.app.output import alone

    out = ebb.sample(MODEL, plan(), n=8, group=4, seed=3)
    run = alone(out.plan, 6).run
    again = ebb.sample(MODEL, plan(), n=run["n"], seed=run["seed"], group=run["group"])
    assert torch.equal(again.x[2], out.x[6])


def test_a_request_without_rewards_keeps_the_weights_it_carried():
    from ebbtide.api import begin

    loop, state = begin(MODEL, plan(), n=4, group=2)
    weights, before = torch.tensor([-torch.inf, -torch.inf, 0.0, -1.0]).double(), torch.tensor([3.0, 1, 5, 5]).double()
    parent, lost = loop.steer._resample(loop.ask(state), weights, before, torch.zeros(4) > 0)
    assert (parent.tolist(), lost) == ([0, 1, 2, 3], 2)
    assert weights.tolist() == [3.0, 1.0, 0.0, -1.0]


def test_a_request_is_asked_for_one_thing():
    with pytest.raises(
        EbbError, match="samples 2 to 3 are one request, and must be asked for the same: they differ in"
    ):
        ebb.sample(ebb.load("digits"), ebb.Plan(), cond=[1, 1, 2, 3], n=4, group=2)


def test_labels_are_taken_in_turn_by_requests():
    from ebbtide.app.asking import cond_of
    from ebbtide.app.options import Options

    digits = ebb.load("digits")
    for label, there in ((None, [0, 0, 0, 1, 1, 1]), ("4,7", [4, 4, 4, 7, 7, 7]), ("3", 3)):
        assert cond_of(Options(label=label), {}, 6, digits, 3)[0] == there
    assert cond_of(Options(label="1,2,3,4,5,6"), {}, 6, digits)[0] == [1, 2, 3, 4, 5, 6]
