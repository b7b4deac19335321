"""Rows in order, against numpy's own, in a word and beyond."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cart_qdrant.identifiers.row_order import in_order


@pytest.mark.parametrize(
    "depth, largest",
    [(1, 3), (3, 9), (4, 2**13), (2, 2**31 - 1), (4, 2**16 - 1), (5, 2**20), (6, 2**31 - 1)],
)  # with places in a word, without, and beyond a word
@given(st.integers(0, 60), st.integers(0, 2**16))
def test_rows_come_in_order(depth: int, largest: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    some = np.asarray([0, largest // 2, largest])
    rows = rng.choice(some, (count, depth)).astype(np.int32)
    found = in_order(rows)
    wanted, first = np.unique(rows, axis=0, return_index=True)
    assert found.order.tolist() == (first.tolist() if count else [])
    before = np.full(depth, -1)
    for n, row in enumerate(wanted[: len(found.order)]):
        key = found.keys[n : n + 1]
        assert [int(found.codes(level, key)[0]) for level in range(depth)] == row.tolist()
        level = int((row != before).argmax())
        assert [bool(found.differs[n] >= bound) for bound in found.bounds] == [
            at >= level for at in range(depth)
        ]
        before = row
