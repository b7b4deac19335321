"""Replaces items in an item table and in its prefix tree, without building either again.

Each edit copies the columns once and searches only for the items that come or go. Shape legend:
N items, C items that come or go, L levels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cart_qdrant.arrays.types import AnyArray, FloatArray, IntArray, KeyArray
from cart_qdrant.identifiers import trie_edits
from cart_qdrant.identifiers.item_table import ItemTable
from cart_qdrant.identifiers.trie import Trie


@dataclass(frozen=True, slots=True)
class Items:
    """Items in any order, with all that tree and table hold of them.

    Attributes:
        key_C: Keys of the point ids, as `point_ids.keys_of` makes them.
        row_CL: Whole identifiers.
        media_hub_C: Hubness of the media vector; NaN where it is not known.
        modality_C: Number of the modality, see `modality_number`.
        file_C: Number of the file, see `file_number`.
        caption_hub_C: Hubness of the caption vector; NaN where it is not known.
    """

    key_C: KeyArray
    row_CL: IntArray
    media_hub_C: FloatArray
    modality_C: npt.NDArray[np.uint8]
    file_C: npt.NDArray[np.uint64]
    caption_hub_C: FloatArray

    def __len__(self) -> int:
        return len(self.key_C)

    def build(self) -> tuple[Trie, ItemTable]:
        """The prefix tree and the item table of these items alone."""
        trie = Trie.build(self.row_CL, self.row_CL.shape[1], self.media_hub_C)
        return trie, self._table(trie)

    def _table(self, trie: Trie) -> ItemTable:
        leaf_C = trie.nodes(self.row_CL)
        return ItemTable.build(self.key_C, leaf_C, self.modality_C, self.file_C, self.caption_hub_C)

    def replace_in(
        self, trie: Trie, table: ItemTable, gone_C: KeyArray
    ) -> tuple[Trie, ItemTable] | None:
        """Tree and table without the items `gone_C`, and with these items.

        Args:
            trie: The tree of all items.
            table: The table of all items.
            gone_C: Keys of items that are removed; unknown keys change nothing. An item of the
                same key as one of these is removed, too.

        Returns:
            None where items are not told apart by key and identifier, now or afterwards: then tree
            and table have to be built from all items.
        """
        if len(trie) != len(table):
            return None
        row_R = np.unique(table.rows(np.concatenate([gone_C, self.key_C])))
        row_R = row_R[row_R >= 0]
        leaf_R = table.leaf_N[row_R]
        less = trie_edits.delete(trie, trie.rows_at(leaf_R))
        more = trie_edits.insert(less, self.row_CL, self.media_hub_C)
        new = self._table(more)
        if len(less) != len(trie) - len(row_R) or not (
            len(more) - len(less) == len(new) == len(self)
        ):
            return None
        moved_N = np.full(len(trie), -1, dtype=np.int32)
        stay = np.delete(np.arange(len(trie)), leaf_R)
        moved_N[stay] = np.delete(np.arange(len(more), dtype=np.int32), new.leaf_N)
        kept = delete(table, row_R)
        kept = ItemTable(
            kept.key_N, moved_N[kept.leaf_N], kept.modality_N, kept.file_N, kept.caption_hub_N
        )
        return more, insert(kept, new)


def delete(table: ItemTable, row_C: AnyArray) -> ItemTable:
    """A table without some rows; positions in the tree are as they were."""
    return _each(lambda column_N: np.delete(column_N, row_C), table)


def insert(table: ItemTable, new: ItemTable) -> ItemTable:
    """A table with the items of another one, whose keys it lacks, too."""
    at_C = table.key_N.searchsorted(new.key_N)
    return _each(lambda column_N, more_C: np.insert(column_N, at_C, more_C), table, new)


def _each(edit: Callable[..., AnyArray], *tables: ItemTable) -> ItemTable:
    """The table whose columns `edit` makes of those of the given tables."""
    columns = zip(*(_columns(table) for table in tables), strict=True)
    return ItemTable(*(edit(*some) for some in columns))


def _columns(table: ItemTable) -> tuple[AnyArray, ...]:
    return (
        table.key_N, table.leaf_N, table.modality_N, table.file_N, table.caption_hub_N
    )  # fmt: skip
