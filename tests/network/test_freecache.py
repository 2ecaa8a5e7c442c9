"""FreeCache: short steps are the network with keys and values of settled tokens as they were, in every kind of model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.overrides import TorchFunctionMode

import ebbtide as ebb
from ebbtide.core.errors import EbbError
from ebbtide.core.state import Query, State
from ebbtide.measure.cost import cost
from ebbtide.network.freecache import SHORT, WHOLE, FreeCache
from ebbtide.network.patch import Rows, settled

SDPA = torch.nn.functional.scaled_dot_product_attention
EVENTS = {"solve": {"name": "threshold", "threshold": 0.6}, "grid": "events"}


def bert(attention="sdpa"):
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=24, attn_implementation=attention,
    )  # fmt: skip
    module = BertForMaskedLM(config)
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return ebb.load(module, mask=19, length=24)


@pytest.fixture(scope="module", params=["shakespeare", "bert"])
def model(request):
    return ebb.load("shakespeare") if request.param == "shakespeare" else bert()


class Calls:
    """A network under the patch, asked again and again with memory between."""

    def __init__(self, model, **knobs):
        self.model, self.mask = model, model.process.mask
        self.net, ((self.patch, self.seen),) = settled(model.denoiser.module, [FreeCache(**knobs)])
        self.memory = {"0": {"mask": torch.full((3,), self.mask + 1)}}

    def __call__(self, mode, x):
        state = State.blank(x, {}, [1, 2, 3])
        rows = Rows([Query(x, torch.ones(len(x)))], state, self.memory).of("0", mode)
        with torch.no_grad(), self.patch.enter(self.seen, rows):
            out = self.net(x).logits
        self.memory = rows.memory
        return out


def text(mask, seed=0, n=20):
    """Three rows, a third of each hidden."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(0, min(mask, 60), (3, n), generator=g)
    return torch.where(torch.rand(3, n, generator=g) < torch.tensor([[0.2], [0.4], [0.6]]), mask, x)


def plain(model, x):
    with torch.no_grad():
        return model.denoiser.module(x).logits


def test_asked_the_same_again_it_says_the_same(model):
    calls = Calls(model)
    x = text(model.process.mask)
    first = calls(WHOLE, x)
    assert torch.equal(first, plain(model, x))
    for _ in range(3):
        assert torch.allclose(calls(SHORT, x), first, rtol=0, atol=1e-4)


def test_a_short_step_is_the_network_with_old_keys_and_values_of_settled_tokens(model):
    """The other way: all tokens are computed, and keys and values of those that are settled are put back."""
    calls, mask = Calls(model), model.process.mask
    x = text(mask)
    calls(WHOLE, x)
    kept = dict(calls.memory["0"]["main|point"])
    y = x.clone()
    y[:, ::3] = torch.where(y[:, ::3] == mask, 5, y[:, ::3])  # some are decided
    mine = calls(SHORT, y)
    fresh = (y == mask) | (y != x)

    class PutBack(TorchFunctionMode):
        layer = 0

        def __torch_function__(self, f, types, args=(), kwargs=None):
            if f is not SDPA:
                return f(*args, **(kwargs or {}))
            q, k, v = args[:3]
            j, self.layer = self.layer, self.layer + 1
            k, v = (
                torch.where(fresh[:, None, :, None], new, kept[f"{j}/{name}"]) for name, new in (("k", k), ("v", v))
            )
            return f(q, k, v, *args[3:], **(kwargs or {}))

    with PutBack():
        other = plain(model, y)
    assert torch.allclose(mine[fresh], other[fresh], rtol=0, atol=1e-4)
    assert not torch.allclose(mine[fresh], plain(model, y)[fresh], rtol=0, atol=1e-3)
    assert torch.equal(calls.memory["0"]["main|point"]["tokens"], y + 1)


def test_a_token_that_is_masked_again_or_replaced_is_computed(model):
    calls, mask = Calls(model), model.process.mask
    x = text(mask)
    calls(WHOLE, x)
    rows = Rows([Query(x, torch.ones(3))], State.blank(x, {}, [1, 2, 3]), calls.memory).of("0", SHORT)
    same = calls.patch.choose(rows)
    y = x.clone()
    shown = (y[0] != mask).nonzero()[:2, 0]
    y[0, shown[0]], y[0, shown[1]] = mask, (y[0, shown[1]] + 1) % mask
    rows = Rows([Query(y, torch.ones(3))], State.blank(x, {}, [1, 2, 3]), calls.memory).of("0", SHORT)
    kept = calls.patch.choose(rows).kept[0]
    assert set(kept[kept < 20].tolist()) == {*(x[0] == mask).nonzero()[:, 0].tolist(), *shown.tolist()}
    assert same.kept.shape[1] == int((x == mask).sum(1).max())
    assert bool((same.kept[0, int((x[0] == mask).sum()) :] == 20).all())


def test_a_window_lets_what_lies_far_to_the_right_wait(model):
    calls, mask = Calls(model, window=4), model.process.mask
    x = torch.full((3, 20), mask)
    x[1, :5] = 1
    calls(WHOLE, x)
    rows = Rows([Query(x, torch.ones(3))], State.blank(x, {}, [1, 2, 3]), calls.memory).of("0", SHORT)
    assert calls.patch.choose(rows).place.tolist() == [[0, 1, 2, 3], [5, 6, 7, 8], [0, 1, 2, 3]]


def test_refreshed_at_every_step_it_is_the_network_as_it_is(model):
    prompt = {"prompt": text(model.process.mask).tolist()}
    runs = [ebb.sample(model, ebb.Plan(network=net, **EVENTS), cond=prompt, n=3)
            for net in ([], [{"name": "freecache", "refresh": 1}])]  # fmt: skip
    assert torch.equal(runs[0].x, runs[1].x)


def test_it_notes_its_steps_and_refreshes_when_told(model):
    x = torch.full((1, 12), model.process.mask)
    plan = ebb.Plan(
        solve={"name": "threshold", "threshold": 2.0}, grid="events", network=[{"name": "freecache", "refresh": 4}]
    )
    noted = [s.info.get("freecache", 0) for s in ebb.run(model, plan, cond={"prompt": x.tolist()})]
    assert noted == [0, 1, 1, 1] * 3


def test_unequal_prompts_of_a_batch_are_what_they_are_alone():
    model = ebb.load("shakespeare")
    prompts = ["ROMEO: ____ love ____.", "The ______ of Rome", "I am ________________ here, my ___"]
    plan = ebb.Plan(network=["freecache"], **EVENTS)
    batch = ebb.sample(model, plan, cond={"prompt": prompts}, n=3)
    alone = [ebb.sample(model, plan, cond={"prompt": p}, n=1) for p in prompts]
    assert [a.text()[0] for a in alone] == batch.text()


def test_it_spares_most_of_the_work_where_most_is_given():
    model = ebb.load("shakespeare")
    line = "What say you now? what comfort have we now? " * 2
    prompt = {"prompt": line[:40] + "______" + line[46:]}
    plan = ebb.Plan(solve={"name": "threshold", "threshold": 2.0}, grid="events")

    def calls(network):
        return ebb.sample(model, plan.replace(network=network), cond=prompt, n=1).calls

    runs = [cost(lambda network=network: calls(network)) for network in ([], ["freecache"])]
    assert runs[0][0] == runs[1][0] == 6
    assert runs[1][1] < 0.4 * runs[0][1]


def test_networks_without_such_layers_are_refused_in_a_sentence():
    with pytest.raises(EbbError, match="masked"):
        ebb.load("digits").loop(ebb.Plan(network=["freecache"]))
    model = ebb.load("shakespeare")
    bare = torch.nn.Sequential(torch.nn.Embedding(66, 8), torch.nn.Linear(8, 66))
    with pytest.raises(EbbError, match="no blocks were found"):
        ebb.sample(replace(model, denoiser=model.denoiser.over(bare)), ebb.Plan(network=["freecache"], **EVENTS))
    with pytest.raises(EbbError, match="attn_implementation='sdpa'"):
        ebb.sample(bert("eager"), ebb.Plan(network=["freecache"], **EVENTS))
