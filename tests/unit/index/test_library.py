"""An index is bound to what made it, and says what disagrees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import models

from cart_qdrant.errors import IndexMissingError, MismatchError, StoreError
from cart_qdrant.index.library import Library, identifier_fields
from cart_qdrant.index.store import MEDIA
from cart_qdrant.records import Modality, Segment

Open = Callable[..., Library]


class Fitted:
    """An embedder with statistics: one array."""

    name, version, dim, raw_dim = "patch", "1", 48, 4
    spaces = {Modality.IMAGE: "visual"}  # noqa: RUF012

    def __init__(self, value: float = 0.0) -> None:
        self.value = value

    def features(self, clips: Any) -> Any:
        raise NotImplementedError

    embed_media = embed_text = project = fit = features

    def to_arrays(self) -> dict[str, Any]:
        return {"value": np.array([self.value], np.float32)}

    def load_arrays(self, arrays: Any) -> None:
        self.value = float(arrays["value"][0])


def test_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(IndexMissingError, match="cartq ingest"):
        Library.open(tmp_path / ".cartq")
    assert list(tmp_path.iterdir()) == []


def test_create_then_open(tmp_path: Path, open_library: Open) -> None:
    made = open_library(tmp_path / ".cartq")
    manifest = made.manifest
    made.close()
    with Library.open(tmp_path / ".cartq") as again:
        assert again.manifest == manifest
        assert again.store.count() == 0
        assert again.space("image") == again.space("video") == "visual"
        assert again.space("smell") is None
        assert (manifest.embedder.name, manifest.embedder.dim) == ("patch", 48)


def test_a_creation_that_was_killed_is_done_again(tmp_path: Path, open_library: Open) -> None:
    made = open_library(tmp_path / ".cartq")
    made.close()
    made.folder.manifest.unlink()
    assert open_library(tmp_path / ".cartq").store.count() == 0


def test_points_without_a_manifest_are_not_adopted(tmp_path: Path, open_library: Open) -> None:
    made = open_library(tmp_path / ".cartq")
    one = Segment("a.jpg", Modality.IMAGE).id
    made.store.upsert([models.PointStruct(id=one, vector={MEDIA: [1.0] * 48}, payload={})])
    made.close()
    made.folder.manifest.unlink()
    with pytest.raises(MismatchError, match="1 points"):
        open_library(tmp_path / ".cartq")


def test_another_embedder_or_place_is_refused(tmp_path: Path, open_library: Open) -> None:
    open_library(tmp_path / ".cartq").close()
    root = tmp_path / ".cartq"
    with pytest.raises(MismatchError, match=r"'patch', not 'lite'"):
        Library.open(root, embedder="lite")
    with pytest.raises(MismatchError, match="embedded store"):
        Library.open(root, url="http://localhost:6333")
    for same in (None, "auto", "patch"):
        Library.open(root, embedder=same).close()


@pytest.mark.parametrize("change", [{"version": "2"}, {"dim": 32}, {"name": "other"}])
def test_an_embedder_that_changed_is_refused(
    tmp_path: Path, open_library: Open, change: dict[str, Any]
) -> None:
    made = open_library(tmp_path / ".cartq")
    embedder = Fitted()
    for name, value in change.items():
        setattr(embedder, name, value)
    made.set_embedder(embedder)  # type: ignore[arg-type]
    with pytest.raises(MismatchError, match="Ingest into another"):
        made.embedder()


def test_points_that_are_gone(tmp_path: Path, open_library: Open) -> None:
    made = open_library(tmp_path / ".cartq")
    made.close()
    made.folder.store.rename(tmp_path / "elsewhere")
    with pytest.raises(IndexMissingError, match="gone"):
        Library.open(tmp_path / ".cartq")


def test_a_second_process_is_kept_out_of_the_embedded_store(
    tmp_path: Path, open_library: Open
) -> None:
    open_library(tmp_path / ".cartq").store.count()
    with pytest.raises(StoreError), Library.open(tmp_path / ".cartq") as second:
        second.store.count()


def test_statistics_are_frozen_and_checked(tmp_path: Path, open_library: Open) -> None:
    made = open_library(tmp_path / ".cartq", Fitted(3.0))
    made.freeze_statistics(Fitted(3.0))
    made.close()
    again = open_library(tmp_path / ".cartq", Fitted(0.0))
    assert again.embedder().value == 3.0  # type: ignore[attr-defined]
    artifact = again.manifest.embedder.statistics
    assert artifact is not None
    (again.folder.root / artifact.name).write_bytes(b"other")
    with pytest.raises(MismatchError, match="hash"):
        again.embedder()


def test_put_replaces_the_manifest(tmp_path: Path, open_library: Open) -> None:
    made = open_library(tmp_path / ".cartq")
    changed = replace(made.manifest, stale_fields=["cart"])
    made.put(changed)
    assert made.manifest == made.folder.read() == changed


def test_clear_work_removes_files_and_folders(tmp_path: Path, open_library: Open) -> None:
    made = open_library(tmp_path / ".cartq")
    work = made.folder.work
    (work / "a").mkdir(parents=True)
    (work / "a" / "x").write_text("x")
    (work / "b").write_text("x")
    (work / "c").write_text("x")
    made.clear_work(["a", "b", "missing"])
    assert [path.name for path in work.iterdir()] == ["c"]


def test_identifier_fields() -> None:
    assert identifier_fields("cart_2", 2) == ["cart_2.id", "cart_2.p1", "cart_2.p2"]
