"""Laws of the prefix tree: it is the sorted set of its identifiers."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cart_qdrant.errors import MismatchError
from cart_qdrant.index.trie import Trie

DEPTHS = st.integers(1, 5)


@st.composite
def sets(draw: st.DrawFn, count: int = 1) -> tuple[int, list[list[tuple[int, ...]]]]:
    """A depth, and that many lists of identifiers with duplicates, from few and large codes."""
    depth = draw(DEPTHS)
    code = st.sampled_from([0, 1, 2, 255, 256, 70_000, 2**31 - 1])
    rows = st.lists(st.tuples(*[code] * depth), max_size=30)
    return depth, [draw(rows) for _ in range(count)]


def as_set(trie: Trie) -> set[tuple[int, ...]]:
    return set(map(tuple, trie.rows().tolist()))


@given(sets())
def test_rows_are_the_sorted_distinct_identifiers(
    case: tuple[int, list[list[tuple[int, ...]]]],
) -> None:
    depth, (rows,) = case
    trie = Trie.build(rows, depth)
    assert [tuple(row) for row in trie.rows().tolist()] == sorted(set(rows))
    assert len(trie) == len(set(rows)) and trie.depth == depth


@given(sets(2))
def test_insertion_and_deletion_are_set_operations(
    case: tuple[int, list[list[tuple[int, ...]]]],
) -> None:
    depth, (a, b) = case
    trie = Trie.build(a, depth)
    assert as_set(trie.insert(b)) == set(a) | set(b)
    assert as_set(trie.delete(b)) == set(a) - set(b)
    assert as_set(trie) == set(a), "the tree itself is frozen"
    assert trie.contains(b).tolist() == [row in set(a) for row in b]


@given(sets(2))
def test_a_tree_does_not_depend_on_how_it_was_made(
    case: tuple[int, list[list[tuple[int, ...]]]],
) -> None:
    depth, (a, b) = case
    grown, whole = Trie.build(a, depth).insert(b), Trie.build([*b, *a], depth)
    for one, other in zip(grown.levels, whole.levels, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.first, other.first)


@given(sets())
def test_children_are_those_that_continue_a_prefix(
    case: tuple[int, list[list[tuple[int, ...]]]],
) -> None:
    depth, (rows,) = case
    trie = Trie.build(rows, depth)
    prefixes: list[tuple[int, ...]] = [(int(t),) for t in trie.levels[0].tokens]
    for level in range(1, depth):
        first = trie.levels[level - 1].first
        assert len(first) == len(prefixes) + 1
        prefixes = [
            (*prefix, int(token))
            for n, prefix in enumerate(prefixes)
            for token in trie.levels[level].tokens[first[n] : first[n + 1]]
        ]
        assert prefixes == sorted({row[: level + 1] for row in rows})


@given(sets())
def test_saving_and_loading_changes_nothing(
    case: tuple[int, list[list[tuple[int, ...]]]],
) -> None:
    depth, (rows,) = case
    trie = Trie.build(rows, depth)
    with tempfile.TemporaryDirectory() as folder:
        trie.save(Path(folder) / "trie.npz")
        loaded = Trie.load(Path(folder) / "trie.npz")
    assert loaded.depth == depth
    np.testing.assert_array_equal(loaded.rows(), trie.rows())


@given(sets())
def test_counters_are_free(case: tuple[int, list[list[tuple[int, ...]]]]) -> None:
    depth, (rows,) = case
    rows = [row for row in rows if row[-1] < 2**31 - 1]
    for prefix, u in Trie.build(rows, depth).counters().items():
        assert all(row[-1] < u for row in rows if row[:-1] == prefix)


def test_wrong_depth_is_refused() -> None:
    with pytest.raises(MismatchError, match="4 levels"):
        Trie.build([[1, 2, 3]], 4)


def test_size_stays_under_the_target() -> None:
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.integers(0, 256, (50_000, 4)), np.zeros((50_000, 1), int)], axis=1)
    trie = Trie.build(rows)
    assert trie.nbytes / len(trie) <= 40  # at a million, shared prefixes bring it under 24


@given(sets(2), st.integers(0, 99))
def test_hubness_stays_with_its_identifier(
    case: tuple[int, list[list[tuple[int, ...]]]], seed: int
) -> None:
    depth, (a, b) = case
    rng = np.random.default_rng(seed)
    hub = {row: float(np.float32(rng.random())) for row in sorted({*a, *b})}
    trie = Trie.build(a, depth, [hub[row] for row in a]).insert(b, [hub[row] for row in b])
    for one in (trie, trie.delete(b)):
        assert one.hub_N.tolist() == [hub[tuple(row)] for row in one.rows().tolist()]
        for level, found in enumerate(one.node_hubs()):
            under: dict[tuple[int, ...], list[float]] = {}
            for row in one.rows().tolist():
                under.setdefault(tuple(row[: level + 1]), []).append(hub[tuple(row)])
            wanted = [float(np.mean(values)) for _, values in sorted(under.items())]
            assert found.tolist() == pytest.approx(wanted, abs=1e-5)


@given(sets())
def test_the_path_of_an_identifier_ends_at_its_leaf(
    case: tuple[int, list[list[tuple[int, ...]]]],
) -> None:
    depth, (rows,) = case
    trie = Trie.build(rows, depth)
    for leaf, row in enumerate(trie.rows().tolist()):
        nodes = trie.path(row)
        assert nodes[-1] == leaf and len(nodes) == depth
        for level, node in enumerate(nodes):
            same = sum(other[: level + 1] == row[: level + 1] for other in trie.rows().tolist())
            assert trie.leaves(level, node) == same
    assert trie.path([2**31 - 2] * depth) == []
