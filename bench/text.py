"""Text decoded several tokens at a time: calls at equal perplexity, and batches of unequal prompts.

    python bench/text.py [calls] [batch] [--n 64] [--seed 0] [--turns 5] [--json]

calls   texts of 48 characters by the shipped masked model, one token a call against four: calls of the former over
        those of the latter, upside down as a bar is the most that a figure may be, and perplexity under the shipped causal
        model, the latter's over the former's; both draw their tokens                            bars 1 / 4, 1.02
        One token a call is meant twice: in an order drawn by lot, which has the law of the model (`first-hitting`), and the
        surest first (`threshold` above 1), which writes what is likelier than what it was taught. Beside perplexity stand the
        entropy of the characters of a text, in nats, and the share of 5-grams that differ: who repeats himself is likely too.
batch   eight prompts with 4 to 32 blanks, and eight with 4 to 12, by thresholds: the time of all in
        one batch over that of one after another, the runs taking turns; tokens must be equal     bar 1 / 2.5
        A text that ended is not computed any more, so no batch is faster than its longest text alone: that time over the
        time of one after another, and a call of eight rows over a call of one, say what the machine leaves to win.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

import ebbtide as ebb
import figures
from ebbtide.measure.text import distinct, entropy, nll, perplexity
from ebbtide.samples import Samples
from ebbtide.zoo.language import judge

LENGTH = 48
# By lot and cooler: on 64 texts it keeps the perplexity of one token a call by lot, not the entropy.
FAST: dict[str, Any] = {"name": "confidence", "rule": "random", "temperature": 0.7}
FEW = {"name": "cosine", "steps": LENGTH // 4}
SLOW: dict[str, dict[str, Any]] = {
    "by lot": {"name": "first-hitting"},
    "surest first": {"name": "threshold", "threshold": 2.0, "temperature": 0.8},
}
WIDE = (
    "ROMEO: ____ love",
    "The king is ______ here.",
    "What say you, ________?",
    "O, __________ night!",
    "My lord, the ____________ is come",
    "JULIET: ________________!",
    "I pray you, ____________________",
    "And so ________________________________.",
)
NEAR = (
    "ROMEO: ____ love",
    "The king is _____.",
    "What say ______?",
    "O, _______ night!",
    "My lord ________",
    "JULIET: _________!",
    "I pray __________",
    "And so ____________.",
)


def calls(n: int, seed: int) -> Iterator[figures.Figure]:
    """Calls and perplexity against one token a call."""
    model, causal = ebb.load("shakespeare"), judge("shakespeare-causal")

    def run(solve: dict[str, Any], grid: Any = "events") -> tuple[Samples, float, str]:
        cond = {"prompt": "\n", "new_tokens": LENGTH}
        out = ebb.sample(model, ebb.Plan(solve=solve, grid=grid), cond=cond, n=n, seed=seed)
        x = out.x[:, : LENGTH + 1]
        return (
            out,
            perplexity(*nll(causal, x, start=causal.start)),
            f"{entropy(x):.3f} nats, {distinct(x, 5):.2f} differ",
        )

    fast, mine, spread = run(FAST, FEW)
    for name, solve in SLOW.items():
        slow, theirs, wide = run(solve)
        said = f"{fast.calls / n:.1f} / {slow.calls / n:.1f} calls a text"
        yield figures.Figure(f"calls, {name}", fast.calls / slow.calls, 1 / 4, said=said)
        said = f"{mine:.2f} ({spread}) / {theirs:.2f} ({wide})"
        yield figures.Figure(f"perplexity, {name}", mine / theirs, 1.02, said=said)


def batch(prompts: tuple[str, ...], turns: int) -> Iterator[figures.Figure]:
    """Time of a batch over that of its prompts one after another."""
    model: Any = ebb.load("shakespeare")
    plan = ebb.Plan(solve={"name": "threshold", "threshold": 0.9}, grid="events")
    texts: dict[str, list[str]] = {}

    def together() -> None:
        texts["together"] = ebb.sample(model, plan, cond={"prompt": list(prompts)}, n=len(prompts)).text()

    def alone() -> None:
        texts["alone"] = [ebb.sample(model, plan, cond={"prompt": p}, n=1).text()[0] for p in prompts]

    def longest() -> None:
        ebb.sample(model, plan, cond={"prompt": max(prompts, key=lambda p: p.count("_"))}, n=1)

    def call(rows: int) -> Callable[[], object]:
        x = torch.full((rows, max(map(len, prompts))), model.process.mask)
        return lambda: model.denoiser(x, torch.ones(rows, dtype=torch.float64), {})

    runs = {
        "together": together,
        "alone": alone,
        "longest": longest,
        "one row": call(1),
        "all rows": call(len(prompts)),
    }
    with torch.no_grad():
        taken = figures.interleaved(runs, turns, each=1)
    assert texts["together"] == texts["alone"], "a text of the batch differs from the same alone"
    blanks = [p.count("_") for p in prompts]
    name = f"batch of 8, {min(blanks)} to {max(blanks)} blanks"
    for what, over, under, bar in (
        (name, "together", "alone", 1 / 2.5),
        (f"{name}: the longest alone", "longest", "alone", None),
        (f"{name}: a call of all rows", "all rows", "one row", None),
    ):
        said = f"{1e3 * taken[over]:.1f} / {1e3 * taken[under]:.1f} ms"
        yield figures.Figure(what, taken[over] / taken[under], bar, said=said)


def main() -> int:
    """The command line."""
    parser = figures.parser(__doc__)
    parser.add_argument("sections", nargs="*", help="all by default")
    parser.add_argument("--n", type=int, default=64, help="texts")
    parser.add_argument("--seed", type=int, default=0, help="of the first text")
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: list[figures.Figure] = []
    if not given.sections or "calls" in given.sections:
        found += calls(given.n, given.seed)
    if not given.sections or "batch" in given.sections:
        for prompts in (WIDE, NEAR):
            found += batch(prompts, given.turns)
    return figures.report(f"Text, several tokens at a time ({figures.versions()})", found, given.json)


if __name__ == "__main__":
    raise SystemExit(main())
