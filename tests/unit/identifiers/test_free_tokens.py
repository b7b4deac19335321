"""Free disambiguation tokens follow those that a prefix tree holds."""

from __future__ import annotations

import pytest
from hypothesis import given

from cart_qdrant.identifiers.free_tokens import FreeTokens
from cart_qdrant.identifiers.trie import Trie
from tests.unit.identifiers.made_trees import sets


@given(sets(2))
def test_counters_are_free(case: tuple[int, list[list[tuple[int, ...]]]]) -> None:
    depth, (rows, others) = case
    rows = [row for row in rows if row[-1] < 2**31 - 1]
    counters = FreeTokens(Trie.build(rows, depth))
    wanted: dict[tuple[int, ...], int] = {}
    for row in rows:
        wanted[row[:-1]] = max(wanted.get(row[:-1], 0), row[-1] + 1)
    assert dict(counters) == wanted and len(counters) == len(wanted)
    for row in others:
        assert counters.get(row[:-1], 0) == wanted.get(row[:-1], 0)
        counters[row[:-1]] = wanted[row[:-1]] = wanted.get(row[:-1], 0) + 1
    assert dict(counters) == wanted and len(counters) == len(wanted)


def test_a_counter_that_was_handed_out_stays_taken() -> None:
    counters = FreeTokens(Trie.build([[1, 2, 0]]))
    with pytest.raises(TypeError, match="stays taken"):
        del counters[1, 2]
    with pytest.raises(KeyError):
        counters[1, 3]
    with pytest.raises(KeyError):
        counters[1,]
