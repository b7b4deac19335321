"""Collects items that have an identifier, for a prefix tree and an item table.

Shape legend: N items, L identifier length.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cart_qdrant.arrays.point_ids import key_of
from cart_qdrant.identifiers.item_edits import Items
from cart_qdrant.identifiers.item_table import file_number, modality_number
from cart_qdrant.index.index import Index
from cart_qdrant.index.points import has_identifier


class IdentifiedItems:
    """Identifier, modality, file and hubness of each item, in growing arrays: Python lists would
    take gigabytes for ten million items.

    Args:
        levels: Semantic levels of an identifier.
    """

    def __init__(self, levels: int) -> None:
        self._length = levels + 1
        self._keys, self._kinds = bytearray(), bytearray()
        self._codes, self._files = array("i"), array("Q")
        self._hubs = {"media": array("f"), "caption": array("f")}

    def __len__(self) -> int:
        return len(self._kinds)

    @classmethod
    def read(
        cls, index: Index, field: str, levels: int, *, measured: bool = False
    ) -> tuple[IdentifiedItems, list[str]]:
        """Read all items that have an identifier in a payload field.

        Args:
            index: Open index.
            field: Payload field.
            levels: Semantic levels of an identifier.
            measured: Whether to leave out the items without stored hubness.

        Returns:
            The items, and the point ids of those left out. The store cannot find these points:
            hubness has no payload index.
        """
        items = cls(levels)
        unmeasured: list[str] = []
        wanted = ["modality", "path", field]
        for record in index.store.scroll(has_identifier(field), with_payload=wanted):
            payload = record.payload or {}
            cart = payload[field]
            if measured and "hub" not in cart:
                unmeasured.append(str(record.id))
                continue
            row = (*cart["codes"], cart["disambiguation"])
            items.add(str(record.id), row, payload, cart.get("hub", {}))
        return items, unmeasured

    def add(
        self, id: str, row_L: Sequence[int], payload: Mapping[str, Any], hub: Mapping[str, float]
    ) -> None:
        """Add an item.

        Args:
            id: Point id.
            row_L: The whole identifier.
            payload: Payload of the point with `modality` and `path`.
            hub: Hubness by vector, where it is known.
        """
        self._keys += key_of(id)
        self._kinds.append(modality_number(payload.get("modality")))
        self._files.append(file_number(payload.get("path", id)))
        self._codes.extend(row_L)
        for name, values in self._hubs.items():
            values.append(hub.get(name, np.nan))

    def items(self) -> Items:
        """The items so far, in the order in which they came."""
        return Items(
            np.frombuffer(bytes(self._keys), dtype="S16"),
            np.asarray(self._codes, dtype=np.int32).reshape(-1, self._length),
            np.asarray(self._hubs["media"]), np.frombuffer(bytes(self._kinds), dtype=np.uint8),
            np.asarray(self._files, dtype=np.uint64), np.asarray(self._hubs["caption"]),
        )  # fmt: skip
