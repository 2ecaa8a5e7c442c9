"""The faults that `python -m tests.faults` plants can still be planted: what each edits stands in its file once."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from tests.faults.__main__ import edited
from tests.faults.planted import FAULTS, Fault

import ebbtide


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.what.replace(" ", "-"))
def test_a_fault_can_be_planted(fault: Fault):
    source = (Path(ebbtide.__file__).parent / fault.file).read_text(encoding="utf-8")
    assert ast.dump(ast.parse(edited(fault, source))) != ast.dump(ast.parse(source))


def test_there_are_faults_of_every_kind():
    assert len(FAULTS) >= 25
    assert {f.kind for f in FAULTS} == {"sign", "index", "time", "memory", "key", "restore", "off"}
    assert len({f.what for f in FAULTS}) == len(FAULTS)
