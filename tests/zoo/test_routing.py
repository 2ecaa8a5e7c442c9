"""Windows of channels by noise level: the table, the blocks that have it, and the files that bring it back."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise, keys
from ebbtide.learn.flow_matching import FlowMatching
from ebbtide.network.patch import shell
from ebbtide.zoo.models import open_model
from ebbtide.zoo.networks import DiT
from ebbtide.zoo.routing import RoutedDiT, routed, windows

SMALL = {"size": 8, "patch": 4, "layers": 2, "heads": 2, "width": 8}


def one() -> Noise:
    return Noise(keys([3]), torch.zeros(1, dtype=torch.int64))


def lively(network: nn.Module) -> nn.Module:
    """The network with every weight drawn: as it begins, its blocks are the identity."""
    with torch.no_grad():
        for k, p in enumerate(network.parameters()):
            p.copy_(one().normal(p[None], k)[0] * 0.2)
    return network


def said(network: nn.Module, clock: Tensor) -> Tensor:
    x = one().normal(torch.zeros(1, 1, 8, 8), 60).expand(len(clock), 1, 8, 8)
    with torch.no_grad():
        out: Tensor = network(x, clock, class_labels=torch.full((len(clock),), 10)).sample
    return out


def test_the_window_slides_from_the_first_channel_to_the_last() -> None:
    table = windows(100, alpha=4.0, beta=0.8, levels=1001)
    assert bool((table.sum(1) == 80).all())
    first = table.double().argmax(1)
    assert bool((table.long().diff(dim=1).abs().sum(1) <= 2).all())  # one run of channels
    assert (first[0], first[-1]) == (0, 20)
    assert bool((first.diff() >= 0).all())
    # at half of the levels (1/2)^4 of the way, 1.25 channels of 20; at 0.9 of them 0.6561, 13.1
    assert (first[500], first[900]) == (1, 13)


def test_windows_need_a_channel() -> None:
    for wrong in ({"beta": 0.0}, {"beta": 1.2}, {"alpha": -1.0}):
        with pytest.raises(EbbError, match="beta in"):
            windows(10, **wrong)
    with pytest.raises(EbbError, match="fits no network of 16"):
        routed(DiT(**SMALL).build(), windows(17))


def test_all_channels_are_the_plain_network() -> None:
    clock = torch.tensor([0.0, 300.0, 1000.0])
    plain = lively(DiT(**SMALL).build())
    open_ = lively(RoutedDiT(**SMALL, beta=1.0).build())
    assert torch.equal(said(plain, clock), said(open_, clock))
    assert not torch.equal(said(plain, clock), said(lively(RoutedDiT(**SMALL, beta=0.5).build()), clock))


def test_a_block_neither_reads_nor_writes_outside_the_window() -> None:
    network = lively(RoutedDiT(**SMALL, beta=0.5).build())
    table, clock = windows(16, beta=0.5), torch.tensor([0.0, 700.4, 1000.0])
    inside = table[torch.tensor([0, 700, 999])][:, None]
    x, other = (one().normal(torch.zeros(1, 4, 16), k).expand(3, 4, 16) for k in (61, 62))
    block = network.transformer_blocks[1]
    labels = torch.zeros(3, dtype=torch.int64)
    with torch.no_grad():
        out = block(x, timestep=clock, class_labels=labels)
        mixed = block(torch.where(inside, x, other), timestep=clock, class_labels=labels)
    assert torch.equal(torch.where(inside, 0.0, out), torch.where(inside, 0.0, x))
    assert bool((out != x)[inside.expand_as(x)].all())
    assert torch.equal(torch.where(inside, out, 0.0), torch.where(inside, mixed, 0.0))


def test_copies_have_blocks_of_their_own() -> None:
    """As training averages and patches copy networks; a copy's masks must lead to the copy's weights."""
    network, clock = lively(RoutedDiT(**SMALL, beta=0.5).build()), torch.tensor([500.0])
    before = said(network, clock)
    twin, over = copy.deepcopy(network), shell(network)
    with torch.no_grad():
        twin.transformer_blocks[0].attn1.to_q.weight.add_(1.0)
        twin.transformer_blocks[0].ff.net[2].weight.mul_(3.0)
    assert torch.equal(said(network, clock), before)
    assert not torch.equal(said(twin, clock), before)
    over.transformer_blocks[0].ff.forward = torch.zeros_like
    assert torch.equal(said(network, clock), before)
    assert not torch.equal(said(over, clock), before)


def test_a_file_brings_the_windows_back(tmp_path: Path) -> None:
    config = RoutedDiT(**SMALL, alpha=2.0, beta=0.5)
    network = lively(config.build())
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(p.half())  # as files hold them
    config.write(network, tmp_path)
    about = {"name": "routed", **config.about(), **FlowMatching().about()}
    (tmp_path / "recipe.json").write_text(json.dumps(about))
    back = open_model(tmp_path, "routed").denoiser.module  # type: ignore[attr-defined]
    clock = torch.tensor([100.0, 800.0])
    assert torch.equal(said(back, clock), said(network, clock))
    assert {k for k, _ in network.named_parameters()} == {k for k, _ in DiT(**SMALL).build().named_parameters()}
