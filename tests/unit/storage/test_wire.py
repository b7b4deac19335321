"""Messages between processes: what comes out is what went in."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import models

from cart_qdrant.errors import StoreError
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.protocol import CollectionInfo, VectorInfo
from cart_qdrant.storage.wire import LENGTHS, from_bytes, to_bytes


def passed(thing: Any) -> Any:
    data = to_bytes(thing)
    text, arrays = LENGTHS.unpack_from(data)
    body = data[LENGTHS.size :]
    assert len(body) == text + arrays
    return from_bytes(body[:text], body[text:])


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("$"), inner),
)
floats = st.lists(st.floats(allow_nan=False), min_size=40, max_size=60)


@given(plain | floats)
def test_plain_values_come_back_exactly(thing: Any) -> None:
    assert passed(thing) == thing


def test_long_lists_of_mixed_numbers_keep_their_types() -> None:
    mixed = [1.0, 2, True, None, *[0.5] * 40]
    back = passed(mixed)
    assert back == mixed and [type(one) for one in back] == [type(one) for one in mixed]


@given(st.dictionaries(st.text(), plain), st.lists(st.floats(width=32, allow_nan=False)))
def test_points_come_back_with_payload_and_vectors(payload: dict[str, Any], x: list[float]) -> None:
    record = qdrant.Record(id=str(uuid.UUID(int=7)), payload=payload, vector={"media": x})
    hit = qdrant.ScoredPoint(id="3", score=0.1, payload=payload)
    assert passed([record, [hit]]) == [record, [hit]]


def test_requests_come_back_whichever_classes_they_are_of() -> None:
    when = datetime(2020, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
    ours = qdrant.Filter(
        must=[
            qdrant.FieldCondition(key="a", match=qdrant.MatchAny(any=["x", "y"])),
            qdrant.FieldCondition(key="d", range=qdrant.DatetimeRange(gte=when)),
            models.FieldCondition(key="b", match=models.MatchExcept(**{"except": [1]})),
        ],
        must_not=[qdrant.IsEmptyCondition(is_empty=qdrant.PayloadField(key="c"))],
    )
    assert passed(ours) == ours
    theirs = models.Filter(
        min_should=models.MinShould(
            conditions=[models.HasIdCondition(has_id=[3, str(uuid.UUID(int=3))])], min_count=1
        ),
        must=[models.FieldCondition(key="d", range=models.DatetimeRange(lt=when))],
    )
    assert passed(theirs) == theirs
    query = np.arange(50, dtype=np.float32)
    back = passed(qdrant.QueryRequest(query=query, using="media", filter=ours, limit=3))
    assert back.filter == ours and back.limit == 3 and back.params is None
    np.testing.assert_array_equal(back.query, query)
    assert back.query.dtype == np.float32
    found = qdrant.FoundIds(ids=[uuid.UUID(int=9), 4], scores=[0.5, 0.25])
    assert passed(found) == qdrant.FoundIds(ids=[str(uuid.UUID(int=9)), 4], scores=[0.5, 0.25])
    info = CollectionInfo({"media": VectorInfo(4)}, {"a": "keyword", "b": "float"})
    assert passed(info) == info


def test_what_has_no_form_is_refused() -> None:
    for thing in (object(), {1: "a"}, {"a": [object()]}):
        with pytest.raises(StoreError, match="cannot be sent"):
            to_bytes(thing)


@pytest.mark.parametrize("text", ['{"$":"os.system","of":"x"}', '{"$":"Path","of":[]}'])
def test_nothing_else_is_made_from_a_message(text: str) -> None:
    with pytest.raises(StoreError, match="not known"):
        from_bytes(text.encode(), b"")
