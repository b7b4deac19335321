"""Rows in memory or in a file: the same to whoever reads them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cart_qdrant.arrays import spill
from cart_qdrant.arrays.spill import SpillBuffer
from cart_qdrant.errors import StoreError


@given(st.lists(st.integers(0, 5), max_size=5), st.integers(0, 80))
def test_rows_come_back_in_order(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], limit: int
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    written, kept = SpillBuffer(3, folder / "work"), SpillBuffer(3)
    x = np.arange(3 * sum(sizes), dtype=np.float32).reshape(-1, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spill, "IN_MEMORY", limit)
        begin = 0
        for size in sizes:
            for one in (written, kept):
                one.add(x[begin : begin + size])
            begin += size
        found = written.array()
    np.testing.assert_array_equal(found, x)
    np.testing.assert_array_equal(kept.array(), x)
    assert found.dtype == np.float32 and type(found) is np.ndarray
    assert found.flags.writeable == (x.nbytes <= limit)  # in memory or not
    assert not [p for p in folder.rglob("*") if p.is_file()]  # it has no name


def test_a_file_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill, "IN_MEMORY", 0)
    (tmp_path / "work").write_text("a file where the folder should be")
    with pytest.raises(StoreError, match="GB of vectors do not fit into"):
        SpillBuffer(2, tmp_path / "work").add(np.ones((1, 2), np.float32))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "IN_MEMORY", 0)
    full = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: full)
    with full, pytest.raises(StoreError, match="No space left"):
        SpillBuffer(2, tmp_path).add(np.ones((1, 2), np.float32))
