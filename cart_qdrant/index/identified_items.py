"""Reads the items that have an identifier into a prefix tree and an item table.

Shape legend: N items, L identifier length.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cart_qdrant.arrays.point_ids import key_of
from cart_qdrant.arrays.types import IntArray
from cart_qdrant.identifiers.free_tokens import FreeTokens
from cart_qdrant.identifiers.item_table import ItemTable, file_number, modality_number
from cart_qdrant.identifiers.trie import Trie
from cart_qdrant.index.index import Index
from cart_qdrant.index.points import has_identifier


class IdentifiedItems:
    """Identifier, modality, file and hubness of each item, in growing arrays: Python lists would
    take gigabytes for ten million items.

    Args:
        levels: Semantic levels of an identifier.
        list_unmeasured: Whether to collect the items without hubness in `unmeasured`.

    Attributes:
        unmeasured: Point ids of items without stored hubness, with their numbers. The store cannot
            find these points: hubness has no payload index.
    """

    def __init__(self, levels: int, *, list_unmeasured: bool) -> None:
        self._length, self._list_unmeasured = levels + 1, list_unmeasured
        self._keys, self._kinds = bytearray(), bytearray()
        self._codes, self._files = array("i"), array("Q")
        self._hubs = {"media": array("f"), "caption": array("f")}
        self.unmeasured: dict[str, int] = {}

    @classmethod
    def read(
        cls, index: Index, field: str, levels: int, *, list_unmeasured: bool = False
    ) -> IdentifiedItems:
        """Read all items that have an identifier in a payload field."""
        items = cls(levels, list_unmeasured=list_unmeasured)
        wanted = ["modality", "path", field]
        for record in index.store.scroll(has_identifier(field), with_payload=wanted):
            payload = record.payload or {}
            cart = payload[field]
            items.add(
                str(record.id), (*cart["codes"], cart["disambiguation"]), payload, cart.get("hub")
            )
        return items

    def add(
        self,
        id: str,
        row_L: Sequence[int],
        payload: Mapping[str, Any],
        hub: Mapping[str, float] | None = None,
    ) -> None:
        """Add an item.

        Args:
            id: Point id.
            row_L: The whole identifier.
            payload: Payload of the point with `modality` and `path`.
            hub: Hubness by vector; None where it was not measured.
        """
        if hub is None and self._list_unmeasured:
            self.unmeasured[id] = len(self._kinds)
        self._keys += key_of(id)
        self._kinds.append(modality_number(payload.get("modality")))
        self._files.append(file_number(payload.get("path", id)))
        self._codes.extend(row_L)
        for name, values in self._hubs.items():
            values.append((hub or {}).get(name, np.nan))

    def set_hubness(self, id: str, hub: Mapping[str, float]) -> None:
        """Set the hubness of an item of `unmeasured`."""
        number = self.unmeasured.pop(id)
        for name, values in self._hubs.items():
            values[number] = hub.get(name, np.nan)

    def free_tokens(self) -> FreeTokens:
        """The next free disambiguation token of each semantic part."""
        return FreeTokens(self._tree())

    def _rows(self) -> IntArray:
        return np.asarray(self._codes, dtype=np.int32).reshape(-1, self._length)

    def _tree(self) -> Trie:
        return Trie.build(self._rows(), self._length, np.asarray(self._hubs["media"]))

    def finish(self) -> tuple[Trie, ItemTable]:
        """The prefix tree of all identifiers, and the item table."""
        trie = self._tree()
        table = ItemTable.build(
            np.frombuffer(self._keys, dtype="S16"), trie.nodes(self._rows()),
            np.frombuffer(self._kinds, dtype=np.uint8), np.asarray(self._files, dtype=np.uint64),
            np.asarray(self._hubs["caption"]),
        )  # fmt: skip
        return trie, table
