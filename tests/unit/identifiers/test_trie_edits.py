"""Laws of editing a prefix tree: insertion and deletion are those of sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cart_qdrant.identifiers.trie import Trie
from cart_qdrant.identifiers.trie_edits import delete, insert
from tests.unit.identifiers.made_trees import HubSets, as_set, assert_same, hub_sets, sets


@given(sets(2))
def test_insertion_and_deletion_are_set_operations(
    case: tuple[int, list[list[tuple[int, ...]]]],
) -> None:
    depth, (a, b) = case
    trie = Trie.build(a, depth)
    assert as_set(insert(trie, b)) == set(a) | set(b)
    assert as_set(delete(trie, b)) == set(a) - set(b)
    assert as_set(trie) == set(a), "the tree itself is frozen"
    assert trie.contains(b).tolist() == [row in set(a) for row in b]


@given(sets(2))
def test_a_tree_does_not_depend_on_how_it_was_made(
    case: tuple[int, list[list[tuple[int, ...]]]],
) -> None:
    depth, (a, b) = case
    grown, whole = insert(Trie.build(a, depth), b), Trie.build([*b, *a], depth)
    for one, other in zip(grown.levels, whole.levels, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.first, other.first)


@given(hub_sets(2))
def test_growing_and_shrinking_is_building_anew(case: HubSets) -> None:
    """Level by level to the last bit, however few or many come and go."""
    depth, (a, b), hubs = case
    hub = dict(zip([*a, *b], hubs, strict=True))  # one of each, however often it is there
    whole = sorted(hub)
    trie = Trie.build(a, depth, [hub[row] for row in a])
    grown = insert(trie, b, [hub[row] for row in b])
    assert_same(grown, Trie.build(whole, depth, [hub[row] for row in whole]))
    left = [row for row in whole if row not in set(b)]
    assert_same(delete(grown, b), Trie.build(left, depth, [hub[row] for row in left]))


@given(sets(2), st.integers(0, 99))
def test_hubness_stays_with_its_identifier(
    case: tuple[int, list[list[tuple[int, ...]]]], seed: int
) -> None:
    depth, (a, b) = case
    rng = np.random.default_rng(seed)
    hub = {row: float(np.float32(rng.random())) for row in sorted({*a, *b})}
    trie = insert(Trie.build(a, depth, [hub[row] for row in a]), b, [hub[row] for row in b])
    for one in (trie, delete(trie, b)):
        assert one.hub_N.tolist() == [hub[tuple(row)] for row in one.rows().tolist()]
        for level, nodes in enumerate(one.levels):
            found = one.hub(level, np.arange(len(nodes.tokens)))
            under: dict[tuple[int, ...], list[float]] = {}
            for row in one.rows().tolist():
                under.setdefault(tuple(row[: level + 1]), []).append(hub[tuple(row)])
            wanted = [float(np.mean(values)) for _, values in sorted(under.items())]
            assert found.tolist() == pytest.approx(wanted, abs=1e-5)
