"""Ids of points: their canonical text, and keys that sort as they do."""

from __future__ import annotations

import uuid

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cart_qdrant.arrays.point_ids import as_id, key_of, keys_of, wire_id
from cart_qdrant.errors import StoreError

IDS = st.one_of(st.uuids(), st.integers(min_value=0, max_value=2**64 - 1))


@given(st.uuids())
def test_a_uuid_has_one_canonical_text(one: uuid.UUID) -> None:
    for written in (one, str(one), str(one).upper(), f"urn:uuid:{one}"):
        assert as_id(written) == wire_id(as_id(written)) == str(one)


@given(st.integers(min_value=0, max_value=2**64 - 1))
def test_a_number_of_64_bits_stays_a_number(one: int) -> None:
    assert wire_id(as_id(one)) == wire_id(as_id(f"0{one}" if one < 10**18 else one)) == one


@pytest.mark.parametrize("bad", ["", "7x", "-1", 2**64, "1.5", None, "\u0663"])
def test_other_ids_are_refused(bad: object) -> None:
    with pytest.raises(StoreError, match="is not a UUID, nor a whole number of 64 bits"):
        as_id(bad)


@given(st.lists(IDS, min_size=2, unique_by=key_of))
def test_order_of_keys_is_that_of_ids(ids: list[object]) -> None:
    numbers = [one.int if isinstance(one, uuid.UUID) else one for one in ids]
    assert np.argsort(keys_of(ids)).tolist() == np.argsort(np.asarray(numbers, object)).tolist()


def test_ids_have_the_same_key_however_a_store_writes_them() -> None:
    one = uuid.UUID("0a000000-0000-4000-8000-000000000000")  # ends in zero bytes
    assert key_of(one) == key_of(str(one)) == one.bytes
    assert key_of(7) == key_of("7") == bytes(15) + b"\7"
    assert len(keys_of([one, 7])) == 2
