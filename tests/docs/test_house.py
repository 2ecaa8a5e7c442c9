"""What the documents say is so: generated pages are up to date, links lead somewhere, code in them runs."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ebbtide import systems
from ebbtide.app import pages
from ebbtide.core.errors import EbbError
from ebbtide.systems import System

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "bench" / "README.md"]


def blocks(path: Path, language: str) -> list[str]:
    """The fenced code of one language in a document."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(encoding="utf-8"), re.M | re.S)


# ---------------------------------------------------------------- generated pages


def test_generated_pages_are_up_to_date() -> None:
    old = [p.relative_to(ROOT).as_posix() for p in pages.stale(ROOT)]
    assert not old, f"run `make catalogue`: {', '.join(old)} no longer say what the source says"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small checkout with a README to fill in."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(f"before\n{pages.BEGIN}\nold\n{pages.END}\nafter\n")
    return tmp_path


def test_pages_are_written_once_and_then_stand(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pages.main(["--check", str(checkout)]) == 1
    assert pages.main([str(checkout)]) == 0
    capsys.readouterr()
    assert pages.main(["--check", str(checkout)]) == 0
    assert pages.main([str(checkout)]) == 0
    assert capsys.readouterr().out == ""


def test_only_what_lies_between_the_markers_of_the_readme_changes(checkout: Path) -> None:
    pages.main([str(checkout)])
    text = (checkout / "README.md").read_text()
    assert text.startswith(f"before\n{pages.BEGIN}")
    assert text.endswith(f"{pages.END}\nafter\n")
    assert "\nold\n" not in text


def test_a_readme_without_markers_is_refused(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkout / "README.md").write_text("nothing\n")
    assert pages.main([str(checkout)]) == 2
    assert "markers" in capsys.readouterr().err
    with pytest.raises(EbbError, match="no checkout"):
        pages.pages(checkout / "docs")


def test_every_system_and_every_part_is_in_the_catalogue() -> None:
    text = pages.pages(ROOT)[ROOT / "docs" / "catalogue.md"]
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    parts = [e for e in pages.registry.entries() if e.cls.__module__.startswith("ebbtide.")]
    assert len(rows) == len(systems.ids()) + len(parts)
    for name in (*systems.ids(), *(e.name for e in parts)):
        assert f"| `{name}` |" in text


def test_cells_cannot_break_a_table() -> None:
    record = System(id="x", family="f", title="A | B", year=2024, claim="one\ntwo", paper="10.1000/1")
    head, rule, row = pages.readme_table([record]).splitlines()
    columns = [len(re.findall(r"(?<!\\)\|", line)) for line in (head, rule, row)]
    assert columns == [4, 4, 4]
    assert "https://doi.org/10.1000/1" in row


# ---------------------------------------------------------------- links and code


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_to_files_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8"))
    missing = [t for t in targets if "://" not in t and not (path.parent / t.split("#")[0]).exists()]
    assert not missing


def test_every_make_target_that_is_named_exists() -> None:
    known = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    texts = [*(p.read_text(encoding="utf-8") for p in DOCUMENTS), (ROOT / ".ci" / "run").read_text()]
    named = {
        word
        for text in texts
        for said in re.findall(r"(?:^ *|`)make ((?:[a-z]+ ?)+)", text, re.M)
        for word in said.split()
    }
    assert {"demo", "test", "lint", "docs"} <= named <= known


@pytest.mark.parametrize("place", range(len(blocks(ROOT / "README.md", "python"))))
def test_the_code_of_the_readme_runs(place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said: dict[str, object] = {}
    exec(compile(blocks(ROOT / "README.md", "python")[place], "README.md", "exec"), said)
    if place == 0:
        import torch

        import ebbtide as ebb

        assert {p.name for p in tmp_path.iterdir()} == {"sevens.png", "sevens.plan.yaml"}
        whole = ebb.sample(said["model"], said["plan"], cond=7, n=16, seed=0)
        assert torch.equal(said["last"].state.x, whole.x)  # type: ignore[attr-defined]


def test_the_picture_was_drawn_by_the_shipped_model() -> None:
    import ebbtide as ebb

    picture = ROOT / "docs" / "assets" / "digits.png"
    run = ebb.Plan.load(picture).run
    assert run is not None
    assert run["digest"] == ebb.load("digits").digest, f"make demo, and copy demo/digits.png to {picture}"


def test_a_request_in_the_examples_is_served_as_if_alone(capsys: pytest.CaptureFixture[str]) -> None:
    gap = runpy.run_path(str(ROOT / "examples" / "requests.py"))["main"]()
    assert gap < 1e-4


def test_the_branches_of_the_examples_part(tmp_path: Path) -> None:
    from PIL import Image

    runpy.run_path(str(ROOT / "examples" / "branches.py"))["main"](str(tmp_path / "b.png"))
    with Image.open(tmp_path / "b.png") as image:
        sheet = image.convert("L")
    side = (sheet.width - 2) // 8
    rows = [
        [sheet.crop((2 + j * side, 2 + i * side, (j + 1) * side, (i + 1) * side)) for j in range(8)] for i in (0, 3)
    ]
    spread = [len({cell.tobytes() for cell in row}) for row in rows]
    assert spread[0] == 8, "copies share their noise"


def test_the_errors_of_the_examples_fall_by_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    errors = runpy.run_path(str(ROOT / "examples" / "own_law.py"))["main"]()
    for solve, at_least in (("euler", 1.7), ("heun", 3.4), ("dpmpp-2m", 3.4)):
        assert errors[solve][-2] / errors[solve][-1] > at_least


# ---------------------------------------------------------------- skeletons

STRANGER = """
import ebbtide as ebb
from ebbtide import systems
from ebbtide.core import registry
import torch

assert "my-clamp" in registry.names("guide"), "not found by its decorator"
plan = ebb.Plan(guide=["my-clamp"])
assert ebb.Plan.from_dict(plan.to_dict()) == plan
try:
    ebb.Plan(guide=[{"name": "my-clamp", "bound": -1.0}])
except ebb.EbbError as error:
    assert "bound" in str(error)
else:
    raise AssertionError("a bound out of range was taken")
report = systems.check("my-system")
assert report.card.passed, report.card
assert not report.control.passed, report.control
"""


@pytest.fixture(scope="module")
def hour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stranger's first hour: two files copied to where docs/adding.md says, nothing else changed."""
    root = tmp_path_factory.mktemp("clone")
    leave = shutil.ignore_patterns("__pycache__", "weights")
    shutil.copytree(ROOT / "src" / "ebbtide", root / "src" / "ebbtide", ignore=leave)
    shutil.copytree(ROOT / "tests" / "contracts", root / "tests" / "contracts", ignore=leave)
    for name in ("pyproject.toml", "tests/conftest.py"):
        shutil.copy(ROOT / name, root / name)
    copies = re.findall(
        r"^ +cp (docs/skeletons/\S+) (src/ebbtide/\S+)$", (ROOT / "docs" / "adding.md").read_text(), re.M
    )
    assert len(copies) == 2
    shown = re.findall(r'^--8<-- "(skeletons/\S+)"$', (ROOT / "docs" / "adding.md").read_text(), re.M)
    assert [f"docs/{name}" for name in shown] == [skeleton for skeleton, _ in copies]
    for skeleton, place in copies:
        shutil.copy(ROOT / skeleton, root / place)
    return root


def in_clone(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A Python process that finds the package of the clone before any installed one."""
    env = {**os.environ, "PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *words], cwd=root, env=env, capture_output=True, text=True, check=False)


def test_copies_of_the_skeletons_are_found_and_hold(hour: Path) -> None:
    done = in_clone(hour, "-c", STRANGER)
    assert done.returncode == 0, done.stderr


def test_a_copied_part_is_under_every_contract_by_its_registration_alone(hour: Path) -> None:
    done = in_clone(hour, "-m", "pytest", "-vv", "-p", "no:cacheprovider", "-k", "my-clamp", "tests/contracts")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    files = set(re.findall(r"test_contract_(\d\d)_\w+\.py::\S*my-clamp\S* PASSED", done.stdout))
    assert {"01", "05", "06", "09", "10", "11", "12"} <= files, f"contracts {sorted(files)} ran"
