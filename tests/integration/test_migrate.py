"""Points from the embedded store to a client's collection, and back."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient, models

from cart_qdrant.errors import MismatchError, StoreError, UsageError
from cart_qdrant.index import migrate as migration
from cart_qdrant.index.backup import backup, restore
from cart_qdrant.index.identify import check
from cart_qdrant.index.library import Library
from cart_qdrant.index.migrate import migrate
from cart_qdrant.index.store_client import ClientStore
from cart_qdrant.persistence import StoreInfo
from cart_qdrant.search.engine import Retriever
from tests.conftest import points

PLACE = StoreInfo(kind="client", collection="media")
QUERY = "a dog on a surfboard"


@pytest.fixture
def index(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained index that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / ".cartq"))


def assert_same(one: dict[str, dict[str, Any]], other: dict[str, dict[str, Any]]) -> None:
    assert one.keys() == other.keys()
    for key, point in one.items():
        there = other[key]
        assert {**point, "vector": 0} == {**there, "vector": 0}
        assert point["vector"].keys() == there["vector"].keys()
        for name, values in point["vector"].items():
            assert values == pytest.approx(there["vector"][name], abs=1e-6)


def test_there_and_back(index: Path, client: QdrantClient) -> None:
    with Library.open(index) as library:
        before = points(library)
        report = migrate(library, PLACE, client=client)
        assert report.points == report.copied == report.compared == len(before)
        assert_same(points(library), before)
        health = check(library)
        assert health is not None and health.items == len(before)
    with pytest.raises(StoreError, match="client of your own"):
        Library.open(index)
    with Retriever.open(index, client=client) as retriever:
        there = retriever.search(QUERY, k=5).hits
    assert client.get_collection("media").config.metadata["cart-qdrant:cart"]["index"]
    shutil.rmtree(index / "store")
    with Library.open(index, client=client) as library:
        assert migrate(library, StoreInfo()).copied == len(before)
    with Retriever.open(index) as retriever:
        back = retriever.search(QUERY, k=5).hits
        assert [hit.id for hit in back] == [hit.id for hit in there]
    with Library.open(index) as library:
        assert_same(points(library), before)


def test_a_killed_run_goes_on(
    index: Path, client: QdrantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "PAGE", 4)
    upsert, calls = ClientStore.upsert, 0

    def fail(self: ClientStore, rows: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise StoreError("the wire is cut")
        upsert(self, rows)

    with Library.open(index) as library:
        before = points(library)
        with monkeypatch.context() as patch, pytest.raises(StoreError, match="cut"):
            patch.setattr(ClientStore, "upsert", fail)
            migrate(library, PLACE, client=client)
        assert library.manifest.store == StoreInfo()
        # Meanwhile the index changes: one point goes, one has another payload.
        gone, changed, *_ = [str(r.id) for r in client.scroll("media", limit=3)[0]]
        library.store.delete([gone])
        library.store.set_payload([(changed, {"year": 2001})])
        report = migrate(library, PLACE, client=client)
        assert report.removed == 1 and report.points == len(before) - 1
        # Eight were there: one of them went, one is copied again.
        assert report.copied == len(before) - 8 + 1
        assert points(library)[changed]["year"] == 2001


def test_what_others_have_there_is_left_alone(index: Path, client: QdrantClient) -> None:
    client.create_collection("media", models.VectorParams(size=3, distance=models.Distance.DOT))
    client.upsert("media", [models.PointStruct(id=1, vector=[1.0, 0, 0], payload={"a": 1})])
    with Library.open(index) as library:
        with pytest.raises(MismatchError, match="1 points that this index did not bring"):
            migrate(library, PLACE, client=client)
        with pytest.raises(UsageError, match="already"):
            migrate(library, StoreInfo())
        assert library.store.count() > 1 and not library.manifest.store.url
    assert client.count("media").count == 1
    with Retriever.open(index) as retriever:
        assert retriever.search(QUERY, k=1).hits


def test_a_copy_that_differs_is_refused(
    index: Path, client: QdrantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    retrieve = ClientStore.retrieve

    def garbled(self: ClientStore, ids: Any, **kwargs: Any) -> Any:
        rows = retrieve(self, ids, **kwargs)
        return [row.model_copy(update={"payload": {**(row.payload or {}), "x": 1}}) for row in rows]

    monkeypatch.setattr(ClientStore, "retrieve", garbled)
    with Library.open(index) as library:
        with pytest.raises(StoreError, match="is not that at"):
            migrate(library, PLACE, client=client)
        assert library.manifest.store == StoreInfo()
        assert library.store.count() > 1


def test_an_index_in_one_file(index: Path, client: QdrantClient, tmp_path: Path) -> None:
    """From the embedded store and from a collection alike."""
    with Library.open(index) as library:
        before = points(library)
        assert backup(library, tmp_path / "one.tar") == len(before)
        migrate(library, PLACE, client=client)
        assert backup(library, tmp_path / "two.tar") == len(before)
    for name in ("one", "two"):
        root = tmp_path / name / ".cartq"
        restore(tmp_path / f"{name}.tar", root)
        with Library.open(root) as library:
            assert_same(points(library), before)
            assert library.manifest.generator is not None
        with Retriever.open(root) as retriever:
            assert retriever.search(QUERY, k=1).hits[0].path == "media/picture-0.png"
        with pytest.raises(UsageError, match="not empty"):
            restore(tmp_path / f"{name}.tar", root)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".cartq", "one", "one.tar", "two", "two.tar",
    ]  # fmt: skip


def test_what_is_no_backup_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_text("no archive")
    with tarfile.open(tmp_path / "other.tar", "w") as archive:
        archive.add(tmp_path / "text.tar", "manifest.txt")
    (tmp_path / "manifest.json").write_text("{}")
    with tarfile.open(tmp_path / "empty.tar", "w") as archive:
        archive.add(tmp_path / "manifest.json", "manifest.json")
    for name in ("text", "other", "empty"):
        with pytest.raises(MismatchError, match=f"{name}.tar"):
            restore(tmp_path / f"{name}.tar", tmp_path / ".cartq")
    with pytest.raises(UsageError, match="no file"):
        restore(tmp_path / "gone.tar", tmp_path / ".cartq")
    assert not (tmp_path / ".cartq").exists()
    assert not list(tmp_path.glob(".cartq-*"))
