"""The items that have an identifier, read from the store into a prefix tree and an item table.

Shape legend: N items, L identifier length.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cart_qdrant.arrays.point_ids import key_of
from cart_qdrant.arrays.types import IntArray
from cart_qdrant.identifiers.item_table import ItemTable, file_number, kind_number
from cart_qdrant.identifiers.trie import FreeCounters, Trie
from cart_qdrant.index.index import Index
from cart_qdrant.index.points import has_identifier


class IdentifiedItems:
    """What the payloads of points with an identifier say, in growing arrays: lists would take
    gigabytes."""

    def __init__(self, levels: int, *, bare: bool) -> None:
        self._depth, self._keeps_bare = levels + 1, bare
        self._keys, self._kinds = bytearray(), bytearray()
        self._codes, self._files = array("i"), array("Q")
        self._hubs = {"media": array("f"), "caption": array("f")}
        self.bare: dict[str, int] = {}
        """Places of points whose hubness is not stored, if asked for: it has no payload index to
        find them by."""

    @classmethod
    def read(cls, index: Index, field: str, levels: int, *, bare: bool = False) -> IdentifiedItems:
        """Those of a payload field."""
        items = cls(levels, bare=bare)
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
        """One more, with what its payload says besides."""
        if hub is None and self._keeps_bare:
            self.bare[id] = len(self._kinds)
        self._keys += key_of(id)
        self._kinds.append(kind_number(payload.get("modality")))
        self._files.append(file_number(payload.get("path", id)))
        self._codes.extend(row_L)
        for name, values in self._hubs.items():
            values.append((hub or {}).get(name, np.nan))

    def set_hub(self, id: str, hub: Mapping[str, float]) -> None:
        """The hubness of one that had none."""
        place = self.bare.pop(id)
        for name, values in self._hubs.items():
            values[place] = hub.get(name, np.nan)

    def counters(self) -> FreeCounters:
        """Next free counter of each semantic part."""
        return self._tree().counters()

    def _rows(self) -> IntArray:
        return np.asarray(self._codes, dtype=np.int32).reshape(-1, self._depth)

    def _tree(self) -> Trie:
        return Trie.build(self._rows(), self._depth, np.asarray(self._hubs["media"]))

    def finish(self) -> tuple[Trie, ItemTable]:
        """The tree of all identifiers, and what ranks their items."""
        trie = self._tree()
        table = ItemTable.build(
            np.frombuffer(self._keys, dtype="S16"), trie.nodes(self._rows()),
            np.frombuffer(self._kinds, dtype=np.uint8), np.asarray(self._files, dtype=np.uint64),
            np.asarray(self._hubs["caption"]),
        )  # fmt: skip
        return trie, table
