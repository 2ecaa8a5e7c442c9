"""`ebb check`: outcomes, exit codes, and a table that is gone on with."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ebbtide import systems

Run = Callable[..., Any]

CARD = '''"""A toy: {id}."""
from pathlib import Path
from ebbtide.core.errors import EbbError
from ebbtide.systems import Bench, Card, System

SYSTEM = System(id="{id}", family="toys", title="T {id}", year=2020, claim="c")


def card(bench: Bench) -> Card:
    with open(Path(__file__).with_suffix(".runs"), "a") as file:
        file.write("x")
    {body}
'''
HOLDS = 'bench.check("a|b", bench.fault(1.0, 3.0), at_most=2, published="1.1")\n    return bench.card("as it should")'
FAILS = 'bench.check("figure", 3.0, at_most=2)\n    return bench.card()'
VAIN = 'bench.check("figure", 1.0, at_most=2)\n    return bench.card()'
BROKEN = 'raise EbbError("this needs\\nthe moon.")'


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Write a family of systems where the package looks for them."""
    root = tmp_path / "systems"
    (root / "toys").mkdir(parents=True)
    (root / "toys" / "__init__.py").touch()
    monkeypatch.setattr(systems, "_ROOT", root)
    monkeypatch.setattr(systems, "__path__", [str(root)])
    monkeypatch.chdir(tmp_path)

    def write(**bodies: str) -> Path:
        for name, body in bodies.items():
            (root / "toys" / f"{name}.py").write_text(CARD.format(id=name, body=body))
        systems._files.cache_clear()
        return root / "toys"

    yield write
    systems._files.cache_clear()
    import sys

    for name in [m for m in sys.modules if m.startswith("ebbtide.systems.toys")]:
        del sys.modules[name]


def runs(folder: Path) -> dict[str, int]:
    return {p.stem: len(p.read_text()) for p in folder.glob("*.runs")}


def test_outcomes_and_exit_codes(toys: Callable[..., Path], run: Run) -> None:
    toys(good=HOLDS, bad=FAILS, vain=VAIN, broken=BROKEN)
    told = run("check good").out
    for word in ("holds", "a|b", "1.1", "<= 2", "3", "as it should"):
        assert word in told
    assert "fails" in run("check bad", code=1).out
    assert "without the mechanism" in run("check vain", code=1).out
    assert "broken: cannot run: this needs the moon." in run("check broken", code=2).err
    assert "did you mean good" in run("check godo", code=2).err
    assert "say what to check" in run("check", code=2).err
    assert "say what to check" in run("check good --all", code=2).err
    assert "known: toys" in run("check --family games", code=2).err


def test_a_failure_outweighs_what_cannot_run(toys: Callable[..., Path], run: Run) -> None:
    toys(good=HOLDS, broken=BROKEN)
    run("check --family toys", code=2)
    toys(bad=FAILS)
    run("check --all", code=1)


def test_json(toys: Callable[..., Path], run: Run) -> None:
    toys(good=HOLDS, bad=FAILS)
    rows = {r["id"]: r for r in json.loads(run("check --all --json", code=1).out)}
    assert (rows["good"]["passed"], rows["bad"]["passed"]) == (True, False)
    assert (rows["good"]["card_passed"], rows["good"]["control_passed"]) == (True, False)
    check = rows["good"]["checks"][0]
    assert (check["figure"], check["control"], check["bounds"]) == (1.0, 3.0, "<= 2")


def test_the_table_goes_on_where_it_stopped(toys: Callable[..., Path], run: Run) -> None:
    folder = toys(a=HOLDS, b=FAILS, c="raise KeyboardInterrupt", d=HOLDS)
    run("check --all -o docs/cards.md", code=130)
    table = Path("docs/cards.md").read_text()
    assert "| a | holds | a\\|b | 1 | 1.1 | <= 2 | 3 |" in table
    assert "| b | fails |" in table
    assert "| c |" not in table
    assert datetime.date.today().isoformat() in table
    assert [p.name for p in Path("docs").iterdir()] == ["cards.md"]

    toys(c=BROKEN, b=HOLDS)
    import sys

    sys.modules.pop("ebbtide.systems.toys.b")
    sys.modules.pop("ebbtide.systems.toys.c", None)
    run("check --all -o docs/cards.md", code=2)
    assert runs(folder)["a"] == 2  # as it is and as a control, once each: it was not run again
    table = Path("docs/cards.md").read_text()
    assert [line.split(" | ")[1] for line in table.splitlines() if line[:4] in ("| a ", "| b ", "| c ", "| d ")] == [
        "holds",
        "holds",
        "cannot run",
        "holds",
    ]
    run("check --all -o docs/cards.md --overwrite", code=2)
    assert runs(folder)["a"] == 4


def test_other_files_are_not_overwritten(toys: Callable[..., Path], run: Run) -> None:
    toys(a=HOLDS)
    Path("notes.md").write_text("# Mine\n")
    assert "no table of cards" in run("check --all -o notes.md", code=2).err
    assert Path("notes.md").read_text() == "# Mine\n"
