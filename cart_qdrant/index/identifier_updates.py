"""Brings prefix tree and item table up to date: by the points that changed, or by all points."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from cart_qdrant.arrays.point_ids import keys_of
from cart_qdrant.arrays.types import KeyArray
from cart_qdrant.errors import MismatchError
from cart_qdrant.identifiers.free_tokens import FreeTokens
from cart_qdrant.identifiers.item_table import ItemTable
from cart_qdrant.identifiers.trie import Trie
from cart_qdrant.index.identified_items import IdentifiedItems
from cart_qdrant.index.identifier_files import load_table, load_trie
from cart_qdrant.index.identifier_writes import PointIdentifier
from cart_qdrant.index.index import Index
from cart_qdrant.index.manifest import IdentifierInfo
from cart_qdrant.index.points import has_identifier

Updated = tuple[int, Trie, ItemTable]
"""Number of items without an identifier, the tree, and the table."""


def built_parts(index: Index, info: IdentifierInfo) -> Updated:
    """Give identifiers to points that lack them; build tree and table from all payloads."""
    measured = index.query_bank() is not None
    items, unmeasured = IdentifiedItems.read(index, info.field, info.levels, measured=measured)
    free = FreeTokens(items.items().build()[0])
    writer = PointIdentifier(index, info, free, items)
    writer.collect(unmeasured)
    without = writer.assign_missing()
    return without, *items.items().build()


def edited_parts(index: Index, info: IdentifierInfo) -> Updated | None:
    """Give identifiers to points that lack them; replace the changed points in tree and table.

    Returns:
        None where it is not known which points have changed, or the stored tree and table do not
        tell them apart.
    """
    if index.changes.unknown:
        return None
    try:
        trie, table = load_trie(index), load_table(index)
    except (MismatchError, FileNotFoundError):
        return None  # a file is broken: it is built anew
    assert trie is not None and table is not None
    attached = index.attachment is not None
    before = index.store.count(has_identifier(info.field)) if attached else 0
    changed = set(index.changes.ids)
    items = IdentifiedItems(info.levels)
    writer = PointIdentifier(index, info, FreeTokens(trie), items)
    writer.collect(changed)
    kept = len(items)
    without = writer.assign_missing()
    new = items.items()
    gone = keys_of(changed)
    if attached:
        # Others delete points, and overwrite them without their identifier.
        known = np.union1d(gone, new.key_C[kept:])
        left = len(table) - int((table.rows(known) >= 0).sum())
        if left + kept != before:
            gone = np.union1d(gone, _missing(index, info, table))
    parts = new.replace_in(trie, table, gone)
    return None if parts is None else (without, *parts)


def _missing(index: Index, info: IdentifierInfo, table: ItemTable) -> KeyArray:
    """Keys of the items of a table whose points are no longer there."""
    found: Iterable[str] = (
        str(record.id)
        for record in index.store.scroll(has_identifier(info.field), with_payload=False)
    )
    there = np.zeros(len(table), dtype=bool)
    row_N = table.rows(keys_of(found))
    there[row_N[row_N >= 0]] = True
    return table.key_N[~there]
