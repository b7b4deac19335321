"""A small collection for the tests of the stores."""

from __future__ import annotations

import uuid
from typing import Any

from qdrant_client import models

from cart_qdrant.storage.protocol import MEDIA, CollectionSpec

SPEC = CollectionSpec(vectors={MEDIA: 4}, keywords=("cart.id",), texts=("captions[].text",))


def point(n: int, **payload: Any) -> models.PointStruct:
    vector = {MEDIA: [1.0, float(n), 0.0, 0.0]}
    return models.PointStruct(id=pid(n), vector=vector, payload={"n": n, **payload})


def pid(n: int) -> str:
    return str(uuid.UUID(int=n + 1))


def where(key: str, value: str | int | bool) -> models.Filter:
    match = models.MatchValue(value=value)
    return models.Filter(must=[models.FieldCondition(key=key, match=match)])


def nearest(**more: Any) -> models.QueryRequest:
    return models.QueryRequest(query=[1.0, 0.0, 0.0, 0.0], using=MEDIA, **more)
