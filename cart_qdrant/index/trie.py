"""The prefix tree of all stored identifiers, as sorted arrays (CSR per level).

A million identifiers build in well under a second and take some 20 MB, where a tree of dicts
takes seconds and hundreds. Each identifier may carry its hubness (`querybank.py`), so that the
decoder can tell what is found by every query. Shape legend: N identifiers, L levels (semantic
codes and counter).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cart_qdrant.errors import MismatchError

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Level:
    """Nodes of one depth, in lexicographic order of their prefixes.

    Attributes:
        tokens: Code of each node (nodes,), in the narrowest type that holds them.
        first: Where the children of each node begin in the next level (nodes + 1,); the children
            of node `n` are `first[n] .. first[n + 1]`. Empty at the last level.
    """

    tokens: npt.NDArray[Any]
    first: IntArray


def row_keys(rows_NL: IntArray) -> npt.NDArray[Any]:
    """Rows as fixed-width byte strings that sort as the rows do."""
    width = rows_NL.shape[1] * 4
    return np.ascontiguousarray(rows_NL.astype(">u4")).view(f"S{width}").reshape(-1)


def _sort_unique(rows_NL: IntArray) -> npt.NDArray[np.intp]:
    """Positions of the distinct rows in order, the first of equal ones."""
    order = np.lexsort(rows_NL.T[::-1])
    rows = rows_NL[order]
    keep = np.ones(len(rows), dtype=bool)
    keep[1:] = (rows[1:] != rows[:-1]).any(axis=1)
    return order[keep]


@dataclass(frozen=True, slots=True)
class Trie:
    """A frozen set of identifiers of equal length; insertion and deletion return a new one.

    Attributes:
        levels: Nodes of each depth.
        hub_N: Hubness of each identifier in order; NaN where it is not known.
    """

    levels: tuple[Level, ...]
    hub_N: FloatArray

    @property
    def depth(self) -> int:
        """Levels L of an identifier, counter included."""
        return len(self.levels)

    def __len__(self) -> int:
        return len(self.levels[-1].tokens)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = sum(level.tokens.nbytes + level.first.nbytes for level in self.levels)
        return arrays + self.hub_N.nbytes

    @classmethod
    def build(
        cls,
        rows_NL: npt.ArrayLike,
        depth: int | None = None,
        hub_N: npt.ArrayLike | None = None,
    ) -> Trie:
        """Tree of the given identifiers, in any order, duplicates allowed.

        Args:
            rows_NL: Non-negative codes (N, L).
            depth: L, needed only when there are no rows.
            hub_N: Hubness of each, if known.
        """
        rows = np.asarray(rows_NL, dtype=np.int32)
        if rows.size == 0:
            rows = rows.reshape(0, depth or (rows.shape[1] if rows.ndim == 2 else 0))
        if rows.ndim != 2 or rows.shape[1] == 0 or (depth is not None and rows.shape[1] != depth):
            raise MismatchError(f"Identifiers have shape {rows.shape}, but {depth} levels are due.")
        assert rows.size == 0 or rows.min() >= 0
        order = _sort_unique(rows)
        return cls._from_sorted(rows[order], _hubs(hub_N, len(rows))[order])

    @classmethod
    def _from_sorted(cls, rows_NL: IntArray, hub_N: FloatArray) -> Trie:
        n, depth = rows_NL.shape
        # A row starts a new node at every level from the first one where it differs on.
        differs = np.ones((n, depth), dtype=bool)
        if n > 1:
            differs[1:] = rows_NL[1:] != rows_NL[:-1]
        starts = np.logical_or.accumulate(differs, axis=1)
        levels: list[Level] = []
        at = [np.flatnonzero(starts[:, level]) for level in range(depth)]
        for level in range(depth):
            tokens = _narrowed(rows_NL[at[level], level])
            if level + 1 < depth:
                first = np.searchsorted(at[level + 1], np.append(at[level], n)).astype(np.int32)
            else:
                first = np.empty(0, dtype=np.int32)
            levels.append(Level(tokens, first))
        return cls(tuple(levels), hub_N)

    def rows(self) -> IntArray:
        """All identifiers (N, L) in order."""
        counts = self._sums(np.ones(len(self), dtype=np.int64))
        pairs = zip(self.levels, counts, strict=True)
        columns = [np.repeat(level.tokens, count) for level, count in pairs]
        return np.stack(columns, axis=1, dtype=np.int32, casting="unsafe")

    def _sums(self, leaf_N: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """Sum over the identifiers under each node, level by level."""
        out = [leaf_N]
        for level in self.levels[-2::-1]:
            ends = np.concatenate([np.zeros(1, leaf_N.dtype), np.cumsum(out[-1])])[level.first]
            out.append(np.diff(ends))
        return out[::-1]

    def hub_mean(self) -> float:
        """Mean of the hubness that is known; 0 if none is."""
        known = self.hub_N[~np.isnan(self.hub_N)]
        return float(known.mean()) if len(known) else 0.0

    def node_hubs(self) -> list[FloatArray]:
        """Mean hubness of the identifiers under each node, level by level; what is not known
        counts as the mean of all."""
        known = np.nan_to_num(self.hub_N, nan=self.hub_mean()).astype(np.float64)
        sums, counts = self._sums(known), self._sums(np.ones(len(self), dtype=np.int64))
        return [(a / b).astype(np.float32) for a, b in zip(sums, counts, strict=True)]

    def children(self, depth: int, node: int | None) -> tuple[int, int]:
        """Range of nodes, in the level `depth`, under a node of the level before; all nodes of the
        first level, which are under none."""
        if node is None:
            return 0, len(self.levels[0].tokens)
        first = self.levels[depth - 1].first
        return int(first[node]), int(first[node + 1])

    def path(self, row_L: Sequence[int]) -> list[int]:
        """Nodes of an identifier or prefix, from the first level on; it ends where that does."""
        out: list[int] = []
        for depth, (level, code) in enumerate(zip(self.levels, row_L, strict=False)):
            begin, end = self.children(depth, out[-1] if out else None)
            node = begin + int(np.searchsorted(level.tokens[begin:end], code))
            if node == end or level.tokens[node] != code:
                break
            out.append(node)
        return out

    def leaves(self, depth: int, node: int) -> int:
        """Identifiers under a node of the level `depth`."""
        begin, end = node, node + 1
        for level in self.levels[depth:-1]:
            begin, end = int(level.first[begin]), int(level.first[end])
        return end - begin

    def insert(self, rows_NL: npt.ArrayLike, hub_N: npt.ArrayLike | None = None) -> Trie:
        """A tree that also holds `rows_NL`; known ones change nothing."""
        new = np.asarray(rows_NL, dtype=np.int32).reshape(-1, self.depth)
        order = _sort_unique(new)
        new, hubs = new[order], _hubs(hub_N, len(new))[order]
        old = self.rows()
        if len(old) == 0:
            return Trie._from_sorted(new, hubs)
        old_keys, new_keys = row_keys(old), row_keys(new)
        at = np.searchsorted(old_keys, new_keys)
        fresh = old_keys[np.minimum(at, len(old) - 1)] != new_keys
        rows = np.insert(old, at[fresh], new[fresh], axis=0)
        return Trie._from_sorted(rows, np.insert(self.hub_N, at[fresh], hubs[fresh]))

    def delete(self, rows_NL: npt.ArrayLike) -> Trie:
        """A tree without `rows_NL`; unknown ones change nothing."""
        gone = np.asarray(rows_NL, dtype=np.int32).reshape(-1, self.depth)
        old = self.rows()
        keep = ~np.isin(row_keys(old), row_keys(gone)) if len(gone) and len(old) else slice(None)
        return Trie._from_sorted(old[keep], self.hub_N[keep])

    def contains(self, rows_NL: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Which of `rows_NL` are stored (N,)."""
        rows = np.asarray(rows_NL, dtype=np.int32).reshape(-1, self.depth)
        return np.isin(row_keys(rows), row_keys(self.rows()))

    def counters(self) -> dict[tuple[int, ...], int]:
        """Next free counter of each semantic part."""
        rows = self.rows()
        out: dict[tuple[int, ...], int] = {}
        for row in rows.tolist():  # in order, so the last counter of a prefix wins
            out[tuple(row[:-1])] = row[-1] + 1
        return out

    def save(self, path: Path) -> None:
        """Write an uncompressed `.npz` (no pickles)."""
        arrays: dict[str, npt.NDArray[Any]] = {"hub": self.hub_N}
        for n, level in enumerate(self.levels):
            arrays[f"tokens{n}"], arrays[f"first{n}"] = level.tokens, level.first
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: Path) -> Trie:
        """Inverse of `save`."""
        with np.load(path, allow_pickle=False) as data:
            depth = len(data.files) // 2
            levels = tuple(Level(data[f"tokens{n}"], data[f"first{n}"]) for n in range(depth))
            # Trees of older versions have no hubness.
            hub = data["hub"] if "hub" in data.files else _hubs(None, len(levels[-1].tokens))
            return cls(levels, hub)


def _narrowed(tokens: IntArray) -> npt.NDArray[Any]:
    largest = int(tokens.max(initial=0))
    fits = (kind for kind in (np.uint8, np.uint16) if largest <= np.iinfo(kind).max)
    return np.ascontiguousarray(tokens, dtype=next(fits, np.int32))


def _hubs(hub_N: npt.ArrayLike | None, count: int) -> FloatArray:
    if hub_N is None:
        return np.full(count, np.nan, dtype=np.float32)
    return np.asarray(hub_N, dtype=np.float32).reshape(count)
