"""`ebb write`: blanks are filled and the rest stays, its plan repeats it, and it shows tokens as they are decided."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from conftest import interrupt
from ebbtide import zoo
from ebbtide.app import screen
from ebbtide.app.preview import letters
from ebbtide.denoise.network import Network

ROMEO = "ROMEO: ____ love ____."


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fits(text: str, template: str) -> bool:
    """Whether a text is the template with its blanks filled."""
    return (
        len(text) == len(template)
        and all(b in ("_", a) for a, b in zip(text, template, strict=True))
        and "_" not in text
    )


def test_blanks_are_filled_by_a_plan_that_stands_beside_the_text(run: Callable[..., Any]) -> None:
    told = run(f'write shakespeare --prompt "{ROMEO}"')
    assert fits(told.out.rstrip("\n"), ROMEO)
    assert Path("shakespeare-0.txt").read_text() == told.out
    plan = yaml.safe_load(Path("shakespeare-0.plan.yaml").read_text())
    assert plan["run"]["cond"] == {"prompt": ROMEO}
    assert plan["solve"]["name"] == "threshold"
    assert run("write --plan shakespeare-0.plan.yaml -o again.txt -q").out == told.out
    assert run("sample --plan shakespeare-0.plan.yaml -o sampled.txt").out == ""
    assert Path("sampled.txt").read_text() == told.out


def test_prompts_go_on_and_seeds_differ(run: Callable[..., Any]) -> None:
    about = json.loads(run('write shakespeare --prompt "JULIET:" --new 12 -n 2 --json').out)
    assert all(t.startswith("JULIET:") and len(t) <= 19 for t in about["text"])
    assert about["text"][0] != about["text"][1]
    assert about["calls"] <= 24
    Path("lines.txt").write_text("a __ b\nThe ______ of it\n")
    texts = json.loads(run("write shakespeare --prompt @lines.txt --json").out)["text"]
    assert [fits(t, p) for t, p in zip(texts, ("a __ b", "The ______ of it"), strict=True)] == [True, True]


def test_any_plan_or_solver_may_write(run: Callable[..., Any]) -> None:
    line = 'write shakespeare --prompt "O ____!" --json -o'
    for j, more in enumerate(
        (
            "--plan credit-decoding --set solve.threshold=0.7",
            "--solver first-hitting",
            "--solver confidence --steps 2",
            "--plan freecache",
            '--set "network=[freecache]" --set solve.threshold=1.5',
        )
    ):
        about = json.loads(run(f"{line} {j}.txt {more}").out)
        assert fits(about["text"][0], "O ____!"), more
        assert about["calls"] <= 4


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("write", "name a model"),
        ("write toys", "toys"),
        ("write digits", "writes no text"),
        ('write shakespeare --prompt "plain" --new 0', "no blank to fill"),
        (f'write shakespeare --prompt "{"x" * 129}"', "129 tokens"),
        (f'write shakespeare --prompt "{"x" * 120}" --new 20', "asks for 20 more"),
        ('write shakespeare --prompt "a_" --prompt "1_"', "does not write '1'"),
        ('write shakespeare --prompt "a_" -o a.png', "pictures"),
        ('write shakespeare --prompt "a_" --solver heun', "heun"),
        ('write shakespeare --prompt "a_" --set "network=[deepcache]"', "skips"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(refused: Callable[[str, str], None], line: str, word: str) -> None:
    refused(line, word)
    assert not [p for p in Path().iterdir() if p.suffix != ".png"]


def test_a_run_that_is_stopped_goes_on_to_the_same_text(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = 'write shakespeare --prompt "A ____ and a ____ ____." --set solve.threshold=2 -o'
    whole = run(f"{line} whole.txt").out
    calls, answer = [0], Network.__call__

    def counted(self: Any, *args: Any) -> Any:
        calls[0] += 1
        if calls[0] == 5:
            interrupt()
        return answer(self, *args)

    monkeypatch.setattr(Network, "__call__", counted)
    stopped = run(f"{line} part.txt", code=130)
    assert "ebb resume part.state.safetensors" in stopped.err
    monkeypatch.setattr(Network, "__call__", answer)
    run("resume part.state.safetensors")
    assert Path("part.txt").read_text() == whole


def test_tokens_appear_on_a_terminal_as_they_are_decided(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(screen, "stderr", lambda: Console(file=shown, force_terminal=True, width=80, height=20))
    monkeypatch.setattr(screen, "_EVERY", 0.0)
    seen: list[str] = []
    show = screen.Screen.picture
    monkeypatch.setattr(screen.Screen, "picture", lambda self, x: (seen.extend(x), show(self, x))[1])
    final = run(f'write shakespeare --prompt "{ROMEO}" --set solve.threshold=2').out.rstrip("\n")
    assert len(seen) >= 2
    hidden = [t.count("_") for t in seen]
    assert hidden == sorted(hidden, reverse=True)
    assert all(fits(final.ljust(len(t)), t) or t == final for t in seen)
    assert "left" in shown.getvalue()


def test_what_is_new_is_bold_and_what_is_hidden_faint() -> None:
    text = letters(["ab_", "x", "y"], ["a__"], 2)
    assert text.plain == "ab_\nx\n"
    assert [(text.plain[s.start : s.end], str(s.style)) for s in text.spans] == [("b", "bold green"), ("_", "dim")]


def test_a_mask_of_any_tokenizer_is_seen_while_text_forms() -> None:
    model: Any = zoo.load("shakespeare")
    row = model.condition({"prompt": ROMEO}, 1)["start"]
    assert model.forming(row) == [ROMEO]
