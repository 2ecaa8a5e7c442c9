"""SAFREE: words that lean towards a forbidden concept are turned away from it, for as many steps as the prompt is about it.

    P_c = E (E^T E)^+ E^T        E (D, K) the pooled embeddings of K phrases that say the concept
    r_i = |(I - P_c) p_i|        p_i the prompt with word i left out, pooled;  P_in projects onto their span
    word i triggers where r_i > (1 + alpha) mean_{j != i} r_j        without it, the rest is farther from the concept
    e_i <- (I - P_c) P_in e_i    of words that trigger; the others stay
    beta = 1 - mean_i cos(e_i, (I - P_c) P_in e_i)
    steps that are changed, from the first: round(most sigmoid(2 sharpness (10 beta - middle)))

Weights never change. A prompt that is not about the concept has a small beta, so no step of it is changed.

Shapes   words (B, L) int64, e (B, L, D) float64 inside; concept: K phrases of word ids, at most L each
Paper    Yoon et al. 2024, "SAFREE: Training-free and adaptive guard for safe text-to-image and video generation" (arXiv
         2410.12761), sections 3.1 to 3.3
Source   jaehong31/SAFREE, for the constants
Off      enabled = false
Differs  phrases are pooled as the mean of their words' embeddings, as this encoder has no pooled answer. A prompt of one word
         has no others to stand out from: the word triggers, and beta decides. `spread` also turns the fillers behind
         a prompt that has triggers: an encoder without a mask keeps there what the words said. No re-attention of skip
         connections, which transformers lack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from ebbtide.core.errors import EbbError
from ebbtide.core.registry import part
from ebbtide.network.anatomy import Site, anatomy
from ebbtide.network.patch import Patch, Rows, rewired


class Turned(NamedTuple):
    """What becomes of prompts: embeddings (B, L, D), how far all words turn (B,), which trigger (B, L)."""

    embeddings: Tensor
    beta: Tensor
    triggers: Tensor


@part("network", "safree", paper="2410.12761", needs={"module"}, refuses={"gradients"}, off={"enabled": False})
class Safree(Patch):
    """SAFREE: words that lean towards a forbidden concept are turned away from it, for the first steps.

    concept    phrases that say it, as word ids: see `phrases`
    alpha      how far r_i must stand out
    most       steps that are changed at most
    middle, sharpness   at 10 beta = middle, half of them
    spread     whether fillers are turned where some word is
    adaptive   false changes `most` steps of every prompt that has a trigger
    pad        the id of fillers
    """

    examples = ({"concept": [[1, 2]], "middle": 0.0, "alpha": 0.0},)

    concept: list[list[int]]
    alpha: Annotated[float, Field(ge=0)] = 0.01
    most: Annotated[int, Field(ge=1)] = 10
    middle: float = 5.333
    sharpness: Annotated[float, Field(gt=0)] = 2.5
    spread: bool = True
    adaptive: bool = True
    pad: int = 0
    enabled: bool = True

    def look(self, network: nn.Module) -> Site:
        readers = anatomy(network).readers
        if len(readers) != 1:
            raise EbbError(f"'safree' needs one text encoder inside the network, and this one has {len(readers)}.")
        if not self.concept or not all(self.concept):
            raise EbbError(
                "'safree' needs a concept: phrases of word ids, as network.safree.phrases(model, [...]) gives."
            )
        return readers[0]

    def claims(self, seen: Site) -> Iterable[nn.Module]:
        return (seen.module,)

    @contextmanager
    def enter(self, seen: Site, rows: Rows) -> Iterator[None]:
        own = seen.module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            out = own(*args, **kwargs)
            early = rows.i < self.most
            if not bool(early.any()):
                return out
            words, given = seen.hidden.taken(args, kwargs), seen.hidden.given(out)

            def read(ids: Tensor) -> Tensor:
                found: Tensor = seen.hidden.given(own(**{seen.hidden.name: ids}))
                return found.double()

            turned = self.turn(read, words, given.double())
            rows.note()  # also of a prompt that is looked at and let pass
            changed = (rows.i < self.until(turned)).to(given.device)
            if not bool(changed.any()):
                return out
            return seen.hidden.answered(out, torch.where(changed[:, None, None], turned.embeddings.to(given), given))

        with rewired(seen.module, forward):
            yield

    def until(self, turned: Turned) -> Tensor:
        """The steps of each prompt that are changed, (B,)."""
        most = torch.where(turned.triggers.any(1), float(self.most), 0.0)
        if self.adaptive:
            most = most / (1 + (-2 * self.sharpness * (10 * turned.beta - self.middle)).exp())
        return most.round().cpu()

    def turn(self, read: Callable[[Tensor], Tensor], words: Tensor, given: Tensor) -> Turned:
        """Prompts words (B, L) whose embeddings are `given` (B, L, D), turned away; `read` embeds others of that length."""
        length, said = words.shape[1], words != self.pad
        phrases = words.new_full((len(self.concept), length), self.pad)
        for k, phrase in enumerate(self.concept):
            phrases[k, : len(phrase)] = phrases.new_tensor(phrase[:length])
        away = torch.eye(given.shape[-1]).to(given) - projection(pooled(read(phrases), phrases != self.pad).T)
        without = []
        for i in range(length):
            left = words.clone()
            left[:, i] = self.pad
            without.append(pooled(read(left), left != self.pad))
        n = said.sum(1, keepdim=True)
        p = torch.where(n[..., None] == 1, pooled(given, said)[:, None], torch.stack(without, 1))
        p = p * said[..., None]  # of fillers none, which adds nothing to a span
        r = (p @ away).norm(dim=-1)
        others = (r.sum(1, keepdim=True) - r) / (n - 1).clamp_min(1)
        triggers = said & ((r > (1 + self.alpha) * others) | (n == 1))
        new = given @ projection(p.mT) @ away
        cosine = nn.functional.cosine_similarity(new, given, dim=-1)
        beta = 1 - (cosine * said).sum(1) / n[:, 0].clamp_min(1)
        touched = triggers | (~said & triggers.any(1, keepdim=True)) if self.spread else triggers
        return Turned(torch.where(touched[..., None], new, given), beta, triggers)


def pooled(embeddings: Tensor, said: Tensor) -> Tensor:
    """The mean embedding of the words of each prompt, (B, D); of all places where there are none."""
    weights = torch.where(said.any(1, keepdim=True), said, torch.ones_like(said)).to(embeddings)
    return (embeddings * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)


def projection(e: Tensor) -> Tensor:
    """The projection onto the span of the columns of e (..., D, K), (..., D, D)."""
    return e @ torch.linalg.pinv(e, rtol=1e-8)


def phrases(model: Any, said: Iterable[str]) -> list[list[int]]:
    """Phrases as word ids of a prompted model, for the parameter `concept`.

    Raises EbbError for a model that is not asked in words, and for a phrase of which it knows no word.
    """
    if not getattr(model, "prompted", False):
        raise EbbError(f"{model.name} is not asked in words; give `concept` as ids.")
    return [[int(k) for k in model.read(p) if k] for p in said]
