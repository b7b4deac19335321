"""Texts that come no nearer than meaningless ones get a remark."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.index.collection import TEXT_DIM
from cart_qdrant.index.index import Index
from cart_qdrant.search.background import MEANINGLESS, Background
from cart_qdrant.search.filters import parse_filter
from cart_qdrant.search.query import Part, Query
from cart_qdrant.search.retriever import Retriever
from tests.many_points import DIM, GivenEmbedder, make_index, open_retriever

FAR = "nothing is surely close"


def vectors_of(texts: Sequence[str], width: int) -> FloatArray:
    """`waves` are near the film, `nowhere` is far from all; other texts have chance vectors."""
    out = []
    for text in texts:
        x = np.random.default_rng(zlib.crc32(text.encode())).normal(size=width)
        sign = {"waves": 1.0, "nowhere": -1.0}.get(text)
        out.append(x / np.linalg.norm(x) if sign is None else sign * np.eye(width)[0])
    return np.asarray(out, np.float32)


class Texts:
    def embed(self, texts: Sequence[str], *, batch: int = 64) -> FloatArray:
        return vectors_of(texts, TEXT_DIM)


class Embedder(GivenEmbedder):
    def embed_text(self, texts: Sequence[str], space: str) -> FloatArray:
        return vectors_of(texts, DIM)


@pytest.fixture
def retriever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Retriever]:
    for name in ("text_encoder", "query_text_encoder"):
        monkeypatch.setattr(Index, name, lambda self: Texts())
    monkeypatch.setattr(Index, "text_anchors", lambda self: None)
    monkeypatch.setattr(Index, "embedder", lambda self: Embedder())
    with make_index(tmp_path / ".cartq", "embedded") as index:
        yield open_retriever(index)


def told(remarks: Sequence[str]) -> list[str]:
    return [line for line in remarks if FAR in line]


@pytest.mark.parametrize("lane", ["auto", "fused", "dense", "caption", "rrf", "generative"])
def test_a_text_far_from_everything_is_remarked(retriever: Retriever, lane: Any) -> None:
    found = retriever.search("nowhere", lane=lane)
    assert found.hits  # they are shown all the same
    (line,) = told(found.remarks)
    numbers = [float(one) for one in re.findall(r"-?\d\.\d\d", line)]
    assert len(numbers) in (2, 4)
    for best, level in zip(numbers[::2], numbers[1::2], strict=True):
        assert best <= level
    if lane == "dense":
        similarities = [hit.similarity for hit in found.hits if hit.similarity is not None]
        assert max(similarities) == pytest.approx(numbers[0], abs=0.006)


@pytest.mark.parametrize("lane", ["auto", "fused", "dense", "caption", "rrf", "generative"])
def test_a_text_near_something_is_not(retriever: Retriever, lane: Any) -> None:
    assert not told(retriever.search("waves", lane=lane).remarks)


def test_most_meaningless_texts_are_remarked(retriever: Retriever) -> None:
    found = retriever.search_many(list(MEANINGLESS), lane="dense")
    assert sum(bool(told(one.remarks)) for one in found) == round(0.9 * len(MEANINGLESS))


def test_nothing_is_compared_where_it_says_nothing(
    retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for a caption that is surely close, nor within a filter, nor for other queries."""

    def refuse(_: Background, names: set[str]) -> dict[str, float]:
        raise AssertionError(names)

    monkeypatch.setattr(Background, "_measured", refuse)
    retriever.search("waves")
    retriever.search("nowhere", filter=parse_filter(["parity=1"]))
    retriever.search("nowhere", lane="bm25")
    retriever.search(Query((Part("like", "photo-03.jpg"),)))
    with pytest.raises(AssertionError, match="visual"):
        retriever.search("nowhere")
