"""A collection that others fill, read in our names; nothing of theirs can be written."""

from __future__ import annotations

from typing import Any

import pytest
from qdrant_client import QdrantClient, models

from cart_qdrant.errors import StoreError
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.attached import AttachedStore
from cart_qdrant.storage.attached_mapping import texts_of, value_at
from cart_qdrant.storage.attachment import Attachment
from cart_qdrant.storage.protocol import CAPTION, CAPTION_TEXTS, MEDIA, CollectionSpec
from cart_qdrant.storage.server import ServerStore

HOW = Attachment(
    vector="clip",
    modality_field="meta.type",
    modalities=["image", "video"],
    path="meta.file",
    start="meta.from",
    captions=["title", "tags"],
    words="title",
)
PAYLOADS: list[dict[str, Any]] = [
    {
        "meta": {"type": "image", "file": "a.jpg"},
        "title": "a red car",
        "tags": ["red", "a red car"],
    },
    {"meta": {"type": "video", "file": "b.mp4", "from": 3}, "title": "a dog"},
    {"meta": {"type": "document", "file": "c.pdf"}, "title": "a dog"},
    {"meta": {"type": "image"}, "title": "a cat", "tags": [{"text": "cat"}, 7]},
]  # fmt: skip


@pytest.fixture
def client() -> QdrantClient:
    client = QdrantClient(":memory:")
    params = models.VectorParams(size=2, distance=models.Distance.COSINE)
    client.create_collection("theirs", {"clip": params})
    points = [
        models.PointStruct(id=n, vector={"clip": [1.0, float(n)]}, payload=payload)
        for n, payload in enumerate(PAYLOADS)
    ]
    client.upsert("theirs", [*points, models.PointStruct(id=9, vector={}, payload={})])
    return client


@pytest.fixture
def store(client: QdrantClient) -> AttachedStore:
    return AttachedStore(ServerStore(client, "theirs"), HOW)


def found(store: AttachedStore, *must: Any, must_not: Any = None) -> list[str]:
    only = qdrant.Filter(must=list(must), must_not=must_not)
    return [str(row.id) for row in store.scroll(only, with_payload=False)]


def has(key: str, *values: str) -> qdrant.FieldCondition:
    return qdrant.FieldCondition(key=key, match=qdrant.MatchAny(any=values))


def is_empty(key: str) -> qdrant.IsEmptyCondition:
    return qdrant.IsEmptyCondition(is_empty=qdrant.PayloadField(key=key))


def test_a_point_has_our_fields_laid_over_its_own(store: AttachedStore) -> None:
    one, two, four = store.retrieve(["1", "0", "3"], with_vectors=[MEDIA, CAPTION])
    assert one.payload == {
        **PAYLOADS[1], "path": "b.mp4", "modality": "video", "start": 3.0, "end": 0.0,
        "captions": [{"text": "a dog", "source": "metadata"}],
    }  # fmt: skip
    assert one.vector == {MEDIA: pytest.approx([0.5**0.5, 0.5**0.5])}
    assert [c["text"] for c in (two.payload or {})["captions"]] == ["a red car", "red"]
    assert (four.payload or {})["path"] == "point:3"
    assert [c["text"] for c in (four.payload or {})["captions"]] == ["a cat", "cat"]


def test_filters_on_our_fields_look_into_theirs(store: AttachedStore) -> None:
    assert found(store, has("modality", "image")) == ["0", "3"]
    assert found(store, has("path", "b.mp4", "point:3", "point:0", "point:x")) == ["1", "3"]
    assert found(store, has("title", "a dog")) == ["1", "2"]
    assert found(store, qdrant.HasIdCondition(has_id=["2", 0])) == ["0", "2"]
    assert found(store, is_empty("start")) == []  # it is zero where theirs is missing
    assert found(store, qdrant.HasVectorCondition(has_vector=MEDIA)) == ["0", "1", "2", "3"]
    assert found(store, qdrant.HasVectorCondition(has_vector=CAPTION)) == []
    # Those that are left out: without a vector, or of another modality.
    assert found(store, is_empty("hash")) == ["2", "9"]
    assert store.count(qdrant.Filter(must_not=[is_empty("hash")])) == 3
    both = qdrant.Filter(should=[has("modality", "video"), has("path", "a.jpg")])
    assert found(store, both) == ["0", "1"]


def test_without_fields_all_points_have_one_modality_and_their_ids_as_paths(
    client: QdrantClient,
) -> None:
    how = Attachment(vector="clip", modality="video")
    store = AttachedStore(ServerStore(client, "theirs"), how)
    assert found(store, has("modality", "video")) == ["0", "1", "2", "3", "9"]
    assert found(store, has("modality", "image")) == []
    assert found(store, has("path", "point:1")) == ["1"]


def test_a_search_in_what_the_collection_lacks_has_no_hits(store: AttachedStore) -> None:
    store.create(CollectionSpec(vectors={}))  # words are ranked by a text index of their field
    caption = qdrant.QueryRequest(query=[1.0, 0.0], using=CAPTION)
    media = qdrant.QueryRequest(query=[1.0, 0.0], using=MEDIA, limit=2, with_payload=["path"])
    words = qdrant.QueryRequest(query=qdrant.TextQuery(text="cat"), using=CAPTION_TEXTS)
    none, some, ranked = store.query_batch([caption, media, words])
    assert not none
    assert [hit.id for hit in some] == ["0", "1"]
    assert [(hit.payload or {})["path"] for hit in some] == ["a.jpg", "b.mp4"]
    assert [str(hit.id) for hit in ranked] == ["3"]
    assert [ids.ids for ids in store.query_ids([caption, media])] == [[], ["0", "1"]]


def test_only_identifiers_can_be_written(store: AttachedStore, client: QdrantClient) -> None:
    point = models.PointStruct(id=5, vector={"clip": [1.0, 0.0]})
    for write in (
        lambda: store.upsert([point]),
        lambda: store.delete(["1"]),
        lambda: store.set_payload([("1", {"cart": {"id": "1"}, "title": "x"})]),
        lambda: store.set_payload([("1", {"cart_x": 1})]),
        lambda: store.delete_payload_key("title"),
        lambda: store.drop_index("title"),
        lambda: store.update_vectors(MEDIA, [("1", [1.0, 0.0])]),
        lambda: store.update_vectors(CAPTION, [("1", [1.0, 0.0])]),  # it has none
        lambda: store.delete_vectors(MEDIA, ["1"]),
    ):
        with pytest.raises(StoreError, match="filled by others: this index may not"):
            write()
    assert [row.payload for row in client.scroll("theirs")[0]] == [*PAYLOADS, {}]
    store.set_payload([("1", {"cart": {"id": "1-0"}, "cart_2": {"id": "2-0"}})])
    store.delete_payload_key("cart")
    (row,) = client.retrieve("theirs", [1])
    assert row.payload == {**PAYLOADS[1], "cart_2": {"id": "2-0"}}


def test_values_and_texts_of_a_payload() -> None:
    payload = {"a": {"b": [1, " x  y "]}, "t": {"text": "z"}, "n": None}
    assert value_at(payload, "a.b") == [1, " x  y "]
    assert value_at(payload, "a.c") is value_at(payload, "n.b") is value_at(payload, None) is None
    assert texts_of(payload, ["a.b", "t", "n", "t"]) == ["x y", "z"]
