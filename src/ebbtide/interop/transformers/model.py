"""A language model that sees both ways as a denoiser: masks in, logits of every token out.

    model = ebb.load("bert-folder")                       or  ebb.load(module, mask=126336, tokenizer=...)
    ebb.sample(model, plan, cond={"prompt": "The capital of France is [MASK]."}, n=4).text()

The process is `masked` over as many tokens as there are logits. Ids for which the tokenizer has no token are ruled out:
such rows fill the vocabulary up to a round number, no text holds them, so their probability under the data is 0, whatever
an untrained row says (`tokenless=True` keeps them). Special tokens stay: a model may mean them, the end of a text above all.

Shapes   x (B, L) int64, units () or (L,); conditions: start and attention_mask (B, L)
Paper    Nie et al. 2025, "LLaDA" (arXiv 2502.09992), section 2; Sahoo et al. 2024 (2406.07524), section 3, for the process;
         Austin et al. 2021 (2107.03006), section 4, for masked language models as denoisers
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ebbtide.core import registry
from ebbtide.core.errors import EbbError
from ebbtide.core.loop import Loop
from ebbtide.core.plan import Plan
from ebbtide.core.tree import Tree
from ebbtide.denoise.model import Model
from ebbtide.denoise.network import Network
from ebbtide.interop.transformers import gemma
from ebbtide.interop.transformers.asking import Asking, Attention, arguments
from ebbtide.interop.transformers.checks import check_sight, longest
from ebbtide.interop.transformers.prompts import Writing

LENGTH = 128


@dataclass(frozen=True, eq=False)
class LanguageModel(Model):
    """What `ebb.load` gives for a language model; `writing` turns prompts into tokens."""

    writing: Writing = field(repr=False, kw_only=True)

    @property
    def prompted(self) -> bool:
        return True

    def condition(self, cond: Any, n: int) -> dict[str, Tree]:
        """The condition of n elements: a prompt, a list of n, or a dict with "prompt", "new_tokens" and leaves of tensors.

        A prompt is a text or token ids; what is given stays, its masks are filled, and one without a mask is continued.
        Without any, the model writes what it likes between the special tokens of an empty text.

        Raises EbbError for prompts that are too long, and lists of another length.
        """
        if cond is None:
            if self.writing.tokenizer is None:
                return {}
            cond = ""
        if not isinstance(cond, Mapping):
            cond = {"prompt": cond}
        if "prompt" not in cond:
            return super().condition(cond, n)
        rest = {k: v for k, v in cond.items() if k not in ("prompt", "new_tokens")}
        for k, v in rest.items():
            if isinstance(v, str):
                raise EbbError(f"{self.name} reads a prompt and no {k!r}: leave it out.")
        return {**self.writing.rows(cond["prompt"], cond.get("new_tokens"), n), **super().condition(rest, n)}

    def forming(self, x: Tree) -> list[str]:
        """Text on its way, an underscore for each token that is hidden."""
        return [self.writing.forming(row) for row in x]

    def loop(self, plan: Plan, cond: Mapping[str, Any] | None = None) -> Loop:
        """The plan bound to this model; a prompt is where it starts: `prior`, which knows none, becomes `given`.

        Raises EbbError where they do not fit, and for another start, which would lose the prompt.
        """
        if "start" in (cond or {}):
            name = next(iter(plan.parts("start"))).entry.name
            if name not in ("prior", "given"):
                raise EbbError(f"start {name!r} knows nothing of a prompt: use start 'given', or leave the prompt out.")
            plan = plan.replace(start="given")
        return super().loop(plan, cond)


def build(
    module: nn.Module | Callable[..., Any],
    tokenizer: Any = None,
    *,
    mask: int | str | None = None,
    pad: int | None = None,
    length: int | None = None,
    units: int = 0,
    shift: bool = False,
    schedule: Literal["linear", "quadratic", "cosine", "geometric"] = "linear",
    attention: Attention | None = None,
    tokenless: bool = False,
    name: str | None = None,
) -> Model:
    """A module that gives logits of every token as a model; it is put in evaluation mode.

    mask       the id that stands for a hidden token, or how the tokenizer writes it; by default the tokenizer's own
    pad        the id that fills rows; by default the tokenizer's or the config's
    length     of a row; by default 128, or as many places as the model has, where they are fewer
    units      1: each token has its own time
    shift      whether the logits at j are those of token j + 1 (Dream)
    schedule   of the masked process
    attention  how the module is told of padding, see `Asking`; by default as its arguments say
    tokenless  whether ids without a token may be drawn

    Raises EbbError for a module that is causal or gives no such logits, and where no mask is known.
    """
    check_sight(module)
    if isinstance(module, nn.Module):
        module.eval()
    if gemma.is_one(module):
        if (mask, pad, length, attention, shift, tokenless) != (None, None, None, None, False, False):
            raise EbbError(f"{type(module).__name__} has no mask and a canvas of its own: leave mask, length, ... out.")
        return gemma.build(module, tokenizer, units=units, schedule=schedule, name=name)
    config = getattr(module, "config", None)
    hidden = _mask(mask, tokenizer, config)
    places = longest(module, tokenizer)
    length = min(LENGTH, places) if length is None else length
    if not 1 <= length <= places:
        raise EbbError(f"length={length} is no row of this model, which has places for 1 to {places} tokens.")
    names, any_name = arguments(module)
    told = attention or ("mask" if "attention_mask" in names else "lengths")  # **kwargs may be heard by nobody
    asking = Asking(None if any_name else names, shift, told)
    vocab = _width(module, asking, hidden, length)
    if hidden > vocab:
        raise EbbError(f"mask={hidden} is no id of this model, whose logits are of 0 to {vocab - 1}.")
    never = None if tokenless else _tokenless(tokenizer, vocab)
    process = registry.make("process", {"name": "masked", "vocab": vocab, "mask": hidden, "schedule": schedule})
    writing = Writing(tokenizer, length, process.states, hidden, _fill(pad, tokenizer, config, hidden))
    return LanguageModel(
        name=name or type(module).__name__,
        denoiser=Network(
            module, process, predicts="logits", clock="time", call=replace(asking, vocab=vocab, never=never)
        ),
        like=torch.zeros(length, dtype=torch.int64),
        units=units,
        medium="text",
        decode=None if tokenizer is None else writing.text,
        writing=writing,
    )


def _mask(mask: int | str | None, tokenizer: Any, config: Any) -> int:
    if isinstance(mask, str):
        known = {} if tokenizer is None else tokenizer.get_vocab()
        if mask not in known:
            raise EbbError(f"mask={mask!r} is no token of this tokenizer: give its id, mask=103, say.")
        return int(known[mask])
    for found in (mask, getattr(tokenizer, "mask_token_id", None), getattr(config, "mask_token_id", None)):
        if found is not None:
            if found < 0:
                raise EbbError(f"mask={found} is no id: ids are 0 or more.")
            return int(found)
    who = "there is no tokenizer" if tokenizer is None else "this tokenizer has no mask token"
    raise EbbError(f"{who}, so nothing says which id stands for a hidden token: give it, mask=ID.")


def _fill(pad: int | None, tokenizer: Any, config: Any, mask: int) -> int:
    """What fills rows: never the mask, which would be something to write."""
    if pad is not None:
        if pad == mask:
            raise EbbError(f"pad={pad} is the mask, which would be filled: give another id, or none.")
        return pad
    first = [getattr(who, "pad_token_id", None) for who in (tokenizer, config)]
    special = [getattr(tokenizer, "eos_token_id", None), *(getattr(tokenizer, "all_special_ids", None) or [])]
    return next(int(k) for k in (*first, *special, 0, 1) if isinstance(k, int) and 0 <= k != mask)


def _width(module: Any, asking: Asking, mask: int, length: int) -> int:
    """How many logits the module gives, by asking it once. Raises EbbError where it cannot be asked."""
    first = next(iter(module.parameters()), None) if isinstance(module, nn.Module) else None
    device = torch.device("cpu") if first is None else first.device
    try:
        with torch.no_grad():
            logits = asking(module, torch.full((1, length), mask), torch.ones(1, device=device), {})
    except EbbError:
        raise
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EbbError(f"{type(module).__name__} cannot be asked for {length} tokens of id {mask}: {why}") from error
    return int(logits.shape[-1])


def _tokenless(tokenizer: Any, vocab: int) -> Tensor | None:
    """The ids for which the tokenizer has no token."""
    if tokenizer is None:
        return None
    gone = torch.ones(vocab, dtype=torch.bool)
    gone[torch.tensor([k for k in tokenizer.get_vocab().values() if k < vocab], dtype=torch.int64)] = False
    return gone.nonzero()[:, 0] if bool(gone.any()) and not bool(gone.all()) else None
