"""Pruning what memorises: the few feed-forward weights that memorised prompts light up are set to zero, once.

    S_ij(p) = |W_ij| ||X_j(p)||          X the layer's input under prompt p in one early step, over tokens and seeds
    found    the `sparsity` largest S_ij of each row i, where also S_ij(p) > S_ij(reference)
    W_ij <- 0   where more than `often` of all (p, step) found it

A record of a run under memorised prompts is enough: the reference is the same states asked about without any prompt.
`located` takes a reference of its own. Only indices are kept; the weights are those of whatever network they are cut from.

Shapes   X (B, tokens, K), W (N, K); zeros {layer: places in W laid flat}
Paper    Chavhan et al. 2024, "Memorized images in diffusion models share a subspace that can be located and deleted"
         (arXiv 2406.18566); the score: Sun et al. 2023, "A simple and effective pruning approach for large language models"
         (2306.11695), section 3
Off      enabled = false is the network itself.
Differs  norms are root mean squares, so that records of unlike size compare. The reference sees the states of the memorised
         run, not those of runs of its own: what differs is then the prompt alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from ebbtide.core.errors import EbbError, nearest
from ebbtide.core.registry import part
from ebbtide.core.tree import Tree, leaves
from ebbtide.network.anatomy import anatomy
from ebbtide.network.patch import rewired
from ebbtide.network.record import Record
from ebbtide.network.rewrite import Rewrite, copied, given

Share = Annotated[float, Field(ge=0, lt=1)]
Zeros = dict[str, list[int]]
Prompt = tuple[float, ...]
Inputs = dict[str, dict[tuple[Prompt, int], Tensor]]  # of a layer: (prompt, step) -> (K,)


@part("network", "wanda-prune", paper="2406.18566", needs={"module"}, off={"enabled": False})
class WandaPrune(Rewrite):
    """Wanda-prune: the feed-forward weights that memorised prompts light up are set to zero, once.

    zeros     the places of each layer, from `ebb.calibrate` with the memorised prompts as the condition
    sparsity  of each row, how many are looked at for one prompt and step
    steps     of a run that are listened to, from the first
    often     in more than this share of prompts and steps a weight must be found; 0 is the union
    """

    examples = (
        {"zeros": {"transformer_blocks.1.ff.net.2": [0, 5, 9, 70, 71, 72], "transformer_blocks.0.ff.net.2": [3]}},
    )

    zeros: Zeros = Field(default_factory=dict)
    sparsity: Annotated[float, Field(gt=0, le=1)] = 0.01
    steps: Annotated[int, Field(ge=1)] = 10
    often: Share = 0.0
    enabled: bool = True

    def __call__(self, network: nn.Module, record: object = None) -> nn.Module:
        if not self.zeros:
            raise EbbError(
                "'wanda-prune' needs places: plan = ebb.calibrate(model, plan, cond=memorised prompts, n=...)."
            )
        return pruned(network, self.zeros)

    def calibrated(self, record: Record) -> WandaPrune:
        """The part with the places that the prompts of a recorded run light up, against no prompt.

        Raises EbbError where the model has no null condition, or nothing is found.
        """
        zeros = located(record, promptless(record), self.sparsity, self.steps, self.often)
        if not zeros:
            raise EbbError("no weight is lit more by these prompts than without: record a run under a condition.")
        return replace(self, zeros=zeros)


def pruned(network: nn.Module, zeros: Zeros) -> nn.Module:
    """A copy of the network with these weights zero. Raises EbbError for layers or places that it lacks."""
    made = copied(network)
    layers = {name: m for name, m in made.named_modules() if isinstance(m, nn.Linear)}
    for name, places in zeros.items():
        if name not in layers:
            raise EbbError(f"'wanda-prune' knows no layer {name!r} of this network; {nearest(name, layers)}")
        weight = layers[name].weight.detach()
        if places and not 0 <= min(places) <= max(places) < weight.numel():
            raise EbbError(f"layer {name!r} has {weight.numel()} weights and none at {max(places)}: calibrate anew.")
        cut = weight.flatten().index_fill(0, torch.tensor(places, dtype=torch.int64, device=weight.device), 0)
        given(layers[name], weight=cut.reshape(weight.shape))
    return made


def located(memorised: Record, reference: Record, sparsity: float = 0.01, steps: int = 10, often: float = 0.0) -> Zeros:
    """The places of weights that the prompts of one record light up and those of the other do not.

    Of each prompt and step of `memorised`, against all rows of `reference` in that step. Raises EbbError where no step is
    in both.
    """
    layers, zeros = layers_of(memorised.network), Zeros()
    lit, plain = inputs(memorised, steps, prompts_of), inputs(reference, steps, lambda cond, n: [()] * n)
    for name, layer in layers.items():
        weight = layer.weight.detach().abs().float()
        found = [
            among(weight, norm, plain[name][(), step], sparsity)
            for (_, step), norm in lit[name].items()
            if ((), step) in plain[name]
        ]
        if not found:
            raise EbbError("the two records share no step: record both with one plan.")
        places = (torch.stack(found).float().mean(0) > often).flatten().nonzero()[:, 0]
        if len(places):
            zeros[name] = places.tolist()
    return zeros


def among(weight: Tensor, lit: Tensor, plain: Tensor, sparsity: float) -> Tensor:
    """Which of |W| (N, K) are among the greatest of their row under norms `lit` (K,), and greater than under `plain`."""
    count = max(1, round(sparsity * weight.shape[1]))
    scores = weight * lit
    top = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.topk(count, dim=1).indices, True)
    return top & (scores > weight * plain)


def overlap(one: Zeros, other: Zeros) -> float:
    """The Jaccard index of two sets of places."""
    a, b = ({(name, p) for name, places in z.items() for p in places} for z in (one, other))
    return len(a & b) / max(1, len(a | b))


def layers_of(network: nn.Module) -> dict[str, nn.Linear]:
    """The last linear layer of every feed-forward, named."""
    sites = anatomy(network).need("feed_forward").feed_forward
    return dict(found[-1] for s in sites if (found := list(s.linears())))


def promptless(record: Record) -> Record:
    """The same states asked about under the null condition. Raises EbbError where the model has none."""

    def null(name: str, leaf: Tensor) -> Tensor:
        made: Tensor | None = record.denoiser.null(name, leaf)
        return leaf if made is None else made

    asked = [a._replace(cond={k: null(k, v) for k, v in a.cond.items()}) for a in record.asked]
    return replace(record, asked=asked)


def prompts_of(cond: dict[str, Tree], n: int) -> list[Prompt]:
    """What each of n rows is asked under, as numbers: equal ones for equal conditions."""
    flat = [v.reshape(n, -1).double().cpu() for v in leaves(cond).values()]
    return [tuple(row) for row in torch.cat([torch.zeros(n, 0), *flat], 1).tolist()]


def inputs(record: Record, steps: int, group: Callable[[dict[str, Tree], int], list[Prompt]]) -> Inputs:
    """The root mean square of what each layer is given, over tokens and the rows of a prompt, in every early step."""
    network, early = record.network, [a for a in record.asked if a.step < steps]
    sums: dict[str, dict[tuple[Prompt, int], tuple[Tensor, int]]] = {}
    rows: list[Prompt] = []
    step = 0
    with ExitStack() as stack:
        for name, layer in layers_of(network).items():
            kept = sums.setdefault(name, {})

            def forward(x: Tensor, own=layer.forward, kept=kept) -> Tensor:  # type: ignore[no-untyped-def]
                square = x.detach().float().square().reshape(len(rows), -1, x.shape[-1]).mean(1)
                for prompt in dict.fromkeys(rows):
                    mine = square[[k for k, p in enumerate(rows) if p == prompt]]
                    total, count = kept.get((prompt, step), (0, 0))
                    kept[prompt, step] = (total + mine.sum(0), count + len(mine))
                answer: Tensor = own(x)
                return answer

            stack.enter_context(rewired(layer, forward))
        answers = replace(record, asked=early).answers(network, {})
        for asked in early:
            rows, step = group(asked.cond, len(asked.t)), asked.step
            next(answers)
    return {name: {k: (total / n).sqrt() for k, (total, n) in kept.items()} for name, kept in sums.items()}
