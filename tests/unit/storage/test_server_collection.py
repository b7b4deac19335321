"""Work on a whole collection of a server is sent once and awaited, however long it takes."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from cart_qdrant.errors import MismatchError, StoreError, UsageError
from cart_qdrant.storage.protocol import MEDIA, CollectionSpec
from cart_qdrant.storage.server import ServerStore
from cart_qdrant.storage.server_connection import LONGEST_WAIT, RetryPolicy, default_timeout
from tests.unit.storage.fake_server import FakeServer, status


def sent(server: FakeServer, method: str, tail: str) -> list[httpx.Request]:
    return [
        request for request in server.requests
        if request.method == method and request.url.path.startswith(f"/collections/c{tail}")
    ]  # fmt: skip


def test_an_index_that_takes_long_is_asked_for_once(server: FakeServer) -> None:
    server.busy = 40
    server.store().create_keyword_index("year")
    (request,) = sent(server, "PUT", "/index")
    assert request.url.params["wait"] == "false"
    assert len(sent(server, "GET", "")) >= 40
    pauses = server.slept
    assert len(pauses) >= 38 and pauses == sorted(pauses) and max(pauses) <= 8


def test_an_index_that_is_there_is_not_made_again(server: FakeServer) -> None:
    store = server.store()
    for _ in range(3):
        store.create(CollectionSpec(vectors={MEDIA: 4}, keywords=("year",), texts=("words",)))
    assert len(sent(server, "PUT", "/index")) == 2


def test_an_index_whose_request_is_lost_is_asked_for_again(server: FakeServer) -> None:
    store = server.store()
    assert store.info().indexed == frozenset()
    server.faults = [httpx.ReadTimeout("slow")]
    store.create_keyword_index("year")
    assert store.info().indexed == {"year"}
    store.drop_index("year")
    (request,) = sent(server, "DELETE", "/index")
    assert request.url.params["wait"] == "false" and store.info().indexed == frozenset()


def test_a_server_that_never_ends_is_told(server: FakeServer) -> None:
    server.busy = 10**9
    with pytest.raises(StoreError, match=r"not finished the index of 'year' after 4 hours"):
        server.store().create_keyword_index("year")
    assert LONGEST_WAIT <= sum(server.slept) <= LONGEST_WAIT + 20


def test_a_field_of_all_points_is_removed_once(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The removal is accepted at once; what waits for it is a request that changes nothing, which
    may be sent as often as it times out."""
    answer, slow = server.answer, [12]

    def busy(method: str, path: str, body: Any) -> Any:
        if path.endswith("/payload/delete") and body["keys"] == ["cartq"] and slow[0]:
            slow[0] -= 1
            raise httpx.ReadTimeout("slow")
        return answer(method, path, body)

    monkeypatch.setattr(server, "answer", busy)
    server.store(retry=RetryPolicy(attempts=2)).delete_payload_key("cart_2")
    bodies = [(r.url.params["wait"], json.loads(r.content)) for r in server.requests]
    removals = [wait for wait, body in bodies if body["keys"] == ["cart_2"]]
    assert removals == ["false"]
    others = [(wait, body["filter"]) for wait, body in bodies if body["keys"] == ["cartq"]]
    assert len(others) == 13 and {wait for wait, _ in others} == {"true"}
    nobody = {"must": [{"has_id": ["00000000-0000-0000-0000-000000000000"]}]}
    assert all(only == nobody for _, only in others)


def test_a_vector_is_added_once_though_its_answer_is_lost(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = server.answer
    calls: list[str] = []

    def lost(method: str, path: str, body: Any) -> Any:
        if "/vectors/" in path and method == "PUT":
            calls.append(path)
            if len(calls) == 1:
                server.vectors["cart_caption"] = {"size": 384, "distance": "Cosine"}
                raise httpx.ReadTimeout("slow")
            return status(400)  # Qdrant: the vector exists already
        return answer(method, path, body)

    monkeypatch.setattr(server, "answer", lost)
    store = server.store()
    store.add_vector("cart_caption", 384)
    assert len(calls) == 2
    store.add_vector("cart_caption", 384)
    assert len(calls) == 2
    with pytest.raises(MismatchError, match=r"384.*100"):
        store.add_vector("cart_caption", 100)
    with pytest.raises(StoreError, match=r"Qdrant 1\.18"):
        store.add_vector("another", 384)


def test_the_time_to_wait_for_an_answer_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CARTQ_TIMEOUT", raising=False)
    assert default_timeout() == 30
    monkeypatch.setenv("CARTQ_TIMEOUT", "120")
    assert default_timeout() == 120
    assert ServerStore.connect("http://h")._client.init_options["timeout"] == 120
    assert ServerStore.connect("http://h", timeout=7)._client.init_options["timeout"] == 7
    for wrong in ("0", "-1", "1.5", "soon", "9" * 5000, "²"):
        monkeypatch.setenv("CARTQ_TIMEOUT", wrong)
        with pytest.raises(UsageError, match="CARTQ_TIMEOUT"):
            ServerStore.connect("http://h")
