"""Sets of identifiers for the tests of the prefix tree."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from cart_qdrant.identifiers.trie import Trie

DEPTHS = st.integers(1, 5)


@st.composite
def sets(draw: st.DrawFn, count: int = 1) -> tuple[int, list[list[tuple[int, ...]]]]:
    """A depth, and that many lists of identifiers with duplicates, from few and large codes."""
    depth = draw(DEPTHS)
    code = st.sampled_from([0, 1, 2, 255, 256, 70_000, 2**31 - 1])
    rows = st.lists(st.tuples(*[code] * depth), max_size=30)
    return depth, [draw(rows) for _ in range(count)]


HubSets = tuple[int, list[list[tuple[int, ...]]], list[float]]


@st.composite
def hub_sets(draw: st.DrawFn, count: int = 1) -> HubSets:
    """The same, with the hubness of each identifier, which may not be known."""
    depth, lists = draw(sets(count))
    total = sum(map(len, lists))
    some = st.floats(0, 1, width=32) | st.just(float("nan"))
    return depth, lists, draw(st.lists(some, min_size=total, max_size=total))


def as_set(trie: Trie) -> set[tuple[int, ...]]:
    return set(map(tuple, trie.rows().tolist()))


def assert_same(one: Trie, other: Trie) -> None:
    """All arrays and their types, those of hubness too."""
    for a, b in zip(one.levels, other.levels, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_array_equal(a.first, b.first)
        assert (a.tokens.dtype, a.first.dtype) == (b.tokens.dtype, b.first.dtype)
    np.testing.assert_array_equal(one.hub_N, other.hub_N)
    assert one.hub_mean == other.hub_mean
    for mean, its in zip(one.hubs, other.hubs, strict=True):
        np.testing.assert_array_equal(mean, its)
