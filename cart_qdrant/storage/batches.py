"""Cuts long lists into batches, by number of items and by size, and reads long lists in pages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def in_pages(page: Callable[[Any], tuple[Iterable[T], Any]]) -> Iterator[T]:
    """The items of all pages.

    Args:
        page: Gives the items of the page that begins somewhere, at first at None, and where the
            next one begins; None after the last one.
    """
    begin = None
    while True:
        items, begin = page(begin)
        yield from items
        if begin is None:
            return


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
