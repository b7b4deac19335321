"""The prefix tree of all stored identifiers, as sorted arrays (CSR per level).

A million identifiers build in a fifth of a second and take some 16 MB, where a tree of dicts takes
seconds and hundreds; ten million are opened without being read (`mapped.py`). Insertion and
deletion copy the arrays once and sort only what is new. Each identifier may carry its hubness
(`querybank.py`), so that the decoder can tell what is found by every query. Shape legend:
N identifiers, M others, L levels (semantic codes and counter), R nodes of one level.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cart_qdrant.arrays.mmap import map_arrays
from cart_qdrant.arrays.types import AnyArray, FloatArray, IndexArray, IntArray
from cart_qdrant.errors import MismatchError
from cart_qdrant.identifiers.row_order import in_order

UPPER = 0.9
"""Nodes over identifiers up to which a level keeps the mean hubness of its nodes."""
_BLOCK = 100_000
"""Prefixes made into tuples at once."""
_ZIP = b"PK\x03\x04"
"""How a tree of an older version begins: an `.npz`."""


@dataclass(frozen=True, slots=True)
class Level:
    """Nodes of one depth, in lexicographic order of their prefixes.

    Attributes:
        tokens: Code of each node (nodes,), in the narrowest type that holds them.
        first: Where the children of each node begin in the next level (nodes + 1,); the children
            of node `n` are `first[n] .. first[n + 1]`. Empty at the last level.
    """

    tokens: AnyArray
    first: IntArray


@dataclass(frozen=True, slots=True)
class Trie:
    """A frozen set of identifiers of equal length; insertion and deletion return a new one.

    Attributes:
        levels: Nodes of each depth.
        hub_N: Hubness of each identifier in order; NaN where it is not known.
        hub_mean: Mean of the hubness that is known; None if none is.
        hubs: Mean hubness of the identifiers under each node, of the upper levels; further down,
            where most nodes have one identifier, `hub` reads theirs.
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
        """Tree of the given identifiers, in any order, duplicates allowed.

        Args:
            rows_NL: Non-negative codes (N, L).
            depth: L, needed only when there are no rows.
            hub_N: Hubness of each, if known; of equal rows the first counts.
        """
        rows = np.asarray(rows_NL, dtype=np.int32)
        if rows.size == 0:
            rows = rows.reshape(0, depth or (rows.shape[1] if rows.ndim == 2 else 0))
        if rows.ndim != 2 or rows.shape[1] == 0 or (depth is not None and rows.shape[1] != depth):
            raise MismatchError(f"Identifiers have shape {rows.shape}, but {depth} levels are due.")
        found = in_order(rows)
        hubs = np.full(len(found.order), np.nan, dtype=np.float32)
        if hub_N is not None:
            hubs = np.asarray(hub_N, dtype=np.float32).reshape(len(rows))[found.order]
        keys, differs = found.keys, found.differs
        levels = [Level(_narrowed(found.codes(-1, keys)), np.empty(0, dtype=np.int32))]
        for level in range(rows.shape[1] - 2, -1, -1):
            begins = np.flatnonzero(differs >= found.bounds[level])
            first = np.append(begins, len(keys)).astype(np.int32)
            keys, differs = keys[begins], differs[begins]
            levels.append(Level(_narrowed(found.codes(level, keys)), first))
        return cls._of(levels[::-1], hubs)

    @classmethod
    def _of(cls, levels: Sequence[Level], hub_N: FloatArray) -> Trie:
        """With means of hubness."""
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
        """Levels L of an identifier, counter included."""
        return len(self.levels)

    def __len__(self) -> int:
        return len(self.levels[-1].tokens)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self._arrays().values())

    @property
    def unique_ratio(self) -> float:
        """U: distinct semantic parts over identifiers; 1.0 for none."""
        if len(self) == 0:
            return 1.0
        return (len(self.levels[-2].tokens) if self.depth > 1 else 1) / len(self)

    def rows(self) -> IntArray:
        """All identifiers (N, L) in order."""
        return self.prefixes(self.depth)

    def prefixes(self, length: int) -> IntArray:
        """All prefixes of that many codes, in order."""
        count = len(self.levels[length - 1].tokens) if length else min(1, len(self))
        out = np.empty((count, length), dtype=np.int32)
        for level in range(length):
            begin = self._begin(level, length - 1)
            out[:, level] = np.repeat(self.levels[level].tokens, np.diff(begin))
        return out

    def _begin(self, level: int, below: int) -> AnyArray:
        """Where the nodes under each of a level begin in a level further down (nodes + 1,)."""
        if level == below:
            return np.arange(len(self.levels[level].tokens) + 1)
        begin = self.levels[level].first
        for one in self.levels[level + 1 : below]:
            begin = one.first[begin]
        return begin

    def _known(self, hub_R: FloatArray) -> npt.NDArray[np.float64]:
        """Hubness for sums: what is not known counts as the mean of all."""
        known = hub_R.astype(np.float64)
        known[np.isnan(known)] = self.hub_mean
        return known

    def hub(self, level: int, node_R: IndexArray) -> FloatArray:
        """Mean hubness (R,) of the identifiers under nodes of a level; what is not known counts as
        the mean of all."""
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
        if len(ends) == 0 or ends[-1] == len(ends):  # one each
            return self._known(self.hub_N.take(begin)).astype(np.float32)
        leaves = self._known(self.hub_N.take(spans(begin, count)))
        return np.asarray(np.add.reduceat(leaves, ends - count) / count, dtype=np.float32)

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

    def nodes(self, rows_ML: npt.ArrayLike) -> IndexArray:
        """Last node of each identifier, or of prefixes of equal length (M,); -1 where there is
        none."""
        rows = np.asarray(rows_ML, dtype=np.int32)
        node, found = np.zeros(len(rows), dtype=np.intp), np.ones(len(rows), dtype=bool)
        if len(self) == 0:
            return node - 1
        for level, code in enumerate(rows.T):
            begin, end = self._children(level, node)
            node, known = _find(self.levels[level].tokens, begin, end, code)
            found &= known
            node[~found] = 0
        node[~found] = -1
        return node

    def _children(self, level: int, node_R: IndexArray) -> tuple[AnyArray, AnyArray]:
        """Ranges of nodes, in a level, under nodes of the level before; see `children`."""
        if level == 0:
            count = len(self.levels[0].tokens)
            return np.zeros_like(node_R), np.full_like(node_R, count)
        first = self.levels[level - 1].first
        return first.take(node_R), first.take(node_R + 1)

    def contains(self, rows_NL: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Which of `rows_NL` are stored (N,)."""
        return self.nodes(self._as_rows(rows_NL)) >= 0

    def _as_rows(self, rows_NL: npt.ArrayLike) -> IntArray:
        return np.asarray(rows_NL, dtype=np.int32).reshape(-1, self.depth)

    def insert(self, rows_NL: npt.ArrayLike, hub_N: npt.ArrayLike | None = None) -> Trie:
        """A tree that also holds `rows_NL`; known ones change nothing."""
        new = Trie.build(self._as_rows(rows_NL), self.depth, hub_N)
        if len(self) == 0 or len(new) == 0:
            return new if len(self) == 0 else self
        places, freshes = self._places(new)
        # How many of the new tree's nodes before each are fresh, level by level.
        counts = [np.concatenate([[0], fresh_R.cumsum()]) for fresh_R in freshes]
        levels: list[Level] = []
        for level, (mine, its) in enumerate(zip(self.levels, new.levels, strict=True)):
            place_R, fresh_R = places[level], freshes[level]
            at = place_R[fresh_R]
            kind = np.promote_types(mine.tokens.dtype, its.tokens.dtype)
            tokens = np.insert(mine.tokens.astype(kind, copy=False), at, its.tokens[fresh_R])
            first = mine.first
            if level + 1 < self.depth:
                more = counts[level + 1][its.first]
                begins = (first[at] + more[:-1][fresh_R]).astype(np.int32)
                # What comes after a node that is there, or from a fresh one on, begins later.
                first = np.insert(_later(first, place_R - fresh_R, np.diff(more)), at, begins)
            levels.append(Level(tokens, first))
        return Trie._of(levels, np.insert(self.hub_N, at, new.hub_N[fresh_R]))

    def _places(self, new: Trie) -> tuple[list[IndexArray], list[npt.NDArray[np.bool_]]]:
        """Where the nodes of another tree are in this one or belong, and whether they are fresh,
        level by level."""
        places, freshes = [], []
        begin, end = self._children(0, np.zeros(len(new.levels[0].tokens), dtype=np.intp))
        for level, (mine, its) in enumerate(zip(self.levels, new.levels, strict=True)):
            place_R, known = _find(mine.tokens, begin, end, its.tokens)
            places.append(place_R)
            freshes.append(~known)
            if level + 1 < self.depth:
                # Under a fresh node there are none yet.
                count = np.diff(its.first)
                begin = mine.first.take(place_R).repeat(count)
                end = mine.first.take(place_R + known).repeat(count)
        return places, freshes

    def delete(self, rows_NL: npt.ArrayLike) -> Trie:
        """A tree without `rows_NL`; unknown ones change nothing."""
        deleted = np.unique(self.nodes(self._as_rows(rows_NL)))
        deleted = deleted[deleted >= 0]
        if len(deleted) == 0:
            return self
        hubs = np.delete(self.hub_N, deleted)
        levels: list[Level] = []
        first = self.levels[-1].first
        for level in range(self.depth - 1, -1, -1):
            levels.append(Level(_narrowed(np.delete(self.levels[level].tokens, deleted)), first))
            if level:
                above = self.levels[level - 1].first
                under = above.searchsorted(deleted.astype(np.int32), side="right") - 1
                owner, count = np.unique(under, return_counts=True)
                deleted = owner[count == above[owner + 1] - above[owner]]
                first = np.delete(_later(above, owner, -count), deleted)
        return Trie._of(levels[::-1], hubs)

    def counters(self) -> FreeCounters:
        """Next free counter of each semantic part."""
        return FreeCounters(self)

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
        """Write a safetensors file."""
        from safetensors.numpy import save_file

        save_file(self._arrays(), path)

    @classmethod
    def load(cls, path: Path) -> Trie:
        """Inverse of `save`, without reading the arrays; also of an older version's `.npz`.

        Raises:
            MismatchError: The file is no tree, or cut short.
        """
        with path.open("rb") as file:
            old = file.read(len(_ZIP)) == _ZIP
        if old:
            return cls._load_npz(path)
        arrays = map_arrays(path)
        try:
            depth = max(1, sum(name.startswith("tokens") for name in arrays))
            levels = [Level(arrays[f"tokens{n}"], arrays[f"first{n}"]) for n in range(depth)]
            hubs = [arrays[f"hubs{n}"] for n in range(depth) if f"hubs{n}" in arrays]
            mean = float(arrays["hub_mean"][0]) if "hub_mean" in arrays else None
            found = cls(tuple(levels), arrays["hub"], mean, tuple(hubs))
        except KeyError as error:
            raise MismatchError(f"{path} is no tree: it lacks {error}.") from error
        if not found._fits():
            raise MismatchError(f"{path} is no tree: its levels do not fit one another.")
        return found

    def _fits(self) -> bool:
        """Whether sizes agree, as far as can be told without reading the arrays."""
        sizes = [len(level.tokens) for level in self.levels]
        firsts = [level.first for level in self.levels[:-1]]
        return (
            len(self.hub_N) == sizes[-1]
            and all(len(hubs) == size for hubs, size in zip(self.hubs, sizes, strict=False))
            and all(len(first) == size + 1 for first, size in zip(firsts, sizes, strict=False))
            and all((f[0], f[-1]) == (0, below) for f, below in zip(firsts, sizes[1:], strict=True))
        )

    @classmethod
    def _load_npz(cls, path: Path) -> Trie:
        from zipfile import BadZipFile

        try:
            with np.load(path, allow_pickle=False) as data:
                depth = len(data.files) // 2
                levels = [Level(data[f"tokens{n}"], data[f"first{n}"]) for n in range(depth)]
                # The oldest trees have no hubness.
                bare = np.full(len(levels[-1].tokens), np.nan, dtype=np.float32)
                return cls._of(levels, data["hub"] if "hub" in data.files else bare)
        except BadZipFile as error:
            raise MismatchError(f"{path} is not readable: {error}.") from error


class FreeCounters(MutableMapping[tuple[int, ...], int]):
    """Next free counter of each semantic part of a tree: looked up when asked for, since a
    dictionary of ten million takes gigabytes. What is set is kept beside the tree."""

    def __init__(self, trie: Trie) -> None:
        self._trie = trie
        self._set: dict[tuple[int, ...], int] = {}

    def __getitem__(self, codes: tuple[int, ...]) -> int:
        found = self._set.get(codes) or self._stored(codes)  # what is set is over 0
        if found is None:
            raise KeyError(codes)
        return found

    def _stored(self, codes: tuple[int, ...]) -> int | None:
        trie = self._trie
        path = trie.path(codes)
        if len(codes) != trie.depth - 1 or len(path) != len(codes) or len(trie) == 0:
            return None
        _, end = trie.children(len(codes), path[-1] if path else None)
        return int(trie.levels[-1].tokens[end - 1]) + 1  # in order, so the last is the greatest

    def __setitem__(self, codes: tuple[int, ...], free: int) -> None:
        self._set[codes] = free

    def __delitem__(self, codes: tuple[int, ...]) -> None:
        raise TypeError("A counter that was handed out stays taken.")

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        stored = self._trie.prefixes(self._trie.depth - 1)
        for begin in range(0, len(stored), _BLOCK):
            yield from map(tuple, stored[begin : begin + _BLOCK].tolist())
        yield from (codes for codes in self._set if self._stored(codes) is None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def spans(begin_R: AnyArray, count_R: AnyArray) -> IndexArray:
    """The ranges `begin .. begin + count` one after another."""
    end_R = count_R.cumsum()
    out: IndexArray = np.arange(end_R[-1] if len(end_R) else 0)
    out += (begin_R + count_R - end_R).repeat(count_R)
    return out


def _find(
    tokens: AnyArray, begin_R: AnyArray, end_R: AnyArray, code_R: AnyArray
) -> tuple[IndexArray, npt.NDArray[np.bool_]]:
    """Where each code is, or belongs, in its own range of `tokens`, and whether it is there."""
    low, high = begin_R.astype(np.intp), end_R.astype(np.intp)
    last = len(tokens) - 1
    while (searched := low < high).any():
        middle = (low + high) >> 1
        less = searched & (tokens.take(np.minimum(middle, last)) < code_R)
        low = np.where(less, middle + 1, low)
        high = np.where(searched & ~less, middle, high)
    return low, (low < end_R) & (tokens.take(np.minimum(low, last)) == code_R)


def _later(first: IntArray, owner_R: IndexArray, more_R: AnyArray) -> IntArray:
    """Where children begin after the nodes `owner_R`, in order, have got so many more."""
    ends = np.concatenate([[0], owner_R + 1, [len(first)]])
    shift = np.concatenate([[0], np.cumsum(more_R)]).astype(np.int32)
    return first + np.repeat(shift, np.diff(ends))


def _narrowed(tokens: AnyArray) -> AnyArray:
    if tokens.dtype == np.uint8:
        return tokens
    largest = int(tokens.max(initial=0))
    fits = (kind for kind in (np.uint8, np.uint16) if largest <= np.iinfo(kind).max)
    return np.ascontiguousarray(tokens, dtype=next(fits, np.int32))
