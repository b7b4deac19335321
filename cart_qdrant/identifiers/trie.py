"""The prefix tree of all stored identifiers, as sorted arrays: each level is a CSR matrix.

Building a tree of a million identifiers takes a fifth of a second and 16 MB, where a tree of
dictionaries takes seconds and hundreds of megabytes. A tree of ten million identifiers is opened
by mapping its file, without reading it (`arrays/mmap.py`). The tree may hold the hubness of each
identifier (`hubness.py`), so that the decoder can lower the score of items that are similar to
every query. Trees are frozen: `trie_edits.py` makes a new tree with identifiers added or removed.
Shape legend: N identifiers, M other identifiers, L levels (semantic codes and the disambiguation
token), R nodes of one level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cart_qdrant.arrays.mmap import map_arrays
from cart_qdrant.arrays.types import AnyArray, FloatArray, IndexArray, IntArray
from cart_qdrant.errors import MismatchError
from cart_qdrant.files import disk_errors
from cart_qdrant.identifiers.row_order import in_order

UPPER = 0.9
"""A level stores the mean hubness of its nodes if it has at most this many nodes per identifier."""


@dataclass(frozen=True, slots=True)
class Level:
    """Nodes of one depth, in lexicographic order of their prefixes.

    Attributes:
        tokens: Code of each node (nodes,), in the narrowest integer type that holds all of them.
        first: Position, in the next level, of the first child of each node (nodes + 1,); the
            children of node `n` are `first[n] .. first[n + 1]`. Empty at the last level.
    """

    tokens: AnyArray
    first: IntArray


@dataclass(frozen=True, slots=True)
class Trie:
    """A frozen set of identifiers of equal length.

    Attributes:
        levels: Nodes of each depth.
        hub_N: Hubness of each identifier, in the order of the identifiers; NaN where unknown.
        hub_mean: Mean of the known hubness; None if no hubness is known.
        hubs: Mean hubness of the identifiers under each node, for the upper levels only. In the
            lower levels most nodes have one identifier, whose hubness the method `hub` reads.
    """

    levels: tuple[Level, ...]
    hub_N: FloatArray
    hub_mean: float | None
    hubs: tuple[FloatArray, ...]

    @classmethod
    def build(
        cls,
        rows_NL: npt.ArrayLike,
        depth: int | None = None,
        hub_N: npt.ArrayLike | None = None,
    ) -> Trie:
        """Build the tree of identifiers, which may come in any order and with duplicates.

        Args:
            rows_NL: Non-negative codes (N, L).
            depth: L; needed only when there are no rows.
            hub_N: Hubness of each identifier, if known; of equal identifiers the first counts.

        Raises:
            MismatchError: The codes are not a matrix with `depth` columns.
        """
        rows = np.asarray(rows_NL, dtype=np.int32)
        if rows.size == 0:
            rows = rows.reshape(0, depth or (rows.shape[1] if rows.ndim == 2 else 0))
        if rows.ndim != 2 or rows.shape[1] == 0 or (depth is not None and rows.shape[1] != depth):
            raise MismatchError(
                f"Identifiers have shape {rows.shape}, but should have {depth} levels."
            )
        found = in_order(rows)
        hubs = np.full(len(found.order), np.nan, dtype=np.float32)
        if hub_N is not None:
            hubs = np.asarray(hub_N, dtype=np.float32).reshape(len(rows))[found.order]
        keys, differs = found.keys, found.differs
        levels = [Level(narrowed(found.codes(-1, keys)), np.empty(0, dtype=np.int32))]
        for level in range(rows.shape[1] - 2, -1, -1):
            begins = np.flatnonzero(differs >= found.bounds[level])
            first = np.append(begins, len(keys)).astype(np.int32)
            keys, differs = keys[begins], differs[begins]
            levels.append(Level(narrowed(found.codes(level, keys)), first))
        return cls.from_levels(levels[::-1], hubs)

    @classmethod
    def from_levels(cls, levels: Sequence[Level], hub_N: FloatArray) -> Trie:
        """The tree of finished levels: computes the mean hubness of the nodes."""
        known = hub_N[~np.isnan(hub_N)]
        mean = float(known.mean()) if len(known) else None
        bare = cls(tuple(levels), hub_N, mean, ())
        if mean is None:
            return bare
        deep = sum(len(level.tokens) <= UPPER * len(hub_N) for level in levels)
        if deep == 0:
            return bare
        begin = bare._begin(deep - 1, bare.depth - 1)
        sums = np.add.reduceat(bare._known(hub_N), begin[:-1])
        hubs = [(sums / np.diff(begin)).astype(np.float32)]
        for level in levels[: deep - 1][::-1]:
            sums, begin = np.add.reduceat(sums, level.first[:-1]), begin[level.first]
            hubs.append((sums / np.diff(begin)).astype(np.float32))
        return cls(bare.levels, hub_N, mean, tuple(hubs[::-1]))

    @property
    def depth(self) -> int:
        """Levels L of an identifier, the disambiguation token included."""
        return len(self.levels)

    def __len__(self) -> int:
        return len(self.levels[-1].tokens)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self._arrays().values())

    @property
    def unique_ratio(self) -> float:
        """Distinct semantic parts divided by identifiers; 1.0 for an empty tree."""
        if len(self) == 0:
            return 1.0
        return (len(self.levels[-2].tokens) if self.depth > 1 else 1) / len(self)

    def rows(self) -> IntArray:
        """All identifiers (N, L) in lexicographic order."""
        return self.prefixes(self.depth)

    def rows_at(self, leaf_R: AnyArray) -> IntArray:
        """Identifiers (R, L) by their positions."""
        out = np.empty((len(leaf_R), self.depth), dtype=np.int32)
        node_R = np.asarray(leaf_R, dtype=np.int32)
        for level in range(self.depth - 1, -1, -1):
            out[:, level] = self.levels[level].tokens.take(node_R)
            if level:
                above = self.levels[level - 1].first
                node_R = (above.searchsorted(node_R, side="right") - 1).astype(np.int32)
        return out

    def prefixes(self, length: int) -> IntArray:
        """All distinct prefixes of `length` codes, in lexicographic order."""
        count = len(self.levels[length - 1].tokens) if length else min(1, len(self))
        out = np.empty((count, length), dtype=np.int32)
        for level in range(length):
            begin = self._begin(level, length - 1)
            out[:, level] = np.repeat(self.levels[level].tokens, np.diff(begin))
        return out

    def leaf_begins(self) -> AnyArray:
        """Position of the first identifier under each node of the first level (nodes + 1,)."""
        return self._begin(0, self.depth - 1)

    def leaves_between(self, first: int, last: int) -> int:
        """Number of identifiers whose first code is in `first .. last - 1`."""
        at: AnyArray = self.levels[0].tokens.searchsorted([first, last])
        for level in self.levels[:-1]:
            at = level.first[at]
        return int(at[1] - at[0])

    def _begin(self, level: int, below: int) -> AnyArray:
        """Position, in the level `below`, of the first descendant of each node (nodes + 1,)."""
        if level == below:
            return np.arange(len(self.levels[level].tokens) + 1)
        begin = self.levels[level].first
        for one in self.levels[level + 1 : below]:
            begin = one.first[begin]
        return begin

    def _known(self, hub_R: FloatArray) -> npt.NDArray[np.float64]:
        """Hubness in float64, with the mean of all identifiers where it is unknown."""
        known = hub_R.astype(np.float64)
        known[np.isnan(known)] = self.hub_mean
        return known

    def hub(self, level: int, node_R: IndexArray) -> FloatArray:
        """Mean hubness (R,) of the identifiers under nodes of a level; unknown hubness counts as
        the mean of all identifiers."""
        if self.hub_mean is None:
            return np.zeros(len(node_R), dtype=np.float32)
        if level < len(self.hubs):
            return self.hubs[level].take(node_R)
        begin: AnyArray = node_R
        end: AnyArray = node_R + 1
        for one in self.levels[level:-1]:
            begin, end = one.first.take(begin), one.first.take(end)
        count = end - begin
        ends = count.cumsum()
        if len(ends) == 0 or ends[-1] == len(ends):  # one identifier under each node
            return self._known(self.hub_N.take(begin)).astype(np.float32)
        leaves = self._known(self.hub_N.take(spans(begin, count)))
        return np.asarray(np.add.reduceat(leaves, ends - count) / count, dtype=np.float32)

    def children(self, depth: int, node: int | None) -> tuple[int, int]:
        """Range of the children, in the level `depth`, of a node of the level above; without a
        node, the range of the first level."""
        if node is None:
            return 0, len(self.levels[0].tokens)
        first = self.levels[depth - 1].first
        return int(first[node]), int(first[node + 1])

    def path(self, row_L: Sequence[int]) -> list[int]:
        """Nodes along an identifier or prefix, from the first level to the last stored one."""
        out: list[int] = []
        for depth, (level, code) in enumerate(zip(self.levels, row_L, strict=False)):
            begin, end = self.children(depth, out[-1] if out else None)
            node = begin + int(np.searchsorted(level.tokens[begin:end], code))
            if node == end or level.tokens[node] != code:
                break
            out.append(node)
        return out

    def leaves(self, depth: int, node: int) -> int:
        """Number of identifiers under a node of the level `depth`."""
        begin, end = node, node + 1
        for level in self.levels[depth:-1]:
            begin, end = int(level.first[begin]), int(level.first[end])
        return end - begin

    def nodes(self, rows_ML: npt.ArrayLike) -> IndexArray:
        """Last node (M,) of each identifier, or of each of several prefixes of equal length; -1
        where the tree does not hold it."""
        rows = np.asarray(rows_ML, dtype=np.int32)
        node, found = np.zeros(len(rows), dtype=np.intp), np.ones(len(rows), dtype=bool)
        if len(self) == 0:
            return node - 1
        for level, code in enumerate(rows.T):
            begin, end = self.child_ranges(level, node)
            node, known = find_codes(self.levels[level].tokens, begin, end, code)
            found &= known
            node[~found] = 0
        node[~found] = -1
        return node

    def child_ranges(self, level: int, node_R: IndexArray) -> tuple[AnyArray, AnyArray]:
        """Ranges of the children, in a level, of nodes of the level above: `children` of many."""
        if level == 0:
            count = len(self.levels[0].tokens)
            return np.zeros_like(node_R), np.full_like(node_R, count)
        first = self.levels[level - 1].first
        return first.take(node_R), first.take(node_R + 1)

    def contains(self, rows_NL: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Whether the tree holds each identifier (N,)."""
        return self.nodes(self.as_rows(rows_NL)) >= 0

    def as_rows(self, rows_NL: npt.ArrayLike) -> IntArray:
        """Identifiers as an int32 matrix (N, L)."""
        return np.asarray(rows_NL, dtype=np.int32).reshape(-1, self.depth)

    def _arrays(self) -> dict[str, AnyArray]:
        arrays: dict[str, AnyArray] = {"hub": self.hub_N}
        for n, level in enumerate(self.levels):
            arrays[f"tokens{n}"], arrays[f"first{n}"] = level.tokens, level.first
        for n, hubs in enumerate(self.hubs):
            arrays[f"hubs{n}"] = hubs
        if self.hub_mean is not None:
            arrays["hub_mean"] = np.asarray([self.hub_mean])
        return arrays

    def save(self, path: Path) -> None:
        """Write the tree to a safetensors file."""
        from safetensors.numpy import save_file

        with disk_errors(path):
            save_file(self._arrays(), path)

    @classmethod
    def load(cls, path: Path) -> Trie:
        """Open a file that `save` wrote, by mapping its arrays without reading them.

        Raises:
            MismatchError: The file does not hold a tree, or is truncated.
        """
        arrays = map_arrays(path)
        try:
            depth = max(1, sum(name.startswith("tokens") for name in arrays))
            levels = [Level(arrays[f"tokens{n}"], arrays[f"first{n}"]) for n in range(depth)]
            hubs = [arrays[f"hubs{n}"] for n in range(depth) if f"hubs{n}" in arrays]
            mean = float(arrays["hub_mean"][0]) if "hub_mean" in arrays else None
            found = cls(tuple(levels), arrays["hub"], mean, tuple(hubs))
        except KeyError as error:
            raise MismatchError(f"{path} is no prefix tree: it lacks {error}.") from error
        if not found._fits():
            raise MismatchError(f"{path} is no prefix tree: its levels do not fit one another.")
        return found

    def _fits(self) -> bool:
        """Whether the sizes of the arrays agree, checked without reading the arrays."""
        sizes = [len(level.tokens) for level in self.levels]
        firsts = [level.first for level in self.levels[:-1]]
        return (
            len(self.hub_N) == sizes[-1]
            and all(len(hubs) == size for hubs, size in zip(self.hubs, sizes, strict=False))
            and all(len(first) == size + 1 for first, size in zip(firsts, sizes, strict=False))
            and all((f[0], f[-1]) == (0, below) for f, below in zip(firsts, sizes[1:], strict=True))
        )


def spans(begin_R: AnyArray, count_R: AnyArray) -> IndexArray:
    """The integers of the ranges `begin .. begin + count`, one range after another."""
    end_R = count_R.cumsum()
    out: IndexArray = np.arange(end_R[-1] if len(end_R) else 0)
    out += (begin_R + count_R - end_R).repeat(count_R)
    return out


def find_codes(
    tokens: AnyArray, begin_R: AnyArray, end_R: AnyArray, code_R: AnyArray
) -> tuple[IndexArray, npt.NDArray[np.bool_]]:
    """Search for each code in its own sorted range of `tokens`.

    Returns:
        Position (R,) of each code, or the position at which it would be inserted, and whether the
        code is there (R,).
    """
    low, high = begin_R.astype(np.intp), end_R.astype(np.intp)
    last = len(tokens) - 1
    while (searched := low < high).any():
        middle = (low + high) >> 1
        less = searched & (tokens.take(np.minimum(middle, last)) < code_R)
        low = np.where(less, middle + 1, low)
        high = np.where(searched & ~less, middle, high)
    return low, (low < end_R) & (tokens.take(np.minimum(low, last)) == code_R)


def narrowed(tokens: AnyArray) -> AnyArray:
    """Codes in the narrowest of uint8, uint16 and int32 that holds them."""
    if tokens.dtype == np.uint8:
        return tokens
    largest = int(tokens.max(initial=0))
    fits = (kind for kind in (np.uint8, np.uint16) if largest <= np.iinfo(kind).max)
    return np.ascontiguousarray(tokens, dtype=next(fits, np.int32))
