"""Mapped arrays: those that were saved, without a copy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cart_qdrant.arrays.mmap import map_arrays
from cart_qdrant.errors import MismatchError
from cart_qdrant.files import save_arrays

ARRAYS = {
    "codes": np.arange(5, dtype=np.uint8),
    "wide": np.arange(7, dtype=np.uint16),
    "first": np.asarray([2**31 - 1, -1], dtype=np.int32),
    "x_ND": np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4),
    "mean": np.asarray([np.pi]),
    "none": np.empty((0, 3), dtype=np.float32),
}


def test_what_was_saved_is_there(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_arrays(path, ARRAYS)
    found = map_arrays(path)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype and found[name].flags.aligned
        assert not found[name].flags.owndata and not found[name].flags.writeable


def test_arrays_outlive_the_name_of_their_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_arrays(path, ARRAYS)
    found = map_arrays(path)
    save_arrays(path, {"codes": np.zeros(99, np.uint8)})  # the next version, by a rename
    path.unlink()
    np.testing.assert_array_equal(found["x_ND"], ARRAYS["x_ND"])


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_arrays(path, ARRAYS)
    whole = path.read_bytes()
    wrong = whole.replace(b'"F64"', b'"C64"')
    for data in (b"", b"12345678", b"[]" * 40, b"\2" + bytes(7) + b"[]", whole[:-1], wrong):
        path.write_bytes(data)
        with pytest.raises(MismatchError, match="not readable"):
            map_arrays(path)
