"""Windows of series: scales, what is held out, and what a file must be."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch

from ebbtide.core.errors import EbbError
from ebbtide.zoo.series import Series, SeriesDiT, load_series


def series() -> Series:
    k = torch.arange(200.0)
    return Series(torch.stack([k + 1, -2 * (k + 1), 0 * k + 1e-6 * k + (k == 0) * 8], 1), length=20, context=15)


def test_windows_are_the_series_over_the_mean_size_of_their_context():
    s = series()
    x, none = s.rows(torch.tensor([5, s.starts + 5]))
    raw = torch.arange(6.0, 26.0)
    assert none is None
    assert torch.allclose(x[0, 0], raw / raw[:15].mean())
    assert torch.allclose(x[1, 0], -x[0, 0])  # its own scale, its own sign


def test_a_context_of_nearly_zeros_is_not_blown_up():
    s = series()
    floor = s.values[: s.learnt, 2].abs().mean() / 10
    w = s.windows(torch.tensor([100]), torch.tensor([2]))
    assert torch.allclose(w.scale, floor)


def test_what_is_held_out_is_never_learnt_from():
    s = series()
    learnt = s.values[: s.learnt, 0].max()
    assert len(s) == 3 * s.starts
    last = s.windows(torch.tensor([s.starts - 1]), torch.tensor([0]))
    assert float(last.x.max() * last.scale) <= float(learnt) + 1e-3
    held = s.held(9)
    first = held.column == 0
    assert float((held.x[first] * held.scale[first, None, None]).min()) > float(learnt)
    assert held.column.tolist() == [0, 1, 2] * 3


def test_a_table_is_read_with_or_without_names_and_dates(tmp_path: Path):
    rows = [[float(k), 2.0 * k] for k in range(200)]
    plain, full = tmp_path / "plain.txt.gz", tmp_path / "full.csv"
    with gzip.open(plain, "wt") as f:
        f.write("\n".join(",".join(map(str, r)) for r in rows))
    full.write_text("date,a,b\n" + "\n".join(f"2020-01-01 {k}:00,{r[0]},{r[1]}" for k, r in enumerate(rows)))
    one, two = (load_series(p, 20, 15) for p in (plain, full))
    assert torch.equal(one.values, two.values)
    assert two.names == ("a", "b")
    assert one.digest == two.digest
    (tmp_path / "words.csv").write_text("a,b\nc,d\n")
    with pytest.raises(EbbError, match="no table"):
        load_series(tmp_path / "words.csv")
    with pytest.raises(EbbError, match="cannot be read"):
        load_series(tmp_path / "missing.csv")
    with pytest.raises(EbbError, match="too short"):
        load_series(full, 192, 168)


def test_the_network_tells_places_apart_and_begins_as_nothing():
    from ebbtide.core.key import Noise, keys

    module = SeriesDiT(length=24, patch=6).build(Noise(keys([1]), torch.zeros(1, dtype=torch.int64)))
    x = torch.randn(2, 1, 24, generator=torch.Generator().manual_seed(0))
    assert not module(x, torch.zeros(2)).any()
    with pytest.raises(EbbError, match="divide"):
        SeriesDiT(length=25).build()
