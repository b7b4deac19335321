"""Laws of the prefix tree: it is the sorted set of its identifiers."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from cart_qdrant.errors import MismatchError
from cart_qdrant.files import file_hash, save_arrays
from cart_qdrant.identifiers.trie import Trie
from cart_qdrant.identifiers.trie_edits import insert
from tests.unit.identifiers.made_trees import HubSets, assert_same, hub_sets, sets


@given(sets())
def test_rows_are_the_sorted_distinct_identifiers(
    case: tuple[int, list[list[tuple[int, ...]]]],
) -> None:
    depth, (rows,) = case
    trie = Trie.build(rows, depth)
    assert [tuple(row) for row in trie.rows().tolist()] == sorted(set(rows))
    assert len(trie) == len(set(rows)) and trie.depth == depth


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


@given(hub_sets())
def test_saving_and_loading_changes_nothing(case: HubSets) -> None:
    depth, (rows,), hubs = case
    trie = Trie.build(rows, depth, hubs)
    with tempfile.TemporaryDirectory() as folder:
        trie.save(Path(folder) / "trie")
        loaded = Trie.load(Path(folder) / "trie")
        loaded.save(Path(folder) / "copy")
        assert file_hash(Path(folder) / "copy") == file_hash(Path(folder) / "trie")
    assert loaded.depth == depth
    assert_same(loaded, trie)  # the file is gone by now, its pages are not
    assert_same(insert(loaded, rows, hubs), trie)


def test_a_file_that_is_no_tree_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trie"
    trie = Trie.build(np.arange(60).reshape(20, 3))
    trie.save(path)
    whole = path.read_bytes()
    for data in (b"", b"PK\3\4" + bytes(99), b"x" * 99, whole[:-8], whole[:50]):
        path.write_bytes(data)
        with pytest.raises(MismatchError, match=re.escape(str(path))):
            Trie.load(path)
    save_arrays(path, {"hub": trie.hub_N, "tokens0": trie.levels[0].tokens})
    with pytest.raises(MismatchError, match="lacks 'first0'"):
        Trie.load(path)
    other = Trie.build([[1, 2, 3]])
    for levels, hub_N, hubs in (
        ((trie.levels[0], *other.levels[1:]), other.hub_N, ()),
        (trie.levels, other.hub_N, ()),
        (trie.levels, trie.hub_N, (other.hub_N,)),
    ):
        Trie(levels, hub_N, None, hubs).save(path)
        with pytest.raises(MismatchError, match="do not fit"):
            Trie.load(path)


@given(sets(2))
def test_nodes_are_the_ends_of_paths(case: tuple[int, list[list[tuple[int, ...]]]]) -> None:
    depth, (rows, others) = case
    trie = Trie.build(rows, depth)
    for length in range(1, depth + 1):
        asked = np.asarray([*rows, *others], np.int32).reshape(-1, depth)[:, :length]
        paths = [trie.path(row) for row in asked.tolist()]
        ends = [path[-1] if len(path) == length else -1 for path in paths]
        assert trie.nodes(asked).tolist() == ends


@given(sets())
def test_the_unique_ratio_is_that_of_semantic_parts(
    case: tuple[int, list[list[tuple[int, ...]]]],
) -> None:
    depth, (rows,) = case
    trie = Trie.build(rows, depth)
    parts = {row[:-1] for row in rows}
    assert trie.unique_ratio == (len(parts) / len(set(rows)) if rows else 1.0)


def test_wrong_depth_is_refused() -> None:
    with pytest.raises(MismatchError, match="4 levels"):
        Trie.build([[1, 2, 3]], 4)


def test_size_stays_under_the_target() -> None:
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.integers(0, 256, (50_000, 4)), np.zeros((50_000, 1), int)], axis=1)
    trie = Trie.build(rows)
    assert trie.nbytes / len(trie) <= 40  # at a million, shared prefixes bring it under 24


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
