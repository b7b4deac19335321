"""Whatever is asked is answered, or refused by an error of ours."""

from __future__ import annotations

from pathlib import Path

import pytest
from qdrant_client import models

from cart_qdrant.errors import CartError, UsageError
from cart_qdrant.search.filters import parse_filter
from cart_qdrant.search.query import Part, Query
from cart_qdrant.search.retriever import Retriever
from cart_qdrant.storage import requests as qdrant


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "caf\udce9"])
def test_a_query_that_is_not_utf8_is_refused(small_index: Path, text: str) -> None:
    """As a terminal that is not UTF-8 sends it; the tokenizer raised a `TypeError`."""
    with Retriever.open(small_index) as retriever, pytest.raises(UsageError, match="not UTF-8"):
        retriever.search(text)
    with pytest.raises(UsageError, match="not UTF-8"):
        Query((Part("text", "a dog"), Part("text", text, -1.0)))


@pytest.mark.parametrize(
    "key", ["a[99999999999999999999]", "a[x]", "a[", "a..b", "", "[]", "a b\0"]
)
def test_a_key_that_the_engine_cannot_read_is_refused(small_index: Path, key: str) -> None:
    """The engine raised a `ValueError`."""
    match = models.MatchValue(value="1")
    theirs = models.Filter(must=[models.FieldCondition(key=key, match=match)])
    ours = qdrant.Filter(must=[qdrant.FieldCondition(key=key, match=qdrant.MatchValue(value="1"))])
    empty = qdrant.Filter(must=[qdrant.IsEmptyCondition(is_empty=qdrant.PayloadField(key=key))])
    with Retriever.open(small_index) as retriever:
        for condition in (theirs, ours, empty):
            try:
                retriever.search("a dog", filter=condition)
            except CartError as error:
                assert "cannot be read" in str(error)


def test_an_index_of_a_list_is_a_number_that_fits() -> None:
    assert parse_filter(["a[999999999]=1"]) is not None
    with pytest.raises(UsageError, match="not a payload key"):
        parse_filter(["a[1234567890]=1"])


@pytest.mark.parametrize(
    "query",
    ["\0", "a" * 100_000, "\u202egod", "[" * 100_000, "\n" * 50_000 + "a", "\ufeff", "犬" * 5_000],
)
def test_an_odd_query_is_answered(small_index: Path, query: str) -> None:
    with Retriever.open(small_index) as retriever:
        for lane in ("auto", "bm25", "rrf"):
            assert retriever.search(query, lane=lane, k=1).query == query
