"""Laws of the prefix tree: it is a set of rows, whatever was done to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cart_qdrant.errors import MismatchError
from cart_qdrant.index.trie import Trie

DEPTH = 4
Row = tuple[int, ...]
# Few codes, so that rows share prefixes and repeat; a few large ones for the order of keys.
codes = st.one_of(st.integers(0, 3), st.sampled_from([255, 256, 65_536, 2**31 - 1]))
rows = st.lists(st.tuples(*[codes] * DEPTH), max_size=40)


def as_set(trie: Trie) -> set[Row]:
    return {tuple(row) for row in trie.rows().tolist()}


@given(rows)
def test_rows_are_the_sorted_unique_input(given_rows: list[Row]) -> None:
    trie = Trie.build(given_rows, DEPTH)
    assert [tuple(row) for row in trie.rows().tolist()] == sorted(set(given_rows))
    assert len(trie) == len(set(given_rows))
    assert trie.depth == DEPTH


@given(rows, rows)
def test_insert_is_union(old: list[Row], new: list[Row]) -> None:
    trie = Trie.build(old, DEPTH)
    assert as_set(trie.insert(new)) == set(old) | set(new)
    assert as_set(trie) == set(old)


@given(rows, rows)
def test_delete_is_difference(old: list[Row], gone: list[Row]) -> None:
    assert as_set(Trie.build(old, DEPTH).delete(gone)) == set(old) - set(gone)


@given(rows, rows)
def test_insert_and_build_make_the_same_arrays(old: list[Row], new: list[Row]) -> None:
    merged, built = Trie.build(old, DEPTH).insert(new), Trie.build(old + new, DEPTH)
    for one, other in zip(merged.levels, built.levels, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.first, other.first)


@given(rows, rows)
def test_contains(stored: list[Row], asked: list[Row]) -> None:
    found = Trie.build(stored, DEPTH).contains(asked).tolist()
    assert found == [row in set(stored) for row in asked]


@given(rows)
def test_children_of_a_node_are_those_of_its_prefix(stored: list[Row]) -> None:
    trie = Trie.build(stored, DEPTH)
    prefixes: list[Row] = [()]
    spans = [(0, len(trie.levels[0].tokens))]
    for level in range(DEPTH):
        tokens, first = trie.levels[level].tokens, trie.levels[level].first
        next_prefixes: list[Row] = []
        next_spans: list[tuple[int, int]] = []
        for prefix, (begin, end) in zip(prefixes, spans, strict=True):
            children = tokens[begin:end].tolist()
            wanted = {row[level] for row in stored if row[:level] == prefix}
            assert children == sorted(wanted)
            for node in range(begin, end):
                next_prefixes.append((*prefix, int(tokens[node])))
                if level + 1 < DEPTH:
                    next_spans.append((int(first[node]), int(first[node + 1])))
        prefixes, spans = next_prefixes, next_spans
    assert set(prefixes) == set(stored)


@given(rows)
def test_counters_are_one_past_the_last(stored: list[Row]) -> None:
    wanted: dict[Row, int] = {}
    for row in stored:
        wanted[row[:-1]] = max(wanted.get(row[:-1], 0), row[-1] + 1)
    assert Trie.build(stored, DEPTH).counters() == wanted


@given(stored=rows)
def test_save_and_load(tmp_path_factory: pytest.TempPathFactory, stored: list[Row]) -> None:
    path: Path = tmp_path_factory.getbasetemp() / "trie.npz"
    trie = Trie.build(stored, DEPTH)
    trie.save(path)
    first = path.read_bytes()
    loaded = Trie.load(path)
    assert loaded.depth == DEPTH
    np.testing.assert_array_equal(loaded.rows(), trie.rows())
    # The hash of the file tells whether the tree changed.
    loaded.save(path)
    assert path.read_bytes() == first


def test_another_depth_is_refused() -> None:
    with pytest.raises(MismatchError, match="4 levels"):
        Trie.build([(1, 2, 3)], DEPTH)


def test_size_of_a_large_tree() -> None:
    rng = np.random.default_rng(0)
    stored = np.stack(
        [*(rng.integers(0, 256, 100_000) for _ in range(4)), np.zeros(100_000, int)], axis=1
    )
    trie = Trie.build(stored)
    assert trie.nbytes <= 40 * len(trie)
    np.testing.assert_array_equal(trie.rows(), np.unique(stored, axis=0))
