"""The fixture of a real server spares what others keep on it."""

from __future__ import annotations

import pytest
from qdrant_client import QdrantClient, models

from tests.conftest import TEST_COLLECTIONS, Server


def test_emptying_a_server_leaves_the_collections_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = QdrantClient(":memory:")
    params = models.VectorParams(size=2, distance=models.Distance.COSINE)
    theirs = ["media", f"my-{TEST_COLLECTIONS}", TEST_COLLECTIONS.upper()]
    for name in (*theirs, f"{TEST_COLLECTIONS}media", f"{TEST_COLLECTIONS}photos"):
        client.create_collection(name, params)
    left: list[str] = []

    def close(**_: object) -> None:
        left.extend(one.name for one in client.get_collections().collections)

    monkeypatch.setattr(client, "close", close)
    monkeypatch.setattr(Server, "client", lambda self: client)
    Server("http://qdrant.test:6333", None).empty()
    assert sorted(left) == sorted(theirs)
