"""Exact denoisers of sequences: against sums over all clean sequences, and the identities of discrete diffusion."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.core.registry import make
from ebbtide.denoise.exact import MarkovChain, Product, Table

V, L = 3, 4
SEQUENCES = torch.tensor(list(itertools.product(range(V), repeat=L)))
MODELS = ["product", "chain", "table"]
SHARES = torch.tensor([0.7, 0.3]).double()
both = pytest.mark.parametrize("process", ["masked", "uniform"])
every = pytest.mark.parametrize("name", MODELS)


def build(process: str, name: str, mixed: bool = False):
    """A model and its law over SEQUENCES for each class, (K, V^L), written out sequence by sequence."""
    p = make("process", {"name": process, "vocab": V, "schedule": "cosine"})
    gen = torch.Generator().manual_seed(MODELS.index(name))
    k = 2 if mixed else 1
    draw = lambda *shape: torch.rand(k, *shape, generator=gen, dtype=torch.float64) ** 3  # noqa: E731
    given = (lambda v: v) if mixed else (lambda v: v[0])
    weights = SHARES if mixed else None
    law = torch.ones(k, len(SEQUENCES)).double()
    if name == "product":
        table = draw(L, V)
        model = Product(p, given(table.log()), weights)
        for i in range(L):
            law = law * table[:, i, SEQUENCES[:, i]]
    elif name == "chain":
        first, then = draw(V), draw(V, V)
        model = MarkovChain(p, given(first), given(then), L, weights)
        then = then / then.sum(-1, keepdim=True)
        law = first[:, SEQUENCES[:, 0]]
        for i in range(1, L):
            law = law * then[:, SEQUENCES[:, i - 1], SEQUENCES[:, i]]
    else:
        law = draw(len(SEQUENCES))
        model = Table(p, given(law.reshape(k, *(V,) * L)), weights)
    return model, law / law.sum(-1, keepdim=True)


def noised(model, t: Tensor, n: int, seed: int = 0) -> Tensor:
    """Any n states of the process at all."""
    gen = torch.Generator().manual_seed(seed)
    return torch.randint(model.process.states, (n, L), generator=gen)


def likelihood(model, x: Tensor, t: Tensor) -> Tensor:
    """q(x_t | x0) for one x (L,) at times t (L,) and all clean sequences, from the forward matrices."""
    q = model.process.transition(torch.zeros_like(t), t)
    return math.prod((q[i, SEQUENCES[:, i], x[i]] for i in range(L)), start=torch.ones(()).double())


@both
@every
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("units", [False, True])
def test_conditionals_by_enumeration(process, name, mixed, units):
    model, law = build(process, name, mixed)
    n = 40
    t = torch.rand(n, L, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    t = t if units else t[:, :1].expand(n, L)
    x = noised(model, t, n)
    label = torch.arange(n) % 3 - 1
    got = model(x, t if units else t[:, 0], {"label": label} if mixed else {}).logits
    assert got.shape == (n, L, V)
    assert bool(torch.isfinite(got).all())
    for r in range(n):
        share = SHARES if label[r] < 0 else torch.eye(2).double()[label[r]]
        joint = (share[:, None] * law).sum(0) if mixed else law[0]
        joint = joint * likelihood(model, x[r], t[r])
        for i in range(L):
            p = torch.stack([joint[SEQUENCES[:, i] == v].sum() for v in range(V)]) / joint.sum()
            torch.testing.assert_close(got[r, i].softmax(-1), p, rtol=1e-9, atol=1e-12)


@every
def test_masked_answers_do_not_depend_on_time(name):
    """Not even where a prompt is visible at t = 1."""
    model, _ = build("masked", name)
    x = noised(model, torch.ones(1), 30)
    answers = [model(x, torch.full((30,), t).double(), {}).logits for t in (0.2, 0.7, 1.0)]
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


@every
@pytest.mark.parametrize("mixed", [False, True])
def test_densities_and_samples(name, mixed):
    model, law = build("masked", name, mixed)
    total = (SHARES[:, None] * law).sum(0) if mixed else law[0]
    torch.testing.assert_close(model.log_prob(SEQUENCES).exp(), total, rtol=1e-9, atol=1e-15)
    n = 30000
    for label in (None, 1) if mixed else (None,):
        p = total if label is None else law[label]
        x = model.sample(n, 3, label)
        place = (x * V ** torch.arange(L - 1, -1, -1)).sum(1)
        freq = torch.bincount(place, minlength=len(SEQUENCES)).double() / n
        assert bool(((freq - p).abs() <= 5 * (p * (1 - p) / n).sqrt() + 1e-9).all())
        assert torch.equal(model.sample(2, 9, label)[1], model.sample(1, 10, label)[0])
        if label is not None:
            cond = {"label": torch.full((len(SEQUENCES),), label)}
            torch.testing.assert_close(model.log_prob(SEQUENCES, cond).exp(), p, rtol=1e-9, atol=1e-15)


@both
@every
def test_no_row_depends_on_the_others(process, name):
    for mixed in (False, True):
        model, _ = build(process, name, mixed)
        t = torch.rand(7, L, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        x, label = noised(model, t, 7), torch.arange(7) % 3 - 1
        for time in (t, t[:, 0]):
            cond = {"label": label} if mixed else {}
            whole = model(x, time, cond).logits
            for r in range(7):
                one = slice(r, r + 1)
                assert torch.equal(model(x[one], time[one], {k: v[one] for k, v in cond.items()}).logits, whole[one])


@both
@every
def test_one_exact_step_has_the_exact_marginals(process, name):
    """sum over x_t of p_t(x_t) p(x_s,i | x_t) is p_s(x_s,i), whatever the step: the model and the process agree."""
    model, law = build(process, name)
    p = model.process
    states = torch.tensor(list(itertools.product(range(p.states), repeat=L)))

    def noisy(time: float) -> Tensor:
        """p_t of all states, one place after the other."""
        out = law[0].reshape((V,) * L)
        q = p.transition(torch.zeros(1).double(), torch.tensor([time]).double())[0]
        for _ in range(L):
            out = torch.tensordot(out, q[:V], dims=([0], [0]))  # the place goes to the end, so the order returns
        return out.reshape(-1)

    for t, s in ((0.9, 0.4), (1.0, 0.7), (0.5, 0.0)):
        at, to = (torch.full((len(states),), v).double() for v in (t, s))
        step = p.posterior(states, model(states, at, {}).logits, at, to)  # (N, L, states)
        got = (noisy(t)[:, None, None] * step).sum(0)
        exact = noisy(s)
        for i in range(L):
            here = torch.stack([exact[states[:, i] == v].sum() for v in range(p.states)])
            torch.testing.assert_close(got[i], here, rtol=0, atol=1e-10)


@pytest.mark.parametrize("schedule", ["linear", "quadratic", "cosine", "geometric"])
def test_the_bound_is_the_entropy_whatever_the_schedule(schedule):
    """The NELBO of the exact denoiser, all mask patterns enumerated and t integrated, is the entropy of the data."""
    _, law = build("masked", "table")
    p = make("process", {"name": "masked", "vocab": V, "schedule": schedule})
    model = Table(p, law[0].reshape((V,) * L))
    n = 20000
    t = (torch.arange(n).double() + 0.5) / n
    alpha, weight = p.alpha(t), p.nelbo_weight(t)
    bound = 0.0
    for hidden in itertools.product([False, True], repeat=L):
        k = sum(hidden)
        if k:
            hide = torch.tensor(hidden)
            x = torch.where(hide, p.mask, SEQUENCES)
            log = model(x, torch.full((len(x),), 0.5).double(), {}).logits
            cross = -(log.gather(-1, SEQUENCES[..., None])[..., 0] * hide).sum(1)
            often = (weight * (1 - alpha) ** k * alpha ** (L - k)).mean()
            bound += float((law[0] * cross).sum() * often)
    assert bound == pytest.approx(float(torch.special.entr(law[0]).sum()), rel=2e-4)


def test_the_concrete_score_of_a_masked_token():
    """p_t(x with x_i = v) / p_t(x) = alpha / (1 - alpha) p(x0_i = v | what is visible)."""
    model, law = build("masked", "chain")
    p, time = model.process, torch.full((L,), 0.6).double()
    ratio = float(p.alpha(time[:1]) / (1 - p.alpha(time[:1])))
    for x in (torch.tensor([3, 0, 3, 3]), torch.tensor([3, 3, 3, 3]), torch.tensor([1, 2, 0, 3])):
        own = (law[0] * likelihood(model, x, time)).sum()
        answer = model(x[None], time[:1], {}).logits[0].softmax(-1)
        for i in range(L):
            if x[i] == p.mask:
                for v in range(V):
                    other = (law[0] * likelihood(model, x.index_fill(0, torch.tensor(i), v), time)).sum()
                    assert float(other / own) == pytest.approx(ratio * float(answer[i, v]), rel=1e-9)


def test_what_the_model_rules_out_is_answered_all_the_same():
    p = make("process", {"name": "masked", "vocab": 2})
    stay = MarkovChain(p, [1.0, 0.0], torch.eye(2), 3)  # only 000 is possible
    logits = stay(torch.tensor([[1, 2, 0], [2, 2, 2]]), torch.full((2,), 0.5).double(), {}).logits
    assert bool(torch.isfinite(logits).all())
    assert logits[0, 0].argmax() == 1
    assert bool((logits[1].softmax(-1)[:, 0] == 1).all())


def test_what_does_not_fit_is_said():
    p = make("process", {"name": "masked", "vocab": 3})
    with pytest.raises(EbbError, match="3 tokens"):
        Product(p, torch.zeros(4, 5))
    with pytest.raises(EbbError, match="one for each weight"):
        MarkovChain(p, torch.ones(3, 3), torch.ones(3, 3, 3), 4, weights=[1.0, 2.0])
    with pytest.raises(EbbError, match="law"):
        Table(p, -torch.ones(3, 3))
    with pytest.raises(EbbError, match=r"shaped \(4,\)"):
        Product(p, torch.zeros(4, 3))(torch.zeros(1, 5).long(), torch.ones(1).double(), {})
