"""Searches on a server are run as in the embedded store, within what the server allows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from qdrant_client import models

from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.protocol import MEDIA
from cart_qdrant.storage.search_params import EXACT_MULTIPLICATIONS, HNSW_EF, graph_params
from cart_qdrant.storage.server_search import SearchLimits
from tests.unit.storage.fake_server import FakeServer

MANY = EXACT_MULTIPLICATIONS  # points of width 4
FILTER = qdrant.Filter(
    must=[qdrant.FieldCondition(key="year", match=qdrant.MatchValue(value="2020"))]
)


def params(server: FakeServer, **more: Any) -> dict[str, Any]:
    """Parameters of the last search that was sent."""
    request = qdrant.QueryRequest(query=[1.0, 0, 0, 0], using=MEDIA, **more)
    server.store().query_batch([request])
    found: dict[str, Any] = server.sent("/points/query/batch")[-1]["searches"][0]["params"]
    return found


def test_a_small_collection_is_compared_one_by_one(server: FakeServer) -> None:
    server.points = EXACT_MULTIPLICATIONS // 4
    assert params(server, limit=10)["exact"] is True
    server.points += 1
    assert not params(server, limit=10).get("exact")


@pytest.mark.parametrize(("limit", "ef"), [(10, HNSW_EF), (128, 256), (500, 1000), (None, 256)])
def test_a_large_one_is_searched_by_a_graph_as_wide_as_the_answer(
    server: FakeServer, limit: int | None, ef: int
) -> None:
    server.points = MANY
    found = params(server, limit=limit)
    assert found["hnsw_ef"] == ef and found["acorn"]["enable"] is False
    assert found["quantization"]["rescore"] is True
    filtered = params(server, limit=limit, filter=FILTER)
    assert filtered["hnsw_ef"] == ef and filtered["acorn"]["enable"] is True
    # What the embedded store asks of its engine in the same case.
    same = qdrant.to_client(graph_params(limit or 10, filtered=True))
    assert models.SearchParams.model_validate(filtered) == same


def test_parameters_of_the_caller_stay(server: FakeServer) -> None:
    server.points = MANY
    assert params(server, params=qdrant.SearchParams(exact=True))["exact"] is True
    assert params(server, params=qdrant.SearchParams(hnsw_ef=7))["hnsw_ef"] == 7


def test_strict_mode_is_obeyed(server: FakeServer) -> None:
    server.points = 10
    server.strict = {
        "enabled": True, "search_allow_exact": False, "search_max_hnsw_ef": 100,
        "search_max_oversampling": 1.5,
    }  # fmt: skip
    for given in (None, qdrant.SearchParams(exact=True)):
        found = params(server, limit=200, params=given)
        assert not found.get("exact") and found["hnsw_ef"] == 100
        assert found["quantization"]["oversampling"] == 1.5
    server.strict["enabled"] = False
    assert params(server, limit=200)["exact"] is True


def test_the_size_is_not_asked_for_with_each_search(server: FakeServer) -> None:
    store = server.store()
    vector = np.array([1, 0, 0, 0], np.float32)
    for _ in range(5):
        store.query_batch([qdrant.QueryRequest(query=vector, using=MEDIA)])
    asked = [r for r in server.requests if r.url.path == "/collections/c"]
    assert len(asked) == 2  # its vectors, its size
    assert store._limits() == SearchLimits(points=0)


def test_a_search_by_words_has_no_parameters(server: FakeServer) -> None:
    text = qdrant.QueryRequest(query=qdrant.TextQuery(text="dog"), using="captions[].text")
    server.store().query_batch([text])
    assert server.sent("/points/query/batch")[-1]["searches"][0].get("params") is None
