"""The DSPy retriever, alone, as the configured one, and in a program."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cart_qdrant.search.filters import parse_filter
from cart_qdrant.search.retriever import Retriever

pytest.importorskip("dspy", reason='not installed: pip install "cart-qdrant[dspy]"')

import dspy

from cart_qdrant_dspy import CartQdrantRM

QUERY = "a dog on a surfboard"


def test_it_gives_passages_hits_and_scores(small_index: Path) -> None:
    with Retriever.open(small_index) as engine:
        expected = engine.search(QUERY, k=3, lane="fused").hits
        media = CartQdrantRM(engine, k=3, lane="fused")
        found = media(QUERY)
        assert [hit["id"] for hit in found.hits] == [hit.id for hit in expected]
        assert found.scores == [hit.score for hit in expected]
        assert found.passages[0] == f"media/picture-0.png: {QUERY}"
        later = asyncio.run(media.aforward(QUERY, k=1))
        assert later.passages == found.passages[:1]
        films = CartQdrantRM(engine, lane="fused", filter=parse_filter(["modality=video"]))
        (first, *_) = films("a beach").passages
        assert first.startswith("media/clip.mp4 ") and " s: a beach" in first


def test_retrieve_uses_it_when_configured(small_index: Path) -> None:
    with Retriever.open(small_index) as engine:
        with dspy.context(rm=CartQdrantRM(engine, lane="fused")):
            found = dspy.Retrieve(k=2)(QUERY)
        assert len(found.passages) == 2
        assert found.passages[0] == f"media/picture-0.png: {QUERY}"


def test_a_program_answers_from_it(small_index: Path) -> None:
    """A scripted model: what it is asked holds the passage; what it says is the answer."""
    lm = dspy.utils.DummyLM([{"answer": "in media/picture-0.png"}])

    class Ask(dspy.Module):  # type: ignore[misc]
        def __init__(self, media: CartQdrantRM) -> None:
            super().__init__()
            self.media = media
            self.answer = dspy.Predict("context: list[str], question: str -> answer: str")

        def forward(self, question: str) -> Any:
            return self.answer(context=self.media(question).passages, question=question)

    with Retriever.open(small_index) as engine, dspy.context(lm=lm):
        answer = Ask(CartQdrantRM(engine, k=1, lane="fused"))(question=QUERY)
    assert answer.answer == "in media/picture-0.png"
    assert f"media/picture-0.png: {QUERY}" in str(lm.history[-1]["messages"])
