"""Points from the embedded store to a client's collection, and back."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient, models

from cart_qdrant.errors import MismatchError, StoreError, UsageError
from cart_qdrant.index import migrate as migration
from cart_qdrant.index.backup import backup, restore
from cart_qdrant.index.folder import IndexFolder
from cart_qdrant.index.health import check
from cart_qdrant.index.index import Index
from cart_qdrant.index.manifest import sealed
from cart_qdrant.index.migrate import migrate
from cart_qdrant.search.retriever import Retriever
from cart_qdrant.storage.server import ServerStore
from cart_qdrant.storage.store_info import StoreInfo
from tests.conftest import TEST_COLLECTIONS, copy_of, points

COLLECTION = f"{TEST_COLLECTIONS}media"
PLACE = StoreInfo(kind="client", collection=COLLECTION)
QUERY = "a dog on a surfboard"


@pytest.fixture
def index(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained index that a test may change."""
    return copy_of(trained, tmp_path / ".cartq")


def assert_same(one: dict[str, dict[str, Any]], other: dict[str, dict[str, Any]]) -> None:
    assert one.keys() == other.keys()
    for key, point in one.items():
        there = other[key]
        assert {**point, "vector": 0} == {**there, "vector": 0}
        assert point["vector"].keys() == there["vector"].keys()
        for name, values in point["vector"].items():
            assert values == pytest.approx(there["vector"][name], abs=1e-6)


def test_there_and_back(index: Path, client: QdrantClient) -> None:
    with Index.open(index) as opened:
        before = points(opened)
        report = migrate(opened, PLACE, client=client)
        assert report.points == report.copied == report.compared == len(before)
        assert_same(points(opened), before)
        health = check(opened)
        assert health is not None and health.items == len(before)
    with pytest.raises(StoreError, match="client of your own"):
        Index.open(index)
    with Retriever.open(index, client=client) as retriever:
        there = retriever.search(QUERY, k=5).hits
    assert client.get_collection(COLLECTION).config.metadata["cart-qdrant:cart"]["index"]
    with Index.open(index, client=client) as opened:
        one = next(iter(before))
        opened.store.set_payload([(one, {"year": 2001})])
        report = migrate(opened, StoreInfo())
        assert (report.copied, report.removed) == (1, 0)  # the rest is still there
        assert points(opened)[one]["year"] == 2001
    with Retriever.open(index) as retriever:
        back = retriever.search(QUERY, k=5).hits
        assert [hit.id for hit in back] == [hit.id for hit in there]
        assert retriever.search(QUERY, k=5, lane="generative").hits
    with pytest.raises(MismatchError, match="embedded store, not with a client"):
        Retriever.open(index, client=client)


def test_a_killed_run_goes_on(
    index: Path, client: QdrantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "PAGE", 4)
    upsert, calls = ServerStore.upsert, 0

    def fail(self: ServerStore, rows: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise StoreError("the wire is cut")
        upsert(self, rows)

    with Index.open(index) as opened:
        before = points(opened)
        with monkeypatch.context() as patch, pytest.raises(StoreError, match="cut"):
            patch.setattr(ServerStore, "upsert", fail)
            migrate(opened, PLACE, client=client)
        assert opened.manifest.store == StoreInfo()
        # Meanwhile the index changes: one point goes, one has another payload.
        deleted, changed, *_ = [str(r.id) for r in client.scroll(COLLECTION, limit=3)[0]]
        opened.store.delete([deleted])
        opened.store.set_payload([(changed, {"year": 2001})])
        report = migrate(opened, PLACE, client=client)
        assert report.removed == 1 and report.points == len(before) - 1
        # Eight were there: one of them went, one is copied again.
        assert report.copied == len(before) - 8 + 1
        assert points(opened)[changed]["year"] == 2001


def test_a_collection_that_another_index_took_is_left_alone(
    index: Path, client: QdrantClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One run is stopped, another index moves there meanwhile, the first is run again."""

    def fail(self: ServerStore, rows: Any) -> None:
        raise StoreError("the wire is cut")

    with Index.open(index) as opened:
        with monkeypatch.context() as patch, pytest.raises(StoreError, match="cut"):
            patch.setattr(ServerStore, "upsert", fail)
            migrate(opened, PLACE, client=client)
        other = copy_of(index, tmp_path / "other" / ".cartq")
        manifest = json.loads((other / "manifest.json").read_bytes())
        (other / "manifest.json").write_bytes(sealed({**manifest, "id": "other"}))
        with Index.open(other) as second:
            with pytest.raises(MismatchError, match=f"belongs to the index {manifest['id']}"):
                migrate(second, PLACE, client=client)
            client.delete_collection(COLLECTION)
            migrate(second, PLACE, client=client)
            count = second.store.count()
        with pytest.raises(MismatchError, match="belongs to the index other"):
            migrate(opened, PLACE, client=client)
    assert client.count(COLLECTION).count == count


@pytest.mark.parametrize("at", ["before the manifest", "after the manifest"])
def test_a_flip_that_is_killed_locks_nobody_out(
    index: Path, client: QdrantClient, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    with Index.open(index) as opened:
        migrate(opened, PLACE, client=client)
    with Index.open(index, client=client) as opened:
        before = opened.manifest
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
            set_metadata, calls = ServerStore.set_metadata, []

            def killed(self: Any, *args: Any) -> None:
                if at.startswith("before") or calls:
                    raise RuntimeError("killed")
                set_metadata(self, *args)
                calls.append(args)

            if at.startswith("before"):
                patch.setattr(IndexFolder, "write", killed)
            else:
                patch.setattr(ServerStore, "set_metadata", killed)
            opened.put(before)
    metadata = client.get_collection(COLLECTION).config.metadata["cart-qdrant:cart"]
    assert metadata["previous"] == before.revision
    with Index.open(index, client=client) as opened:
        assert (opened.manifest.revision == before.revision) == at.startswith("before")
        opened.put(opened.manifest)
        assert not opened.take_ownership()
    client.update_collection(COLLECTION, metadata={"cart-qdrant:cart": {"index": before.id}})
    with pytest.raises(MismatchError, match="cartq doctor --fix"):
        Index.open(index, client=client)
    with Index.open(index, client=client, trust_folder=True) as opened:
        assert opened.take_ownership()
    with Index.open(index, client=client) as opened:
        assert opened.store.count() > 1


def test_what_others_have_there_is_left_alone(index: Path, client: QdrantClient) -> None:
    client.create_collection(COLLECTION, models.VectorParams(size=3, distance=models.Distance.DOT))
    client.upsert(COLLECTION, [models.PointStruct(id=1, vector=[1.0, 0, 0], payload={"a": 1})])
    with Index.open(index) as opened:
        with pytest.raises(MismatchError, match="1 points that this index did not copy"):
            migrate(opened, PLACE, client=client)
        with pytest.raises(UsageError, match="already"):
            migrate(opened, StoreInfo())
        assert opened.store.count() > 1 and not opened.manifest.store.url
    assert client.count(COLLECTION).count == 1
    with Retriever.open(index) as retriever:
        assert retriever.search(QUERY, k=1).hits


def test_a_copy_that_differs_is_refused(
    index: Path, client: QdrantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    retrieve = ServerStore.retrieve

    def garbled(self: ServerStore, ids: Any, **kwargs: Any) -> Any:
        rows = retrieve(self, ids, **kwargs)
        return [row.model_copy(update={"payload": {**(row.payload or {}), "x": 1}}) for row in rows]

    monkeypatch.setattr(ServerStore, "retrieve", garbled)
    with Index.open(index) as opened:
        with pytest.raises(StoreError, match="differs from that at"):
            migrate(opened, PLACE, client=client)
        assert opened.manifest.store == StoreInfo()
        assert opened.store.count() > 1


def test_an_index_in_one_file(index: Path, client: QdrantClient, tmp_path: Path) -> None:
    """From the embedded store and from a collection alike."""
    with Index.open(index) as opened:
        before = points(opened)
        assert backup(opened, tmp_path / "one.tar") == len(before)
        allocated = sum(f.stat().st_blocks * 512 for f in index.rglob("*") if f.is_file())
        assert (tmp_path / "one.tar").stat().st_size < allocated  # not the engine's holes
        migrate(opened, PLACE, client=client)
        assert backup(opened, tmp_path / "two.tar") == len(before)
        opened.folder.work.mkdir(exist_ok=True)
        (opened.folder.work / "changed").touch()  # as an ingestion that was killed leaves it
        with pytest.raises(UsageError, match="cartq ingest"):
            backup(opened, tmp_path / "three.tar")
    for name in ("one", "two"):
        root = tmp_path / name / ".cartq"
        restore(tmp_path / f"{name}.tar", root)
        with Index.open(root) as opened:
            assert_same(points(opened), before)
            assert opened.manifest.generator is not None
            assert opened.store.info().indexed >= {"cart_2.id", "cart_2.p1", "modality"}
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
