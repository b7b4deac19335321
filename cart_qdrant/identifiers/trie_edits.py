"""Adds identifiers to a prefix tree and removes identifiers from it, without rebuilding the tree.

Both functions copy the arrays of the tree once and sort only the identifiers that are added or
removed. Shape legend: N identifiers, L levels, R nodes of one level.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cart_qdrant.arrays.types import AnyArray, IndexArray, IntArray
from cart_qdrant.identifiers.trie import Level, Trie, find_codes, narrowed


def insert(trie: Trie, rows_NL: npt.ArrayLike, hub_N: npt.ArrayLike | None = None) -> Trie:
    """A tree that also holds `rows_NL`; identifiers that are already stored change nothing.

    Args:
        rows_NL: Identifiers (N, L), in any order.
        hub_N: Hubness of each identifier, if known.
    """
    new = Trie.build(trie.as_rows(rows_NL), trie.depth, hub_N)
    if len(trie) == 0 or len(new) == 0:
        return new if len(trie) == 0 else trie
    positions, freshes = _insertion_points(trie, new)
    # For each level, the number of fresh nodes before each node of the new tree.
    counts = [np.concatenate([[0], fresh_R.cumsum()]) for fresh_R in freshes]
    levels: list[Level] = []
    for level, (mine, its) in enumerate(zip(trie.levels, new.levels, strict=True)):
        position_R, fresh_R = positions[level], freshes[level]
        at = position_R[fresh_R]
        kind = np.promote_types(mine.tokens.dtype, its.tokens.dtype)
        tokens = np.insert(mine.tokens.astype(kind, copy=False), at, its.tokens[fresh_R])
        first = mine.first
        if level + 1 < trie.depth:
            more = counts[level + 1][its.first]
            begins = (first[at] + more[:-1][fresh_R]).astype(np.int32)
            # The children of all nodes after an inserted child begin later.
            first = np.insert(_later(first, position_R - fresh_R, np.diff(more)), at, begins)
        levels.append(Level(tokens, first))
    return Trie.from_levels(levels, np.insert(trie.hub_N, at, new.hub_N[fresh_R]))


def _insertion_points(
    trie: Trie, new: Trie
) -> tuple[list[IndexArray], list[npt.NDArray[np.bool_]]]:
    """For each level, the position (R,) in `trie` at which each node of `new` is or would be
    inserted, and whether `trie` lacks the node (R,)."""
    positions, freshes = [], []
    begin, end = trie.child_ranges(0, np.zeros(len(new.levels[0].tokens), dtype=np.intp))
    for level, (mine, its) in enumerate(zip(trie.levels, new.levels, strict=True)):
        position_R, known = find_codes(mine.tokens, begin, end, its.tokens)
        positions.append(position_R)
        freshes.append(~known)
        if level + 1 < trie.depth:
            # A fresh node has no children in `trie` yet: its range is empty.
            count = np.diff(its.first)
            begin = mine.first.take(position_R).repeat(count)
            end = mine.first.take(position_R + known).repeat(count)
    return positions, freshes


def delete(trie: Trie, rows_NL: npt.ArrayLike) -> Trie:
    """A tree without `rows_NL` (N, L); identifiers that are not stored change nothing.

    Called by `benchmarks/trie.py` and the tests only: an index builds its tree from all of its
    identifiers.
    """
    deleted = np.unique(trie.nodes(trie.as_rows(rows_NL)))
    deleted = deleted[deleted >= 0]
    if len(deleted) == 0:
        return trie
    hubs = np.delete(trie.hub_N, deleted)
    levels: list[Level] = []
    first = trie.levels[-1].first
    for level in range(trie.depth - 1, -1, -1):
        levels.append(Level(narrowed(np.delete(trie.levels[level].tokens, deleted)), first))
        if level:
            above = trie.levels[level - 1].first
            under = above.searchsorted(deleted.astype(np.int32), side="right") - 1
            owner, count = np.unique(under, return_counts=True)
            deleted = owner[count == above[owner + 1] - above[owner]]
            first = np.delete(_later(above, owner, -count), deleted)
    return Trie.from_levels(levels[::-1], hubs)


def _later(first: IntArray, owner_R: IndexArray, more_R: AnyArray) -> IntArray:
    """`Level.first` after the nodes `owner_R`, in ascending order, have got `more_R` children."""
    ends = np.concatenate([[0], owner_R + 1, [len(first)]])
    shift = np.concatenate([[0], np.cumsum(more_R)]).astype(np.int32)
    return first + np.repeat(shift, np.diff(ends))
