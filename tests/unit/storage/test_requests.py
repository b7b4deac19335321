"""Plain requests become the client's."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
from qdrant_client import models

from cart_qdrant.storage import requests as qdrant


def test_a_request_becomes_the_clients() -> None:
    only = qdrant.Filter(
        must=[
            qdrant.FieldCondition(key="year", range=qdrant.Range(gte=2000)),
            qdrant.Filter(
                should=[
                    qdrant.FieldCondition(key="a", match=qdrant.MatchAny(any=["x", "y"])),
                    models.HasIdCondition(has_id=[1]),  # of the client already
                ]
            ),
        ],
        must_not=[qdrant.IsEmptyCondition(is_empty=qdrant.PayloadField(key="b"))],
    )
    asked = qdrant.QueryRequest(
        query=np.asarray([1.0, 0.0], np.float32), using="media", filter=only, limit=3,
        params=qdrant.SearchParams(exact=True, acorn=qdrant.AcornSearchParams(enable=True)),
        with_payload=["path"],
    )  # fmt: skip
    assert qdrant.to_client(asked) == models.QueryRequest(
        query=[1.0, 0.0], using="media", limit=3, with_payload=["path"],
        params=models.SearchParams(
            exact=True, indexed_only=False, acorn=models.AcornSearchParams(enable=True)
        ),
        filter=models.Filter(
            must=[
                models.FieldCondition(key="year", range=models.Range(gte=2000)),
                models.Filter(
                    should=[
                        models.FieldCondition(key="a", match=models.MatchAny(any=["x", "y"])),
                        models.HasIdCondition(has_id=[1]),
                    ]
                ),
            ],
            must_not=[models.IsEmptyCondition(is_empty=models.PayloadField(key="b"))],
        ),
    )  # fmt: skip


def test_what_is_the_clients_or_nothing_stays() -> None:
    theirs = models.Filter(must=[models.HasVectorCondition(has_vector="media")])
    assert qdrant.to_client(theirs) is theirs
    assert qdrant.to_client(None) is None
    when = qdrant.DatetimeRange(gte=datetime(2020, 1, 1, tzinfo=UTC))
    assert qdrant.to_client(when) == models.DatetimeRange(gte=datetime(2020, 1, 1, tzinfo=UTC))
    assert qdrant.to_client(qdrant.TextQuery(text="a")) == models.TextQuery(text="a")
