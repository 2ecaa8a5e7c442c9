"""Joint processes: every field moves as it would alone, on noise of its own."""

from __future__ import annotations

import pytest
import torch

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise, keys
from ebbtide.core.plan import Plan
from ebbtide.core.registry import make
from ebbtide.core.state import Pred

FIELDS = {
    "text": {"name": "masked", "vocab": 5},
    "image": {"name": "flow"},
    "depth": {"name": "bridge", "kappa": 0.5},
}


def joint(fields=FIELDS):
    return make("process", {"name": "joint", "fields": fields})


def noise(n: int) -> Noise:
    return Noise(keys(range(n)), torch.zeros(n, dtype=torch.int64), salt=3)


def data(n: int):
    gen = torch.Generator().manual_seed(0)
    x = {
        "text": torch.randint(5, (n, 4), generator=gen),
        "image": torch.randn(n, 3, 2, 2, generator=gen),
        "depth": torch.randn(n, 2, generator=gen),
    }
    pred = Pred(
        mean={"image": torch.randn(n, 3, 2, 2, generator=gen), "depth": torch.randn(n, 2, generator=gen)},
        logits={"text": torch.randn(n, 4, 5, generator=gen)},
    )
    return x, pred, {"y": {"depth": torch.randn(n, 2, generator=gen)}, "label": torch.arange(n)}


def test_each_field_moves_as_it_would_alone():
    n = 6
    p, (x0, pred, cond) = joint(), data(6)
    t = torch.tensor([0.9, 0.5, 0.2, 1.0, 0.7, 0.4], dtype=torch.float64)
    s = torch.tensor([0.3, 0.5, 0.6, 0.0, 0.1, 0.9], dtype=torch.float64)  # down, still, up
    x = p.corrupt(x0, t, noise(n), cond)
    y = p.move(x, pred, t, s, 1.0, noise(n), cond)
    start = p.prior(x0, torch.ones_like(t), noise(n), cond)
    for j, name in enumerate(["depth", "image", "text"]):
        alone, own, ends = make("process", FIELDS[name]), noise(n).fold(j), {"y": cond["y"].get(name)}
        assert torch.equal(alone.corrupt(x0[name], t, own, ends), x[name])
        assert torch.equal(alone.move(x[name], pred.field(name), t, s, 1.0, own, ends), y[name])
        assert torch.equal(alone.prior(x0[name], torch.ones_like(t), own, ends), start[name])
        assert torch.equal(y[name][1], x[name][1])
    backwards = joint(dict(reversed(FIELDS.items())))
    again = backwards.move(x, pred, t, s, 1.0, noise(n), cond)
    assert all(torch.equal(again[k], y[k]) for k in y)


def test_fields_of_one_kind_draw_apart():
    p = joint({"a": {"name": "flow"}, "b": {"name": "flow"}})
    like = {"a": torch.zeros(500, 8), "b": torch.zeros(500, 8)}
    x = p.prior(like, torch.ones(500, dtype=torch.float64), noise(500), {})
    both = torch.stack([x["a"].flatten(), x["b"].flatten()])
    assert abs(both.corrcoef()[0, 1].item()) < 5 / 4000**0.5


def test_an_end_may_be_shared_or_given_by_field():
    p = joint({"a": {"name": "bridge"}, "b": {"name": "bridge"}})
    like = {"a": torch.zeros(2, 3), "b": torch.zeros(2, 3)}
    one = torch.ones(2, dtype=torch.float64)
    y, z = torch.ones(2, 3), torch.full((2, 3), 2.0)
    both = p.prior(like, one, noise(2), {"y": y})
    assert torch.equal(both["a"], y)
    assert torch.equal(both["b"], y)
    apart = p.prior(like, one, noise(2), {"y": {"a": y, "b": z}})
    assert torch.equal(apart["b"], z)
    with pytest.raises(EbbError, match="far end"):
        p.prior(like, one, noise(2), {"y": {"a": y}})


def test_what_a_joint_gives():
    assert joint().gives == {"joint", "end"}
    assert joint({"a": {"name": "flow"}, "b": {"name": "ve"}}).gives == {"joint", "continuous"}
    assert joint({"a": {"name": "masked", "vocab": 2}}).gives == {"joint", "discrete"}
    nested = joint({"a": {"name": "joint", "fields": {"c": {"name": "flow"}}}, "b": {"name": "ve"}})
    assert nested.gives == {"joint", "continuous"}
    x = nested.corrupt({"a": {"c": torch.ones(1, 2)}, "b": torch.ones(1, 2)}, torch.zeros(1).double(), noise(1), {})
    assert torch.equal(x["a"]["c"], torch.ones(1, 2))


def test_a_solver_of_one_field_is_refused():
    spec = {"name": "joint", "fields": {"a": {"name": "flow"}, "b": {"name": "flow"}}}
    for process, solve in ((spec, "euler"), ("flow", "dpmpp-2m")):
        Plan(process=process, solve=solve).check(make("process", {"name": process} if process == "flow" else process))
    with pytest.raises(EbbError, match="affine"):
        Plan(process=spec, solve="dpmpp-2m").check(make("process", spec))


def test_what_is_missing_is_said():
    with pytest.raises(EbbError, match="at least one field"):
        joint({})
    with pytest.raises(EbbError, match="bridge"):
        joint({"a": {"name": "brigde"}})
    with pytest.raises(EbbError, match="no name"):
        joint({"a": {}})
    with pytest.raises(EbbError, match="over the fields depth, image, text"):
        joint().corrupt({"image": torch.zeros(1, 2)}, torch.zeros(1).double(), noise(1), {})
