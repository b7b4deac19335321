"""Requests to the embedded engine: what it lacks is named."""

from __future__ import annotations

import pytest
from qdrant_client import models

from cart_qdrant.errors import StoreError
from cart_qdrant.storage.edge import EdgeStore
from cart_qdrant.storage.protocol import MEDIA
from tests.unit.storage.points import nearest, pid, point, where


def test_booleans_match(store: EdgeStore) -> None:
    store.upsert([point(1, flag=True), point(2, flag=False), point(3, flag=1)])
    assert [r.id for r in store.scroll(where("flag", True))] == [pid(1)]
    assert [r.id for r in store.scroll(where("flag", False))] == [pid(2)]
    assert [r.id for r in store.scroll(where("flag", 1))] == [pid(3)]


Slice = models.SliceCondition(slice=models.Slice(total=2, index=0))
Geo = models.FieldCondition(
    key="g", geo_radius=models.GeoRadius(center=models.GeoPoint(lon=0, lat=0), radius=1)
)


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (nearest(filter=models.Filter(must=[Slice])), "SliceCondition"),
        (nearest(filter=models.Filter(must_not=[models.Filter(should=[Geo])])), "geo_radius"),
        (nearest(lookup_from=models.LookupLocation(collection="x")), "lookup_from"),
        (nearest(shard_key="a"), "shard_key"),
        (
            models.QueryRequest(query=models.SampleQuery(sample=models.Sample.RANDOM)),
            "SampleQuery",
        ),
        (models.QueryRequest(query=pid(1), using=MEDIA), "point id"),
        (
            models.QueryRequest(
                query=models.NearestQuery(nearest=[1.0] * 4, mmr=models.Mmr()), using=MEDIA
            ),
            "NearestQuery",
        ),
    ],
)
def test_what_the_engine_lacks_is_named(
    store: EdgeStore, request_: models.QueryRequest, named: str
) -> None:
    with pytest.raises(StoreError, match=f"does not support.*{named}"):
        store.query_batch([request_])


def test_a_condition_needs_exactly_one_test(store: EdgeStore) -> None:
    for more in ({}, {"range": models.Range(gt=1), "match": models.MatchValue(value=1)}):
        with pytest.raises(StoreError, match="one is needed"):
            store.count(models.Filter(must=[models.FieldCondition(key="k", **more)]))
