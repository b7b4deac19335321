"""Payloads are stored as plain JSON, or refused."""

from __future__ import annotations

import numpy as np
import pytest

from cart_qdrant.errors import StoreError
from cart_qdrant.storage.edge import EdgeStore
from tests.unit.storage.points import pid, point


def test_payloads_come_back_as_plain_json(store: EdgeStore) -> None:
    given = {"i": np.int64(3), "f": np.float32(0.5), "t": (1, "a"), "ü": "日本", "big": 2**62}
    store.upsert([point(1, **given)])
    (row,) = store.retrieve([pid(1)])
    assert row.payload == {"n": 1, "i": 3, "f": 0.5, "t": [1, "a"], "ü": "日本", "big": 2**62}


@pytest.mark.parametrize(
    "value", [float("nan"), 2**64, {1: "a"}, {"a": object()}, "a\udcff", {"a\udcff": 1}, b"x"]
)
def test_payloads_without_a_json_form_are_refused(store: EdgeStore, value: object) -> None:
    with pytest.raises(StoreError, match="payload"):
        store.upsert([point(1), point(2, bad=value)])
    with pytest.raises(StoreError, match="payload"):
        store.set_payload([(pid(1), {"bad": value})])
    assert store.count() == 0
