"""Cuts long lists into batches, by number of items and by size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Consecutive slices of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def chunks_by_bytes(
    items: Iterable[T], size_of: Callable[[T], int], *, max_bytes: int, max_items: int
) -> Iterator[list[T]]:
    """Consecutive groups that keep both limits; an item larger than `max_bytes` goes alone."""
    group: list[T] = []
    total = 0
    for item in items:
        size = size_of(item)
        if group and (total + size > max_bytes or len(group) >= max_items):
            yield group
            group, total = [], 0
        group.append(item)
        total += size
    if group:
        yield group
