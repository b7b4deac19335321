"""Vectors are checked before anything is written, and brought to unit length."""

from __future__ import annotations

from typing import Any

import pytest
from qdrant_client import models

from cart_qdrant.errors import VectorError
from cart_qdrant.storage.edge import EdgeStore
from cart_qdrant.storage.protocol import MEDIA
from tests.unit.storage.points import nearest, pid, point


@pytest.mark.parametrize(
    ("vector", "says"),
    [
        ({MEDIA: [1.0, float("nan"), 0, 0]}, "NaN or infinity"),
        ({MEDIA: [1.0, float("inf"), 0, 0]}, "NaN or infinity"),
        ({MEDIA: [0.0, 0.0, 0, 0]}, "zero"),
        ({MEDIA: [1.0, 2.0, 3.0]}, "width 3; the collection has 4"),
        ({MEDIA: 3}, "width int"),
        ({MEDIA: ["a", "b", "c", "d"]}, "not made of numbers"),
        ({"other": [1.0, 0, 0, 0]}, r"'other'.*\['media'\]"),
        ([1.0, 0, 0, 0], "has no name"),
    ],
)
def test_a_bad_vector_refuses_its_whole_batch(store: EdgeStore, vector: Any, says: str) -> None:
    bad = models.PointStruct.model_construct(id=pid(2), vector=vector, payload={})
    with pytest.raises(VectorError, match=says):
        store.upsert([point(1), bad, point(3)])
    assert store.count() == 0


def test_bad_queries_and_names_are_vector_errors(store: EdgeStore) -> None:
    for request in (
        models.QueryRequest(query=[1.0, 2.0], using=MEDIA),
        models.QueryRequest(query=[1.0, 2.0, 3.0, 4.0]),
        models.QueryRequest(query=models.NearestQuery(nearest=[0.0] * 4), using=MEDIA),
        models.QueryRequest(
            prefetch=models.Prefetch(query=[float("nan")] * 4, using=MEDIA),
            query=models.FusionQuery(fusion=models.Fusion.RRF),
        ),
    ):
        with pytest.raises(VectorError):
            store.query_batch([request])
    with pytest.raises(VectorError, match="'other'"):
        store.retrieve([pid(1)], with_vectors=["other"])
    with pytest.raises(VectorError, match="'other'"):
        list(store.scroll(with_vectors=["other"]))


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e30])
def test_very_short_and_long_vectors_keep_their_direction(store: EdgeStore, scale: float) -> None:
    vector = [3 * scale, 4 * scale, 0.0, 0.0]
    store.upsert([models.PointStruct(id=pid(1), vector={MEDIA: vector}, payload={})])
    ((hit,),) = store.query_batch([nearest(with_vector=[MEDIA])])
    assert hit.score == pytest.approx(0.6)
    assert isinstance(hit.vector, dict)
    assert hit.vector[MEDIA] == pytest.approx([0.6, 0.8, 0, 0])
