"""Errors of a disk, whichever library meets them, are `OSError`s that name the path."""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cart_qdrant.files import disk_errors
from cart_qdrant.identifiers.item_table import ItemTable
from cart_qdrant.identifiers.trie import Trie


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may get longer than a few bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_trie(path: Path) -> None:
    Trie.build(np.arange(6, dtype=np.int32).reshape(3, 2), 2).save(path)


def write_table(path: Path) -> None:
    keys = np.asarray([b"a" * 16, b"b" * 16], dtype="S16")
    numbers = np.arange(2)
    ItemTable.build(
        keys, numbers.astype(np.int32), numbers.astype(np.uint8), numbers.astype(np.uint64),
        numbers.astype(np.float32),
    ).save(path)  # fmt: skip


def write_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, models

    with disk_errors(path):
        Tokenizer(models.BPE()).save(str(path))


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("write", [write_trie, write_table, write_tokenizer])
def test_a_write_that_fails_is_an_error_with_number_and_path(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    with pytest.raises(OSError, match="part") as caught:
        write(tmp_path / "part")
    assert caught.value.errno == errno.EFBIG


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="os error"), disk_errors(tmp_path):
        raise ValueError("os error without a number")
