"""Vectors of a collection that come and go: made, cleared, and told apart from those of others."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import qdrant_edge as edge
from qdrant_client import QdrantClient, models

from cart_qdrant.errors import MismatchError, StoreError
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.attached import AttachedStore
from cart_qdrant.storage.attachment import Attachment
from cart_qdrant.storage.edge import EdgeStore
from cart_qdrant.storage.protocol import CAPTION, CAPTION_2, MEDIA, CollectionSpec, Store
from cart_qdrant.storage.server import ServerStore
from cart_qdrant.storage.shared import SharedStore
from tests.unit.storage.fake_server import FakeServer
from tests.unit.storage.points import pid

FIRST = CollectionSpec(vectors={MEDIA: 4}, slots={CAPTION: 3, CAPTION_2: 3})
SECOND = CollectionSpec(vectors={MEDIA: 4}, slots={CAPTION_2: 3, CAPTION: 3})
X = [1.0, 0.0, 0.0]
Y = [0.0, 1.0, 0.0]


def embedded(folder: Path) -> Store:
    return EdgeStore(folder / "store")


def guest(folder: Path) -> Store:
    """A store that asks another one for all."""
    host = SharedStore(folder / "store", lock_file=folder / "store.lock")
    host.create(FIRST)
    other = SharedStore(folder / "store", lock_file=folder / "store.lock")
    other.host = host  # type: ignore[attr-defined]
    return other


def memory(folder: Path) -> Store:
    return ServerStore.connect(":memory:")


@pytest.fixture(params=[embedded, guest, memory])
def slots(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    make: Callable[[Path], Store] = request.param
    one = make(tmp_path)
    one.create(FIRST)
    yield one
    one.close()
    if hasattr(one, "host"):
        one.host.close()


def fill(store: Store) -> None:
    store.upsert(
        [
            models.PointStruct(id=pid(n), vector={MEDIA: [1.0, n, 0, 0], CAPTION: X}, payload={})
            for n in range(3)
        ]
    )


def having(store: Store, name: str) -> int:
    return store.count(qdrant.Filter(must=[qdrant.HasVectorCondition(has_vector=name)]))


def widths(store: Store) -> dict[str, int]:
    return {name: one.size for name, one in store.info().vectors.items()}


def test_a_collection_gets_a_slot_when_it_is_needed(slots: Store) -> None:
    assert widths(slots) == {MEDIA: 4, CAPTION: 3}
    fill(slots)
    slots.create(SECOND)
    slots.create(FIRST)
    assert widths(slots) == {MEDIA: 4, CAPTION: 3, CAPTION_2: 3}
    assert (having(slots, CAPTION), having(slots, CAPTION_2)) == (3, 0)
    slots.update_vectors(CAPTION_2, [(pid(1), Y)])
    (found,) = slots.query_ids([qdrant.QueryRequest(query=Y, using=CAPTION_2, limit=5)])
    assert [str(one) for one in found.ids] == [pid(1)]


def test_collections_of_others_are_refused(slots: Store) -> None:
    for spec in (
        CollectionSpec(vectors={MEDIA: 5}, slots={CAPTION: 3}),
        CollectionSpec(vectors={MEDIA: 4}, slots={CAPTION: 5}),
        CollectionSpec(vectors={MEDIA: 4, "more": 2}, slots={CAPTION: 3}),
        CollectionSpec(vectors={MEDIA: 4}),
    ):
        with pytest.raises(MismatchError, match="has vectors"):
            slots.create(spec)
    assert widths(slots) == {MEDIA: 4, CAPTION: 3}


def test_a_cleared_slot_is_empty_and_can_be_filled_again(slots: Store) -> None:
    fill(slots)
    slots.add_vector(CAPTION_2, 3)
    slots.update_vectors(CAPTION_2, [(pid(n), Y) for n in range(3)])
    for _ in range(2):
        slots.clear_vector(CAPTION_2)
        slots.clear_vector("unknown")
    slots.add_vector(CAPTION_2, 3)
    assert (having(slots, CAPTION), having(slots, CAPTION_2)) == (3, 0)
    assert slots.count() == having(slots, MEDIA) == 3
    slots.update_vectors(CAPTION_2, [(pid(0), X)])
    (row,) = slots.retrieve([pid(0)], with_vectors=[CAPTION, CAPTION_2])
    assert row.vector == {CAPTION: X, CAPTION_2: X}
    slots.upsert([models.PointStruct(id=pid(7), vector={MEDIA: [1.0, 0, 0, 0], CAPTION_2: Y})])
    assert having(slots, CAPTION_2) == 2


def test_the_room_of_a_cleared_slot_is_given_back(tmp_path: Path) -> None:
    store = EdgeStore(tmp_path / "store")
    store.create(FIRST)
    fill(store)
    store.clear_vector(CAPTION)
    assert widths(store) == {MEDIA: 4}
    assert not list((tmp_path / "store").rglob("vector_storage-caption"))
    store.close()
    again = EdgeStore(tmp_path / "store")
    assert widths(again) == {MEDIA: 4} and again.count() == 3
    again.close()


@pytest.mark.parametrize("where", ["engine", "file"])
def test_a_run_that_was_killed_while_it_cleared(tmp_path: Path, where: str) -> None:
    """The engine or the file beside it knows the vector still; the next run makes it anew."""
    store = EdgeStore(tmp_path / "store")
    store.create(FIRST)
    fill(store)
    store.close()
    if where == "engine":
        described = json.loads((tmp_path / "store.json").read_text())
        del described["vectors"][CAPTION]
        (tmp_path / "store.json").write_text(json.dumps(described))
    else:
        shard = edge.EdgeShard.load(str(tmp_path / "store"))
        shard.update(edge.UpdateOperation.delete_vector_name(CAPTION))
        shard.flush()
        shard.close()
    store = EdgeStore(tmp_path / "store")
    assert store.count() == 3
    store.clear_vector(CAPTION)
    store.add_vector(CAPTION, 3)
    assert having(store, CAPTION) == 0
    store.update_vectors(CAPTION, [(pid(1), Y)])
    assert having(store, CAPTION) == 1
    store.close()


@pytest.mark.parametrize(
    ("version", "made"),
    [("1.17.4", {CAPTION, CAPTION_2}), ("1.18.0", {CAPTION}), (None, {CAPTION, CAPTION_2})],
)
def test_a_server_that_adds_no_vectors_gets_both_at_once(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, version: str | None, made: set[str]
) -> None:
    call = server.__call__

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path != "/":
            return call(request)
        if version is None:
            return httpx.Response(403, json={})
        return httpx.Response(200, json={"title": "qdrant", "version": version})

    monkeypatch.setattr(FakeServer, "__call__", lambda _, request: answer(request))
    server.exists = False
    server.vectors = {name: {"size": 3, "distance": "Cosine"} for name in made}
    server.store().create(FIRST)
    (sent,) = server.sent("")
    assert set(sent["vectors"]) == {MEDIA, *made}


def test_a_server_clears_a_slot_by_one_request(server: FakeServer) -> None:
    server.vectors = {CAPTION: {"size": 3, "distance": "Cosine"}}
    server.store().clear_vector(CAPTION)
    (body,) = server.sent("/points/vectors/delete")
    assert body == {"vector": [CAPTION], "filter": {"must": [{"has_vector": CAPTION}]}}
    server.store().clear_vector(CAPTION_2)  # it has none
    assert len(server.sent("/points/vectors/delete")) == 1


def test_a_reader_searches_in_a_slot_that_was_added_since(tmp_path: Path) -> None:
    client = QdrantClient(":memory:")
    writer, reader = ServerStore(client, "c"), ServerStore(client, "c")
    writer.create(FIRST)
    fill(writer)
    request = qdrant.QueryRequest(query=X, using=CAPTION, limit=5)
    assert len(reader.query_ids([request])[0].ids) == 3
    writer.add_vector(CAPTION_2, 3)
    writer.update_vectors(CAPTION_2, [(pid(2), X)])
    request = qdrant.QueryRequest(query=X, using=CAPTION_2, limit=5)
    assert [str(one) for one in reader.query_ids([request])[0].ids] == [pid(2)]
    other = ServerStore(client, "c")
    other.count()
    assert other.retrieve([pid(2)], with_vectors=[CAPTION_2])[0].vector == {CAPTION_2: X}


def test_an_attached_collection_has_slots_of_its_own(tmp_path: Path) -> None:
    client = QdrantClient(":memory:")
    params = models.VectorParams(size=4, distance=models.Distance.COSINE)
    client.create_collection("theirs", {"clip": params})
    client.upsert("theirs", [models.PointStruct(id=1, vector={"clip": [1.0, 0, 0, 0]})])
    how = Attachment(vector="clip", key="cart", caption_vector="cart_caption")
    store = AttachedStore(ServerStore(client, "theirs"), how)
    for name, x in ((CAPTION, X), (CAPTION_2, Y)):
        store.add_vector(name, 3)
        store.update_vectors(name, [("1", x)])
    assert set(store.info().vectors) == {"clip", "cart_caption", "cart_caption_2"}
    (row,) = store.retrieve(["1"], with_vectors=[CAPTION_2])
    assert row.vector == {CAPTION_2: Y}
    store.clear_vector(CAPTION)
    assert (having(store, CAPTION), having(store, CAPTION_2)) == (0, 1)
    (found,) = store.query_ids([qdrant.QueryRequest(query=Y, using=CAPTION_2, limit=5)])
    assert [str(one) for one in found.ids] == ["1"]
    without = AttachedStore(ServerStore(client, "theirs"), Attachment(vector="clip"))
    actions: list[Callable[[], Any]] = [
        lambda: store.clear_vector(MEDIA),
        lambda: store.clear_vector("clip"),
        lambda: store.add_vector("other", 3),
        lambda: without.clear_vector(CAPTION_2),
        lambda: without.add_vector(CAPTION, 3),
    ]
    for act in actions:
        with pytest.raises(StoreError, match="filled by others"):
            act()
    assert having(without, CAPTION_2) == 0  # in our words it has none
    assert client.count("theirs").count == 1
