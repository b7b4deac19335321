"""A training that ended while it wrote a checkpoint is completed by the same command."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from cart_qdrant.index.index import Index
from cart_qdrant.search.retriever import Retriever
from cart_qdrant.training import generator_fit, tower
from cart_qdrant.training.train import train
from tests.conftest import copy_of, short_training


@pytest.mark.parametrize(
    ("module", "name"),
    [(tower, "tower-best"), (tower, "tower"), (generator_fit, "generator")],
    ids=["best epoch", "query tower", "generator"],
)
def test_a_full_disk_at_a_checkpoint(
    small_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    root = copy_of(small_index, tmp_path / ".cartq")
    real = module.save_checkpoint

    def full(path: Path, *rest: Any) -> None:
        if path.stem == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, *rest)

    with Index.open(root) as index, index.folder.lock():
        with monkeypatch.context() as patch:
            patch.setattr(module, "save_checkpoint", full)
            with pytest.raises(OSError, match="No space left"):
                train(index, short_training())
        report = train(index, short_training())
        assert report.items > 10
    with Retriever.open(root) as retriever:
        assert retriever.search("a cat", k=3).hits
