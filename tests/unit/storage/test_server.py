"""The server store: what is sent, retries, and errors, against a server made of plain functions."""

from __future__ import annotations

import json
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from qdrant_client import QdrantClient, models

from cart_qdrant.errors import ConfigError, MismatchError, StoreError, VectorError
from cart_qdrant.storage.factory import open_store
from cart_qdrant.storage.protocol import MEDIA, CollectionSpec
from cart_qdrant.storage.server import ServerStore
from cart_qdrant.storage.server_connection import RetryPolicy
from cart_qdrant.storage.server_requests import REQUEST_BYTES
from cart_qdrant.storage.store_info import StoreInfo

URL = "http://qdrant.test:6333"
INFO = {
    "status": "green",
    "optimizer_status": "ok",
    "segments_count": 1,
    "config": {
        "params": {"vectors": {MEDIA: {"size": 4, "distance": "Cosine"}}},
        "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000},
        "optimizer_config": {
            "deleted_threshold": 0.2,
            "vacuum_min_vector_number": 1000,
            "default_segment_number": 0,
            "flush_interval_sec": 5,
        },
    },
    "payload_schema": {},
}
DONE = {"operation_id": 1, "status": "completed"}


def pid(n: int) -> str:
    return str(uuid.UUID(int=n + 1))


def point(n: int, **payload: Any) -> models.PointStruct:
    return models.PointStruct(id=pid(n), vector={MEDIA: [1.0, float(n), 0.0, 0.0]}, payload=payload)


class Server:
    """Answers like Qdrant to the requests that the store makes; `faults` come first."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.faults: list[httpx.Response | Exception] = []
        self.slept: list[float] = []
        self.exists = True
        self.known: set[str] = set()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self.faults:
            fault = self.faults.pop(0)
            if isinstance(fault, Exception):
                raise fault
            return fault
        body = json.loads(request.content) if request.content else {}
        result = self.answer(request.method, request.url.path, body)
        if isinstance(result, httpx.Response):
            return result
        return httpx.Response(200, json={"result": result, "status": "ok", "time": 0.0})

    def answer(self, method: str, path: str, body: Any) -> Any:
        tail = path.removeprefix("/collections/c")
        if tail == "/exists":
            return {"exists": self.exists}
        if tail == "":
            if method == "PUT":
                self.exists = True
            return INFO if method == "GET" else True
        if tail == "/points" and method == "POST":
            return [{"id": i} for i in body["ids"] if i in self.known]
        if tail == "/points/query/batch":
            hit = {"id": pid(1), "version": 1, "score": 0.5}
            return [{"points": [hit]} for _ in body["searches"]]
        if tail == "/points/count":
            return {"count": 3}
        if tail == "/points/batch":
            return [DONE for _ in body["operations"]]
        return DONE

    def store(self, **more: Any) -> ServerStore:
        client = QdrantClient(
            url=URL,
            check_compatibility=False,
            transport=httpx.MockTransport(self),
            api_key=None,
        )
        return ServerStore(client, "c", sleep=self.slept.append, **more)

    def sent(self, path: str) -> list[Any]:
        """Bodies of the requests to a path of the collection."""
        full = f"/collections/c{path}"
        return [json.loads(r.content) for r in self.requests if r.url.path == full and r.content]


@pytest.fixture
def server() -> Server:
    return Server()


def status(code: int, **headers: str) -> httpx.Response:
    return httpx.Response(code, json={"status": {"error": "because"}}, headers=headers)


def test_connecting_sends_nothing_and_bad_addresses_are_named() -> None:
    store = ServerStore.connect("http://192.0.2.1:6333", None, "c", 1)
    assert store.location == "http://192.0.2.1:6333/c"
    info = StoreInfo(kind="server", url="https://x.test:6333", collection="c")
    assert open_store(info, Path()).location == "https://x.test:6333/c"
    with pytest.raises(StoreError, match="not a Qdrant address"):
        ServerStore.connect("http://host:port", None, "c")


def test_writes_wait_and_stay_under_the_request_size(server: Server) -> None:
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


def test_a_bad_vector_sends_nothing(server: Server) -> None:
    with pytest.raises(VectorError, match="zero"):
        server.store().upsert(
            [
                *(point(n) for n in range(2000)),
                models.PointStruct(id=pid(1), vector={MEDIA: [0.0] * 4}),
            ]
        )
    assert server.sent("/points") == []


def test_payloads_go_in_one_request_to_known_points(server: Server) -> None:
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
    assert [b["keys"] for b in server.sent("/points/payload/delete")] == [["cart_2"], ['"a.b"']]


def test_searches_go_in_one_request(server: Server) -> None:
    requests = [models.QueryRequest(query=[1.0, 0, 0, 0], using=MEDIA, limit=n) for n in (1, 2)]
    answers = server.store().query_batch(requests)
    assert [[hit.id for hit in hits] for hits in answers] == [[pid(1)], [pid(1)]]
    (body,) = server.sent("/points/query/batch")
    assert [s["limit"] for s in body["searches"]] == [1, 2]
    # A collection may be quantised: its answers are cosines all the same.
    assert all(s["params"]["quantization"]["rescore"] for s in body["searches"])
    with pytest.raises(VectorError, match="width 2"):
        server.store().query_batch([models.QueryRequest(query=[1.0, 0.0], using=MEDIA)])
    assert len(server.sent("/points/query/batch")) == 1


def test_create_makes_indexes_before_anything_else(server: Server) -> None:
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


def test_create_refuses_another_width_and_metric(server: Server) -> None:
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
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = server.answer

    def old(method: str, path: str, body: Any) -> Any:
        if path.endswith("/index") and body["field_schema"].get("scoring"):
            return status(400)
        return answer(method, path, body)

    monkeypatch.setattr(server, "answer", old)
    server.store().create(CollectionSpec(vectors={MEDIA: 4}, texts=("t",)))
    assert [b["field_schema"].get("scoring") for b in server.sent("/index")] == [True, None]


class GrpcFault(grpc.RpcError):  # type: ignore[misc]
    def __init__(self, code: grpc.StatusCode) -> None:
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "because"


@pytest.mark.parametrize(
    ("code", "says", "calls"),
    [
        (grpc.StatusCode.UNAVAILABLE, "No answer", 2),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "No answer", 2),
        (grpc.StatusCode.PERMISSION_DENIED, "Missing rights", 1),
        (grpc.StatusCode.NOT_FOUND, "no collection", 1),
        (grpc.StatusCode.INVALID_ARGUMENT, "refused a request: because", 1),
    ],
)
def test_errors_of_grpc_mean_the_same(
    server: Server, monkeypatch: pytest.MonkeyPatch, code: Any, says: str, calls: int
) -> None:
    store = server.store(retry=RetryPolicy(attempts=2))
    called: list[str] = []

    def fail(name: str, *_: Any, **__: Any) -> None:
        called.append(name)
        raise GrpcFault(code)

    monkeypatch.setattr(store._client, "count", fail)
    with pytest.raises(StoreError, match=says):
        store.count()
    assert called == ["c"] * calls


@pytest.mark.parametrize(
    "fault",
    [
        lambda: status(429),
        lambda: status(503),
        lambda: httpx.ReadTimeout("slow"),
        lambda: httpx.RemoteProtocolError("gone"),
    ],
)
def test_a_busy_server_is_asked_again(
    server: Server, fault: Callable[[], httpx.Response | Exception]
) -> None:
    server.faults = [fault(), fault(), fault()]
    assert server.store(retry=RetryPolicy(first_delay=1, max_delay=3)).count() == 3
    assert len(server.requests) == 4
    for slept, most in zip(server.slept, (1, 2, 3), strict=True):
        assert most / 2 <= slept <= most


def test_the_wait_that_the_server_asks_for_is_kept(server: Server) -> None:
    server.faults = [status(429, **{"Retry-After": "7"})]
    assert server.store().count() == 3
    assert server.slept == [7]


def test_it_gives_up_in_the_end(server: Server) -> None:
    server.faults = [status(503) for _ in range(9)]
    with pytest.raises(StoreError, match=r"after 3 attempt.*503.*because"):
        server.store(retry=RetryPolicy(attempts=3)).count()
    assert len(server.requests) == 3


def test_an_unreachable_server_is_told_at_once_but_a_restarting_one_is_awaited(
    server: Server,
) -> None:
    store = server.store()
    server.faults = [httpx.ConnectError("refused")]
    with pytest.raises(StoreError, match=r"refused.*Check the URL"):
        store.count()
    assert server.slept == []
    assert store.count() == 3
    server.faults = [httpx.ConnectError("refused")]
    assert store.count() == 3
    assert len(server.slept) == 1


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (401, "Missing rights"),
        (403, "Missing rights"),
        (404, "no collection 'c'"),
        (400, "because"),
    ],
)
def test_refusals_are_not_repeated(server: Server, code: int, says: str) -> None:
    server.faults = [status(code)]
    with pytest.raises(StoreError, match=says):
        server.store().count()
    assert len(server.sent("/points/count")) == 1


def test_an_answer_that_makes_no_sense_is_a_store_error(server: Server) -> None:
    server.faults = [httpx.Response(200, json={"result": {"count": "many"}})]
    with pytest.raises(StoreError):
        server.store().count()


def test_closed(server: Server) -> None:
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


def test_retry_policy_is_checked() -> None:
    with pytest.raises(ConfigError, match="attempts=0"):
        RetryPolicy(attempts=0)


def test_an_old_server_is_named(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = server.answer

    def old(method: str, path: str, body: Any) -> Any:
        if path == "/":
            return httpx.Response(200, json={"title": "qdrant", "version": "1.9.4", "commit": None})
        if path.endswith("/points/query/batch"):
            return httpx.Response(404, json={"status": {"error": "Not Found"}})
        return answer(method, path, body)

    monkeypatch.setattr(server, "answer", old)
    request = models.QueryRequest(query=[1.0] * 4, using=MEDIA)
    with pytest.raises(StoreError, match=r"is Qdrant 1\.9\.4, but this needs 1\.16"):
        server.store().query_batch([request])
