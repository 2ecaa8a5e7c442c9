"""How good the shipped models of emoji and of text are: do pictures show what was asked, and how much of a text is guessed?

    python bench/zoo_quality.py --emoji emoji32.npz --text tiny_shakespeare.txt --foreign shakespeare_masked_char_1M.safetensors

    emoji   64 names of the data, evenly over it, 4 samples each: the share whose category the shipped classifier reads,
            one wanted of the nine on average                                                         bar: >= 0.60
    text    the last tenth of the plays in windows of 128 characters, 15, 30 and 50 percent hidden: the share of hidden
            characters named right, over that of a foreign model of a million weights on the same     bar: >= 1

A side whose files are not given is left out. `--model FOLDER` measures a model that does not ship yet.
"""

from __future__ import annotations

import contextlib
import io
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ebbtide as ebb
import figures
from ebbtide.measure import metrics as m
from ebbtide.zoo import categories
from ebbtide.zoo.emoji import load_named
from ebbtide.zoo.text import load_text

NAMES, EACH, WINDOWS = 64, 4, 96
SHARES = (0.15, 0.3, 0.5)
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "shakespeare_masked_char_1M.py"


def chosen(named: Any) -> list[int]:
    """The places of 64 names of known categories, evenly over the data."""
    known = [k for k, group in enumerate(named.groups) if group in categories.CATEGORIES]
    return [known[k * len(known) // NAMES] for k in range(NAMES)]


def emoji(source: str, data: Path, scale: float, steps: int) -> Iterator[figures.Figure]:
    """Pictures of names, read by the classifier."""
    named = load_named(data)
    places = chosen(named)
    prompts = [named.captions[k] for k in places for _ in range(EACH)]
    wanted = {named.captions[k]: categories.CATEGORIES.index(named.groups[k]) for k in places}
    plan = ebb.Plan(solve="dpmpp-2m", grid={"name": "linear", "steps": steps}, guide={"name": "cfg", "scale": scale})
    x = ebb.sample(ebb.load(source), plan, cond=prompts, n=len(prompts), batch=64).x
    assert isinstance(x, Tensor)
    read = m.reads(categories.load(), x.clamp(-1, 1), top=2)
    said = f"guidance {scale:g}, {steps} steps, {len(prompts)} samples"
    for top in (1, 2):
        share = m.prompt_agreement(read[:, :top], prompts, wanted)
        bar = 0.6 / share if share else float("inf")
        yield figures.Figure(
            f"emoji, {0.6:g} / share read right in {top}", bar, 1.0 if top == 1 else None, said=f"{share:.3f}, {said}"
        )


def text(source: str, data: Path, foreign: Path) -> Iterator[figures.Figure]:
    """Hidden characters named right, by both models in the same windows."""
    held = load_text(data, split="test")
    x = held.rows(torch.linspace(0, len(held) - 1, WINDOWS).long())[0]
    mine = ebb.load(source)
    argv, sys.argv = sys.argv, [str(EXAMPLE), str(foreign)]
    with contextlib.redirect_stdout(io.StringIO()):
        other = runpy.run_path(str(EXAMPLE))["model"]
    sys.argv = argv
    ascii_ = torch.tensor([ord(c) for c in held.alphabet])[x]
    for share in SHARES:
        process: Any = mine.process
        ours = m.rate(*m.accuracy(m.asked_of(mine), x, process.mask, share))
        theirs = m.rate(*m.accuracy(m.asked_of(other), ascii_, 0, share))
        yield figures.Figure(
            f"text, foreign / ours, {share:.0%} hidden", theirs / ours, 1.0, said=f"{theirs:.3f} / {ours:.3f}"
        )


def main() -> int:
    """The command line."""
    parser = figures.parser(__doc__)
    parser.add_argument("--emoji", type=Path, default=None, help="emoji32.npz")
    parser.add_argument("--text", type=Path, default=None, help="tiny_shakespeare.txt")
    parser.add_argument("--foreign", type=Path, default=None, help="weights of the foreign model")
    parser.add_argument("--model", default=None, help="a folder in place of the shipped model")
    parser.add_argument("--scale", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: list[figures.Figure] = []
    if given.emoji:
        found += emoji(given.model or "emoji", given.emoji, given.scale, given.steps)
    if given.text and given.foreign:
        found += text(given.model or "shakespeare", given.text, given.foreign)
    return (
        figures.report(f"Shipped models ({figures.versions()})", found, given.json)
        if found
        else parser.error("give --emoji, or --text and --foreign.")
    )


if __name__ == "__main__":
    raise SystemExit(main())
