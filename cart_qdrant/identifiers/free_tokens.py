"""The next free disambiguation token of each semantic part that a prefix tree holds."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping

from cart_qdrant.identifiers.trie import Trie

_BLOCK = 100_000
"""Prefixes that are made into tuples at once."""


class FreeTokens(MutableMapping[tuple[int, ...], int]):
    """Maps each semantic part of a tree to its next free disambiguation token.

    The tokens are looked up in the tree when they are asked for, since a dictionary of ten million
    takes gigabytes. Tokens that are set are kept in a dictionary beside the tree.
    """

    def __init__(self, trie: Trie) -> None:
        self._trie = trie
        self._set: dict[tuple[int, ...], int] = {}

    def __getitem__(self, codes: tuple[int, ...]) -> int:
        found = self._set.get(codes) or self._stored(codes)  # a token that is set is over 0
        if found is None:
            raise KeyError(codes)
        return found

    def _stored(self, codes: tuple[int, ...]) -> int | None:
        trie = self._trie
        path = trie.path(codes)
        if len(codes) != trie.depth - 1 or len(path) != len(codes) or len(trie) == 0:
            return None
        _, end = trie.children(len(codes), path[-1] if path else None)
        return int(trie.levels[-1].tokens[end - 1]) + 1  # sorted, so the last is the greatest

    def __setitem__(self, codes: tuple[int, ...], free: int) -> None:
        self._set[codes] = free

    def __delitem__(self, codes: tuple[int, ...]) -> None:
        raise TypeError("A disambiguation token that was handed out stays taken.")

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        stored = self._trie.prefixes(self._trie.depth - 1)
        for begin in range(0, len(stored), _BLOCK):
            yield from map(tuple, stored[begin : begin + _BLOCK].tolist())
        yield from (codes for codes in self._set if self._stored(codes) is None)

    def __len__(self) -> int:
        return sum(1 for _ in self)
