"""Laws of the prefix tree: it is the sorted set of its identifiers."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cart_qdrant.errors import MismatchError
from cart_qdrant.files import file_hash, save_arrays
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


@given(hub_sets(2))
def test_growing_and_shrinking_is_building_anew(case: HubSets) -> None:
    """Level by level to the last bit, however few or many come and go."""
    depth, (a, b), hubs = case
    hub = dict(zip([*a, *b], hubs, strict=True))  # one of each, however often it is there
    whole = sorted(hub)
    trie = Trie.build(a, depth, [hub[row] for row in a])
    grown = trie.insert(b, [hub[row] for row in b])
    assert_same(grown, Trie.build(whole, depth, [hub[row] for row in whole]))
    left = [row for row in whole if row not in set(b)]
    assert_same(grown.delete(b), Trie.build(left, depth, [hub[row] for row in left]))


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
    assert_same(loaded.insert(rows, hubs), trie)


@given(hub_sets(), st.booleans())
def test_trees_of_older_versions_open(case: HubSets, hubness: bool) -> None:
    depth, (rows,), hubs = case
    trie = Trie.build(rows, depth, hubs if hubness else None)
    arrays = {f"tokens{n}": level.tokens for n, level in enumerate(trie.levels)}
    arrays |= {f"first{n}": level.first for n, level in enumerate(trie.levels)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trie.npz"
        np.savez(path, **arrays, **({"hub": trie.hub_N} if hubness else {}))
        assert_same(Trie.load(path), trie)


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


@given(sets(2))
def test_counters_are_free(case: tuple[int, list[list[tuple[int, ...]]]]) -> None:
    depth, (rows, others) = case
    rows = [row for row in rows if row[-1] < 2**31 - 1]
    counters = Trie.build(rows, depth).counters()
    wanted: dict[tuple[int, ...], int] = {}
    for row in rows:
        wanted[row[:-1]] = max(wanted.get(row[:-1], 0), row[-1] + 1)
    assert dict(counters) == wanted and len(counters) == len(wanted)
    for row in others:
        assert counters.get(row[:-1], 0) == wanted.get(row[:-1], 0)
        counters[row[:-1]] = wanted[row[:-1]] = wanted.get(row[:-1], 0) + 1
    assert dict(counters) == wanted and len(counters) == len(wanted)


def test_a_counter_that_was_handed_out_stays_taken() -> None:
    counters = Trie.build([[1, 2, 0]]).counters()
    with pytest.raises(TypeError, match="stays taken"):
        del counters[1, 2]
    with pytest.raises(KeyError):
        counters[1, 3]
    with pytest.raises(KeyError):
        counters[1,]


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
        for level, nodes in enumerate(one.levels):
            found = one.hub(level, np.arange(len(nodes.tokens)))
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
