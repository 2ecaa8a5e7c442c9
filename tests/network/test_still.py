"""What stands still is computed once, answers as it did, and is computed again where anything changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ebbtide.network.still import still


class Counted(nn.Linear):
    """A layer that counts how often it is asked, and passes for one of torch's own."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        Counted.calls += 1
        return super().forward(x)


Counted.__module__ = "torch.counted"


class FluxTransformer2DModel(nn.Module):
    """A network of a known name: the time is added to the text, which is embedded."""

    def __init__(self) -> None:
        super().__init__()
        self.context_embedder = Counted(3, 3)

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return x + t + self.context_embedder(text)


@pytest.fixture
def network() -> Iterator[Any]:
    Counted.calls = 0
    with torch.no_grad():
        yield FluxTransformer2DModel().eval()


X, T, TEXT = torch.zeros(2, 3), torch.ones(2, 1), torch.arange(6.0).reshape(2, 3)


def test_asked_once(network: Any) -> None:
    run = still(network)
    said = [run(X, T * k, TEXT) for k in range(4)]
    assert Counted.calls == 1
    assert all(torch.equal(v, network(X, T * k, TEXT)) for k, v in enumerate(said))


def test_equal_numbers_are_the_same_and_others_are_not(network: Any) -> None:
    run = still(network)
    for text in (TEXT, TEXT.clone(), TEXT + 1, TEXT):
        assert torch.equal(run(X, T, text), network(X, T, text))
    assert Counted.calls == 4 + 3


@pytest.mark.parametrize("what", ["weights", "input", "answer"])
def test_what_was_written_to_is_asked_again(network: Any, what: str) -> None:
    run, text = still(network), TEXT.clone()
    run(X, T, text)
    written = {"weights": network.context_embedder.weight, "input": text, "answer": run.context_embedder(text)}
    written[what].mul_(2)
    assert torch.equal(run(X, T, text), network(X, T, text))


@pytest.mark.parametrize("why", ["hook", "training", "adapter", "own forward"])
def test_what_may_answer_otherwise_is_asked_every_time(network: Any, why: str) -> None:
    site = network.context_embedder
    if why == "hook":
        site.register_forward_hook(lambda module, given, out: out + torch.rand(1))
    elif why == "training":
        site.train()
    elif why == "adapter":
        network.context_embedder = nn.Sequential(site, type("Lora", (nn.Identity,), {"__module__": "peft"})()).eval()
    else:
        site.forward = lambda x: nn.Linear.forward(site, x)
    assert still(network) is network


def test_the_network_is_as_it_was(network: Any) -> None:
    """Nothing is left on it, a second run has a memory of its own, and the names are the same."""
    before = dict(network.__dict__), dict(network.context_embedder.__dict__)
    one, two = still(network), still(network)
    one(X, T, TEXT)
    two(X, T, TEXT)
    assert Counted.calls == 2
    assert (network.__dict__, network.context_embedder.__dict__) == before
    assert list(one.state_dict()) == list(network.state_dict())
    assert all(a is b for a, b in zip(one.parameters(), network.parameters(), strict=True))


def test_with_gradients_nothing_is_kept(network: Any) -> None:
    run, text = still(network), TEXT.clone().requires_grad_()
    with torch.enable_grad():
        for _ in range(2):
            (grad,) = torch.autograd.grad(run(X, T, text).sum(), text)
            assert grad.abs().sum() > 0
    assert Counted.calls == 2
