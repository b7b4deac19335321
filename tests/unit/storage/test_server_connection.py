"""Requests to a server: repeated while it is busy, errors mapped."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import pytest
from qdrant_client import QdrantClient, models

from cart_qdrant.errors import ConfigError, StoreError
from cart_qdrant.storage import requests
from cart_qdrant.storage.protocol import MEDIA, CollectionSpec
from cart_qdrant.storage.server import ServerStore
from cart_qdrant.storage.server_connection import RetryPolicy
from tests.unit.storage.fake_server import FakeServer, status
from tests.unit.storage.points import pid


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
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, code: Any, says: str, calls: int
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
    server: FakeServer, fault: Callable[[], httpx.Response | Exception]
) -> None:
    server.faults = [fault(), fault(), fault()]
    assert server.store(retry=RetryPolicy(first_delay=1, max_delay=3)).count() == 3
    assert len(server.requests) == 4
    for slept, most in zip(server.slept, (1, 2, 3), strict=True):
        assert most / 2 <= slept <= most


def test_the_wait_that_the_server_asks_for_is_kept(server: FakeServer) -> None:
    server.faults = [status(429, **{"Retry-After": "7"})]
    assert server.store().count() == 3
    assert server.slept == [7]


def test_it_gives_up_in_the_end(server: FakeServer) -> None:
    server.faults = [status(503) for _ in range(9)]
    with pytest.raises(StoreError, match=r"after 3 attempt.*503.*because"):
        server.store(retry=RetryPolicy(attempts=3)).count()
    assert len(server.requests) == 3


def test_an_unreachable_server_is_told_at_once_but_a_restarting_one_is_awaited(
    server: FakeServer,
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
def test_refusals_are_not_repeated(server: FakeServer, code: int, says: str) -> None:
    server.faults = [status(code)]
    with pytest.raises(StoreError, match=says):
        server.store().count()
    assert len(server.sent("/points/count")) == 1


def test_an_answer_that_makes_no_sense_is_a_store_error(server: FakeServer) -> None:
    server.faults = [httpx.Response(200, json={"result": {"count": "many"}})]
    with pytest.raises(StoreError):
        server.store().count()


def test_retry_policy_is_checked() -> None:
    with pytest.raises(ConfigError, match="attempts=0"):
        RetryPolicy(attempts=0)


def test_an_old_server_is_named(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_threads_take_turns_in_local_mode() -> None:
    """The arrays of local mode grow in place, and a search beside a write would read half of it."""
    client = QdrantClient(":memory:")
    writer = ServerStore(client, "media", owned=False)
    writer.create(CollectionSpec(vectors={MEDIA: 4}, keywords=[], texts=[]))
    request = requests.QueryRequest(query=[1.0, 0.0, 0.0, 0.0], using=MEDIA, limit=5)
    done = threading.Event()

    def write() -> None:
        try:
            for n in range(200):
                vector = {MEDIA: [1.0, float(n), 0.0, 0.0]}
                writer.upsert([models.PointStruct(id=pid(n), vector=vector, payload={})])
        finally:
            done.set()

    def read(_: int) -> None:
        reader = ServerStore(client, "media", owned=False)
        while not done.is_set():
            reader.query_ids([request])

    with ThreadPoolExecutor(5) as pool:
        readers = pool.map(read, range(4))
        pool.submit(write).result()
        assert list(readers) == [None] * 4
    client.close()
