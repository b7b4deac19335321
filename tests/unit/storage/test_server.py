"""The server store: what is sent, against a server made of plain functions."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import models

from cart_qdrant.errors import MismatchError, StoreError, UsageError, VectorError
from cart_qdrant.storage.factory import open_store
from cart_qdrant.storage.protocol import MEDIA, CollectionSpec
from cart_qdrant.storage.server import ServerStore
from cart_qdrant.storage.server_requests import REQUEST_BYTES
from cart_qdrant.storage.store_info import StoreInfo
from tests.unit.storage.fake_server import INFO, FakeServer, status
from tests.unit.storage.points import pid


def point(n: int, **payload: Any) -> models.PointStruct:
    return models.PointStruct(id=pid(n), vector={MEDIA: [1.0, float(n), 0.0, 0.0]}, payload=payload)


def test_connecting_sends_nothing_and_bad_addresses_are_named() -> None:
    store = ServerStore.connect("http://192.0.2.1:6333", None, "c", 1)
    assert store.location == "http://192.0.2.1:6333/c"
    info = StoreInfo(kind="server", url="https://x.test:6333", collection="c")
    assert open_store(info, Path()).location == "https://x.test:6333/c"
    with pytest.raises(UsageError, match="no address of a Qdrant server"):
        ServerStore.connect("http://host:port", None, "c")


def test_writes_wait_and_stay_under_the_request_size(server: FakeServer) -> None:
    store = server.store()
    text = "x" * 400_000
    store.upsert([point(n, text=text) for n in range(25)])
    store.upsert([point(n) for n in range(2500)])
    bodies = server.sent("/points")
    writes = [r for r in server.requests if r.method == "PUT" and r.url.path.endswith("/points")]
    assert all(r.url.params["wait"] == "true" for r in writes)
    assert all(len(r.content) < 5_000_000 for r in writes)
    assert [len(b["points"]) for b in bodies] == [9, 9, 7, 1000, 1000, 500]
    assert bodies[0]["points"][1]["vector"][MEDIA] == pytest.approx([0.5**0.5, 0.5**0.5, 0, 0])
    # One item over the limit still goes, alone.
    store.upsert([point(1), point(2, text="x" * (REQUEST_BYTES + 1)), point(3)])
    assert [len(b["points"]) for b in server.sent("/points")[6:]] == [1, 1, 1]


def test_a_bad_vector_sends_nothing(server: FakeServer) -> None:
    with pytest.raises(VectorError, match="zero"):
        server.store().upsert(
            [
                *(point(n) for n in range(2000)),
                models.PointStruct(id=pid(1), vector={MEDIA: [0.0] * 4}),
            ]
        )
    assert server.sent("/points") == []


def test_payloads_go_in_one_request_to_known_points(server: FakeServer) -> None:
    server.known = {pid(1), pid(2)}
    nested = {"cart_2": {"id": "1-2", "codes": [1, 2]}}
    server.store().set_payload([(pid(1), nested), (pid(5), nested), (pid(2), {"a.b": 1})])
    (body,) = server.sent("/points/batch")
    assert body["operations"] == [
        {"set_payload": {"payload": nested, "points": [pid(1)]}},
        {"set_payload": {"payload": {"a.b": 1}, "points": [pid(2)]}},
    ]
    server.store().update_vectors(MEDIA, [(pid(2), [0.0, 2.0, 0.0, 0.0]), (pid(5), [1.0] * 4)])
    (body,) = server.sent("/points/vectors")
    assert body["points"] == [{"id": pid(2), "vector": {MEDIA: [0.0, 1.0, 0.0, 0.0]}}]
    server.store().delete_payload_key("cart_2")
    server.store().delete_payload_key("a.b")
    deleted = [b["keys"] for b in server.sent("/points/payload/delete")]
    assert [keys for keys in deleted if keys != ["cartq"]] == [["cart_2"], ['"a.b"']]


def test_searches_go_in_one_request(server: FakeServer) -> None:
    requests = [models.QueryRequest(query=[1.0, 0, 0, 0], using=MEDIA, limit=n) for n in (1, 2)]
    answers = server.store().query_batch(requests)
    assert [[hit.id for hit in hits] for hits in answers] == [[pid(1)], [pid(1)]]
    (body,) = server.sent("/points/query/batch")
    assert [s["limit"] for s in body["searches"]] == [1, 2]
    # A collection may be quantised: its answers are cosines all the same.
    assert all(s["params"]["quantization"]["ignore"] for s in body["searches"])
    with pytest.raises(VectorError, match="width 2"):
        server.store().query_batch([models.QueryRequest(query=[1.0, 0.0], using=MEDIA)])
    assert len(server.sent("/points/query/batch")) == 1


def test_create_makes_indexes_before_anything_else(server: FakeServer) -> None:
    server.exists = False
    server.store().create(
        CollectionSpec(vectors={MEDIA: 4}, keywords=("cart.id",), texts=("captions[].text",))
    )
    (made,) = server.sent("")
    assert made["vectors"] == {MEDIA: {"size": 4, "distance": "Cosine"}}
    keyword, text = server.sent("/index")
    assert keyword == {"field_name": "cart.id", "field_schema": "keyword"}
    assert text["field_name"] == "captions[].text"
    assert text["field_schema"]["type"] == "text" and text["field_schema"]["scoring"] is True


def test_create_refuses_another_width_and_metric(server: FakeServer) -> None:
    with pytest.raises(MismatchError, match=r"'media': 4.*'media': 8"):
        server.store().create(CollectionSpec(vectors={MEDIA: 8}))
    original = INFO["config"]["params"]["vectors"][MEDIA]  # type: ignore[index]
    original["distance"] = "Euclid"
    try:
        with pytest.raises(MismatchError, match="Euclid"):
            server.store().create(CollectionSpec(vectors={MEDIA: 4}))
    finally:
        original["distance"] = "Cosine"


def test_a_server_without_text_ranking_gets_a_plain_text_index(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = server.answer

    def old(method: str, path: str, body: Any) -> Any:
        if path.endswith("/index") and body["field_schema"].get("scoring"):
            return status(400)
        return answer(method, path, body)

    monkeypatch.setattr(server, "answer", old)
    server.store().create(CollectionSpec(vectors={MEDIA: 4}, texts=("t",)))
    assert [b["field_schema"].get("scoring") for b in server.sent("/index")] == [True, None]


def test_closed(server: FakeServer) -> None:
    store = server.store()
    store.close()
    store.close()
    for call in (store.count, store.flush, store.exists):
        with pytest.raises(StoreError, match="was closed"):
            call()


def test_local_mode_works_without_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store = open_store(StoreInfo(kind="server", url=":memory:"), Path())
        assert not store.exists()
        with pytest.raises(StoreError, match="no collection 'media'"):
            store.count()
        spec = CollectionSpec(vectors={MEDIA: 4}, keywords=("n",), texts=("t",))
        store.create(spec)
        store.create(spec)
        store.upsert([point(1, t="a dog"), point(2, t="a cat")])
        params = models.SearchParams(exact=True)
        request = models.QueryRequest(query=[1.0, 0, 0, 0], using=MEDIA, params=params)
        words = models.QueryRequest(query=models.TextQuery(text="cat"), using="t")
        dense, text = store.query_batch([request, words])
    assert [hit.id for hit in dense] == [pid(1), pid(2)]
    assert [hit.id for hit in text] == [pid(2)]
    with pytest.raises(MismatchError):
        store.create(CollectionSpec(vectors={MEDIA: 5}))
