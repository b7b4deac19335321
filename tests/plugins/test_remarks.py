"""What a search remarks on its answer reaches the users of each framework."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cart_qdrant.index.index import Index
from cart_qdrant.search.lanes import LANES
from cart_qdrant.search.retriever import Retriever
from tests.many_points import GivenTexts, make_index

REASON = "no text reaches the media vectors before training"


@pytest.fixture
def deaf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Retriever]:
    """Over an attached, untrained collection of vectors that no text reaches, without vectors of
    captions: it answers no text."""
    monkeypatch.setattr(Index, "text_encoder", lambda self: GivenTexts())
    with make_index(tmp_path / ".cartq", "attached", caption_vectors=False) as index:
        yield Retriever(index)


def langchain(retriever: Retriever) -> list[Any]:
    pytest.importorskip("langchain_core", reason="not installed: langchain")
    from cart_qdrant_langchain import CartQdrantRetriever

    found: list[Any] = CartQdrantRetriever(retriever=retriever).invoke("waves")
    return found


def llamaindex(retriever: Retriever) -> list[Any]:
    pytest.importorskip("llama_index.core", reason="not installed: llama-index")
    from cart_qdrant_llamaindex import CartQdrantRetriever

    found: list[Any] = CartQdrantRetriever(retriever).retrieve("waves")
    return found


def haystack(retriever: Retriever) -> list[Any]:
    pytest.importorskip("haystack", reason="not installed: haystack")
    from cart_qdrant_haystack import CartQdrantRetriever

    found: list[Any] = CartQdrantRetriever(retriever=retriever).run("waves")["documents"]
    return found


def dspy(retriever: Retriever) -> list[Any]:
    pytest.importorskip("dspy", reason="not installed: dspy")
    from cart_qdrant_dspy import CartQdrantRM

    found = CartQdrantRM(retriever)("waves")
    assert any(REASON in line for line in found.remarks)
    passages: list[Any] = found.passages
    return passages


@pytest.mark.parametrize("host", [langchain, llamaindex, haystack, dspy])
def test_an_empty_answer_is_explained_in_the_log(
    deaf: Retriever, caplog: pytest.LogCaptureFixture, host: Callable[[Retriever], list[Any]]
) -> None:
    with caplog.at_level(logging.INFO, "cart_qdrant"):
        assert host(deaf) == []
    told = [r for r in caplog.records if r.name == "cart_qdrant" and REASON in r.getMessage()]
    assert [record.levelno for record in told] == [logging.WARNING]
    assert "'waves'" in told[0].getMessage()


def test_an_empty_answer_is_explained_by_mcp(deaf: Retriever) -> None:
    pytest.importorskip("mcp", reason="not installed: mcp")
    from mcp import Client

    from cart_qdrant_mcp import make_server

    async def ask() -> Any:
        async with Client(make_server(deaf)) as client:
            return await client.call_tool("search_media", {"query": "waves"})

    answer = asyncio.run(ask()).structured_content
    assert answer["hits"] == [] and any(REASON in line for line in answer["remarks"])


@pytest.mark.parametrize("lane", [lane for lane in LANES if lane != "caption"])
def test_no_lane_is_silent(deaf: Retriever, lane: Any) -> None:
    found = deaf.search("zebra", lane=lane)
    assert found.hits == []
    reason = "no caption holds a word" if lane == "bm25" else REASON
    assert any(reason in line for line in json.loads(json.dumps(found.to_json()))["remarks"])
