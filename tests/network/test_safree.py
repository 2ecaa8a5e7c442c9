"""SAFREE: projections, triggers, how many steps are changed, and prompts that are let pass untouched."""

from __future__ import annotations

import math

import pytest
import torch

import ebbtide as ebb
from ebbtide.core.errors import EbbError
from ebbtide.network.anatomy import anatomy
from ebbtide.network.safree import Safree, Turned, phrases, pooled, projection

GENERATOR = torch.Generator().manual_seed(0)
PLAN = ebb.Plan(grid={"name": "linear", "steps": 3})


@pytest.fixture(scope="module")
def model():
    return ebb.load("emoji")


def table(words):
    """An encoder of six words that does not look around: word k has its own axis, the last of which is shared by all."""
    e = torch.zeros(7, 7, dtype=torch.float64)
    e[1:, :6] = torch.eye(6, dtype=torch.float64)
    e[:, 6] = 0.1
    return e[words]


def turned(words, **params):
    words = torch.tensor([words])
    return Safree(concept=[[1]], **params).turn(table, words, table(words))


def test_projections_are_projections():
    e = torch.randn(2, 9, 4, generator=GENERATOR, dtype=torch.float64)
    e[:, :, 3] = e[:, :, 0] - 2 * e[:, :, 1]  # of lower rank than it has columns
    p = projection(e)
    assert torch.allclose(p @ p, p, atol=1e-10)
    assert torch.allclose(p, p.mT, atol=1e-10)
    assert torch.allclose(p @ e, e, atol=1e-10)
    assert torch.allclose(torch.einsum("bii->b", p), torch.tensor([3.0, 3.0], dtype=torch.float64))


def test_a_mean_is_of_words_alone():
    e = torch.randn(2, 3, 4, generator=GENERATOR)
    said = torch.tensor([[True, True, False], [False, False, False]])
    assert torch.allclose(pooled(e, said), torch.stack([e[0, :2].mean(0), e[1].mean(0)]))


def test_the_word_of_the_concept_triggers_and_loses_it():
    out = turned([2, 1, 3, 0])
    assert out.triggers.tolist() == [[False, True, False, False]]
    # `table` looks at no neighbours, so what is said by the others stays bit for bit
    assert torch.equal(out.embeddings[0, [0, 2]], table(torch.tensor([2, 3])))
    concept = table(torch.tensor([1]))[0]
    assert float((out.embeddings[0, 1] @ concept).abs()) < 1e-10
    assert float((out.embeddings[0, 3] @ concept).abs()) < 1e-10  # the filler is turned too
    assert torch.equal(turned([2, 1, 3, 0], spread=False).embeddings[0, 3], table(torch.tensor(0)))


def test_a_prompt_about_the_concept_turns_farther():
    betas = [float(turned(words).beta) for words in ([1, 0, 0], [1, 2, 0], [2, 3, 0])]
    assert betas[0] > betas[1] > betas[2]


def test_nothing_stands_out_where_no_word_does():
    out = turned([2, 3, 4, 0])
    assert not out.triggers.any()
    assert torch.equal(out.embeddings, table(torch.tensor([[2, 3, 4, 0]])))
    assert not turned([0, 0, 0]).triggers.any()


@pytest.mark.parametrize(("ten_beta", "steps"), [(0.0, 0), (5.333, 5), (10.0, 10)])
def test_steps_follow_a_sigmoid(ten_beta, steps):
    one = Turned(torch.zeros(1, 1, 1), torch.tensor([ten_beta / 10]), torch.ones(1, 1, dtype=torch.bool))
    assert float(Safree(concept=[[1]]).until(one)) == steps
    assert float(Safree(concept=[[1]], adaptive=False).until(one)) == 10
    none = one._replace(triggers=torch.zeros(1, 1, dtype=torch.bool))
    assert float(Safree(concept=[[1]], adaptive=False).until(none)) == 0


def test_beyond_its_steps_and_for_prompts_let_pass_nothing_changes(model):
    """With a middle that nothing reaches the pictures are the same bits; with one that all reach they are not."""
    plain = ebb.sample(model, PLAN, cond=["red apple", "cat face"], n=2).x
    spec = {"name": "safree", "concept": phrases(model, ["red"])}
    off = ebb.sample(model, PLAN.replace(network=[{**spec, "middle": 1e3}]), cond=["red apple", "cat face"], n=2)
    assert torch.equal(off.x, plain)
    on = ebb.sample(model, PLAN.replace(network=[{**spec, "adaptive": False}]), cond=["red apple", "cat face"], n=2)
    assert not torch.equal(on.x[0], plain[0])


def test_the_reader_of_words_is_found(model):
    (reader,) = anatomy(model.denoiser.module).readers
    assert reader.path == "text"
    assert anatomy(ebb.load("digits").denoiser.module).readers == ()
    out = reader.module(torch.tensor([[1, 2, 0]]))
    other = reader.hidden.answered(out, torch.ones(1, 3, 96))
    assert type(other) is type(out)
    assert torch.equal(other.last_hidden_state, torch.ones(1, 3, 96))
    assert math.isfinite(float(out.last_hidden_state.sum()))  # and the first answer is as it was
    assert not torch.equal(out.last_hidden_state, other.last_hidden_state)


def test_phrases_are_word_ids(model):
    assert phrases(model, ["red apple", "red"]) == [
        [model.read.place["red"], model.read.place["apple"]],
        [model.read.place["red"]],
    ]


def test_what_cannot_work_is_told(model):
    with pytest.raises(EbbError, match="text encoder"):
        Safree(concept=[[1]]).look(ebb.load("digits").denoiser.module)
    with pytest.raises(EbbError, match="needs a concept"):
        Safree(concept=[]).look(model.denoiser.module)
    with pytest.raises(EbbError, match="not asked in words"):
        phrases(ebb.load("digits"), ["seven"])
