"""The schema of an embedded collection: made whole or not at all, described beside its folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import qdrant_edge as edge

from cart_qdrant.errors import MismatchError, StoreError
from cart_qdrant.storage import edge_schema
from cart_qdrant.storage.edge import EdgeStore
from cart_qdrant.storage.protocol import MEDIA, CollectionSpec
from tests.unit.storage.points import SPEC, point, where


def test_payload_indexes_are_on_disk_and_those_of_a_killed_run_are_made(
    store: EdgeStore, tmp_path: Path
) -> None:
    store.create_keyword_index("kept")
    store.create_keyword_index("lost")
    store.upsert([point(0, kept="a", lost="b")])
    store.close()
    shard = edge.EdgeShard.load(str(tmp_path / "store"))
    shard.update(edge.UpdateOperation.delete_field_index("lost"))
    shard.flush()
    shard.close()
    store = EdgeStore(tmp_path / "store")
    store.create(CollectionSpec(vectors={MEDIA: 4}, keywords=("kept", "lost")))
    assert store.count(where("kept", "a")) == store.count(where("lost", "b")) == 1
    store.close()
    shard = edge.EdgeShard.load(str(tmp_path / "store"))
    schema = shard.info().payload_schema
    for field in ("kept", "lost"):
        params = schema[field].params
        assert params is not None and params.memory == edge.Memory.Cold
    shard.close()


def test_create_twice_changes_nothing_and_adds_indexes(store: EdgeStore, tmp_path: Path) -> None:
    store.upsert([point(1)])
    before = (tmp_path / "store.json").read_text()
    store.create(SPEC)
    assert (tmp_path / "store.json").read_text() == before
    store.create_keyword_index("cart_2.id")
    store.create_keyword_index("cart_2.id")
    assert json.loads((tmp_path / "store.json").read_text())["keywords"] == ["cart.id", "cart_2.id"]
    assert store.count() == 1
    with pytest.raises(MismatchError, match=r"'media': 4.*'media': 8"):
        store.create(CollectionSpec(vectors={MEDIA: 8}))


def test_a_crash_while_creating_leaves_nothing_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"

    def crash(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(edge_schema, "rename_durably", crash)
        with pytest.raises(KeyboardInterrupt):
            EdgeStore(path).create(SPEC)
    assert not EdgeStore(path).exists()
    store = EdgeStore(path)
    store.create(SPEC)
    store.upsert([point(1, cart={"id": "a"})])
    assert store.count(where("cart.id", "a")) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store", "store.json", "work"]
    assert not any((tmp_path / "work").iterdir())


def test_a_folder_without_a_collection_is_kept_aside(tmp_path: Path) -> None:
    (tmp_path / "store" / "wal").mkdir(parents=True)
    (tmp_path / "store" / "wal" / "open-1").write_bytes(b"half")
    store = EdgeStore(tmp_path / "store")
    store.create(SPEC)
    assert store.count() == 0
    (kept,) = tmp_path.glob("store.broken-*/wal/open-1")
    assert kept.read_bytes() == b"half"


def test_a_lost_sidecar_is_made_again_and_a_broken_one_is_named(
    store: EdgeStore, tmp_path: Path
) -> None:
    sidecar = tmp_path / "store.json"
    before = sidecar.read_text()
    store.close()
    sidecar.unlink()
    again = EdgeStore(tmp_path / "store")
    again.upsert([point(1)])
    assert json.loads(sidecar.read_text()) == json.loads(before)
    again.close()
    sidecar.write_text("{")
    with pytest.raises(StoreError, match=r"store\.json cannot be read"):
        EdgeStore(tmp_path / "store").upsert([point(1)])
