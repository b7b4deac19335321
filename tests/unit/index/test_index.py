"""An open index: what it is bound to, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cart_qdrant.errors import IndexMissingError, MismatchError
from cart_qdrant.index.collection import identifier_fields
from cart_qdrant.index.index import Index
from cart_qdrant.storage.protocol import CAPTION, MEDIA
from tests.conftest import PatchEmbedder

Open = Callable[..., Index]


class _Fitted(PatchEmbedder):
    """An embedder with statistics."""

    raw_dim = PatchEmbedder.dim

    def __init__(self) -> None:
        super().__init__()
        self.mean: Any = None

    features = PatchEmbedder.embed_media

    def project(self, x_BR: Any, space: str) -> Any:
        return x_BR

    def fit(self, features: Any) -> None:
        self.mean = np.concatenate(list(features.values())).mean(axis=0)

    def to_arrays(self) -> dict[str, Any]:
        return {"mean": self.mean}

    def load_arrays(self, arrays: Any) -> None:
        self.mean = arrays["mean"]


def test_made_index_opens_with_what_it_is_bound_to(tmp_path: Path, open_index: Open) -> None:
    made = open_index(tmp_path / ".cartq")
    made.close()
    again = open_index(tmp_path / ".cartq")
    assert again.manifest == made.manifest
    info = again.manifest.embedder
    assert (info.name, info.version, info.dim) == ("patch", "1", 48)
    assert again.space("audio") == "audio" and again.space("smell") is None
    assert again.store.count() == 0


def test_no_index(tmp_path: Path) -> None:
    with pytest.raises(IndexMissingError, match="cartq ingest"):
        Index.open(tmp_path / ".cartq")
    assert not (tmp_path / ".cartq").exists(), "looking for an index must not make one"


def test_lost_points(tmp_path: Path, open_index: Open) -> None:
    open_index(tmp_path / ".cartq").close()
    (tmp_path / ".cartq" / "store").rename(tmp_path / "elsewhere")
    with pytest.raises(IndexMissingError, match="no longer at") as lost:
        Index.open(tmp_path / ".cartq")
    assert f"delete {tmp_path / '.cartq'} and ingest" in lost.value.remedy


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"embedder": "lite"}, "'patch', not 'lite'"),
        ({"url": "http://localhost:6333"}, "embedded store, not at"),
    ],
)
def test_wrong_binding_is_refused(
    tmp_path: Path, open_index: Open, given: dict[str, str], match: str
) -> None:
    open_index(tmp_path / ".cartq").close()
    with pytest.raises(MismatchError, match=match):
        Index.open(tmp_path / ".cartq", **given)
    Index.open(tmp_path / ".cartq", embedder="auto").close()


@pytest.mark.parametrize(("name", "value"), [("version", "2"), ("dim", 7)])
def test_embedder_that_changed_is_refused(
    tmp_path: Path, open_index: Open, name: str, value: Any
) -> None:
    open_index(tmp_path / ".cartq").close()
    changed = PatchEmbedder()
    setattr(changed, name, value)
    index = open_index(tmp_path / ".cartq", changed)
    with pytest.raises(MismatchError, match=rf"patch 1 \(48-d\).*{value}"):
        index.embedder()


def test_statistics_are_frozen_and_checked(tmp_path: Path, open_index: Open) -> None:
    fitted = _Fitted()
    index = open_index(tmp_path / ".cartq", fitted)
    fitted.fit({"visual": np.eye(48, dtype=np.float32)})
    index.freeze_statistics(fitted)
    index.close()
    fresh = _Fitted()
    index = open_index(tmp_path / ".cartq", fresh)
    assert index.embedder() is fresh
    np.testing.assert_array_equal(fresh.mean, fitted.mean)
    statistics = index.manifest.embedder.statistics
    assert statistics is not None
    (tmp_path / ".cartq" / statistics.name).write_bytes(b"other")
    with pytest.raises(MismatchError, match=statistics.hash):
        index.embedder()


def test_collection_has_its_vectors_and_indexes(tmp_path: Path, open_index: Open) -> None:
    info = open_index(tmp_path / ".cartq").store.info()
    assert {name: one.size for name, one in info.vectors.items()} == {MEDIA: 48, CAPTION: 384}
    assert {"modality", "path", "hash", *identifier_fields("cart")} <= info.indexed


def test_finished_work_is_cleared(tmp_path: Path, open_index: Open) -> None:
    index = open_index(tmp_path / ".cartq")
    (index.folder.work / "parts" / "deep").mkdir(parents=True)
    (index.folder.work / "file").touch()
    (index.folder.work / "kept").touch()
    index.clear_work(["parts", "file", "absent"])
    assert [p.name for p in index.folder.work.iterdir()] == ["kept"]
