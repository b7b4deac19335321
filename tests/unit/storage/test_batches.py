"""Batches keep their limits and lose nothing."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from cart_qdrant.storage.batches import chunks, chunks_by_bytes


@given(st.lists(st.integers(0, 20)), st.integers(1, 5))
def test_chunks_are_full_but_the_last(items: list[int], size: int) -> None:
    found = list(chunks(items, size))
    assert [item for chunk in found for item in chunk] == items
    assert all(len(chunk) == size for chunk in found[:-1])
    assert all(0 < len(chunk) <= size for chunk in found)


@given(st.lists(st.integers(0, 20)), st.integers(1, 15), st.integers(1, 5))
def test_groups_keep_both_limits_and_a_large_item_goes_alone(
    sizes: list[int], max_bytes: int, max_items: int
) -> None:
    found = list(chunks_by_bytes(sizes, int, max_bytes=max_bytes, max_items=max_items))
    assert [size for group in found for size in group] == sizes
    for group in found:
        assert len(group) <= max_items
        assert sum(group) <= max_bytes or len(group) == 1
    for group, after in itertools.pairwise(found):
        assert len(group) == max_items or sum(group) + after[0] > max_bytes
