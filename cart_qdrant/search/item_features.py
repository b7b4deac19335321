"""What is known of items whatever the query: kind, file, hubness, identifier.

Read from the table of items and the tree; of points that are newer than these, from the payload.
Shape legend: C items, K beams, A points of one list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cart_qdrant.arrays.point_ids import keys_of
from cart_qdrant.arrays.types import FloatArray, IndexArray, KeyArray
from cart_qdrant.generator.beam_search import Beams
from cart_qdrant.identifiers.item_table import (
    KINDS,
    NO_KIND,
    ItemTable,
    file_number,
    kind_number,
    places_in,
)
from cart_qdrant.identifiers.trie import Trie
from cart_qdrant.index.index import Index
from cart_qdrant.storage import requests as qdrant

UNREACHED = -1
"""Number of a space that no query reaches."""
FOREIGN_KIND = -2
"""Instead of a space: an item of a kind that the embedder does not know."""
NO_LEAF = -1


@dataclass(frozen=True, slots=True)
class Facts:
    """One row an item.

    Attributes:
        space_C: Number of its space, `UNREACHED` or `FOREIGN_KIND`.
        vertical_C: Number of its vertical.
        file_C: Number of its file.
        hub_C: Hubness of the media vector; NaN where it is not known.
        caption_hub_C: That of the caption vector.
    """

    space_C: IndexArray
    vertical_C: IndexArray
    file_C: npt.NDArray[np.uint64]
    hub_C: FloatArray
    caption_hub_C: FloatArray

    def take(self, places: IndexArray) -> Facts:
        """Some of the items."""
        return Facts(
            self.space_C[places], self.vertical_C[places], self.file_C[places],
            self.hub_C[places], self.caption_hub_C[places],
        )  # fmt: skip


class FactFinder:
    """Knows the items of one index.

    Args:
        index: The index.
        trie: Its tree.
        table: Its table of items; without, all is read from payloads.
        verticals: Number of each modality's vertical.
        spaces: The spaces in the order of their numbers.
    """

    def __init__(
        self,
        index: Index,
        trie: Trie | None,
        table: ItemTable | None,
        modality_prior: Mapping[str, int],
        spaces: Sequence[str],
    ) -> None:
        self._index, self._trie = index, trie
        self._table = None if trie is None else table
        self._field = index.field
        number = {space: n for n, space in enumerate(spaces)}
        known = [index.space(kind) for kind in KINDS]
        # By kind; one more for what is of none.
        self._space_of = np.asarray(
            [FOREIGN_KIND if one is None else number.get(one, UNREACHED) for one in known]
            + [FOREIGN_KIND]
        )
        self._vertical_of = np.asarray([modality_prior.get(kind, 0) for kind in (*KINDS, "")])

    def of(
        self, ids: list[Any], key_C: KeyArray, beams: Sequence[tuple[Beams, IndexArray]]
    ) -> tuple[Facts, list[FloatArray]]:
        """Facts of points, and by which beam they are named.

        Args:
            ids: Points, as the store has them.
            key_C: Their keys, in order and each once.
            beams: Of a query, and the places (A,) of the points that it found by them.

        Returns:
            The facts, and for each of `beams` log of the share of each point's beam (A,); NaN where
            it has another identifier by now.
        """
        kind_C = np.full(len(ids), NO_KIND, np.uint8)
        file_C = np.zeros(len(ids), np.uint64)
        leaf_C = np.full(len(ids), NO_LEAF, np.intp)
        hub_C = np.full(len(ids), np.nan, np.float32)
        caption_hub_C = hub_C.copy()
        new_C = np.ones(len(ids), bool)
        if self._table is not None and self._trie is not None:
            table, trie = self._table, self._trie
            row_C = table.rows(key_C)
            new_C = row_C < 0
            here = np.flatnonzero(~new_C)
            row = row_C[here]
            kind_C[here], file_C[here] = table.kind_N.take(row), table.file_N.take(row)
            leaf_C[here] = leaf = table.leaf_N.take(row)
            hub_C[here] = trie.hub_N.take(leaf)
            caption_hub_C[here] = table.caption_hub_N.take(row)
        shares = []
        for one, point_A in beams:
            share_A = _shares(one, leaf_C[point_A])
            new_C[point_A[np.isnan(share_A)]] = True  # perhaps it got another identifier
            shares.append(share_A)
        new = np.flatnonzero(new_C)
        if len(new):
            cart_of: dict[int, str | None] = {}
            for place, payload in self._payloads(ids, key_C, new):
                kind_C[place] = kind_number(payload.get("modality"))
                file_C[place] = file_number(payload.get("path", str(ids[place])))
                cart = payload.get(self._field) or {}
                hub = cart.get("hub") or {}
                hub_C[place] = hub.get("media", np.nan)
                caption_hub_C[place] = hub.get("caption", np.nan)
                cart_of[place] = cart.get("id")
            for (one, point_A), share_A in zip(beams, shares, strict=True):
                if (lacking := np.flatnonzero(np.isnan(share_A))).size:
                    share_of = dict(zip(one.ids(), one.log_probs().tolist(), strict=True))
                    for a in lacking.tolist():
                        named = cart_of.get(int(point_A[a])) or ""
                        share_A[a] = share_of.get(named, np.nan)
        facts = Facts(
            self._space_of[kind_C], self._vertical_of[kind_C], file_C, hub_C, caption_hub_C
        )
        return facts, shares

    def _payloads(
        self, ids: list[Any], key_C: KeyArray, new: IndexArray
    ) -> list[tuple[int, dict[str, Any]]]:
        """Places and payloads of some points, as far as they are still there."""
        wanted = qdrant.HasIdCondition(has_id=[ids[n] for n in new.tolist()])
        request = qdrant.QueryRequest(
            filter=qdrant.Filter(must=[wanted]), limit=len(new),
            with_payload=["modality", "path", f"{self._field}.id", f"{self._field}.hub"],
        )  # fmt: skip
        (points,) = self._index.store.query_batch([request])
        places = key_C.searchsorted(keys_of([point.id for point in points])).tolist()
        return [(n, point.payload or {}) for n, point in zip(places, points, strict=True)]


def _shares(beams: Beams, leaf_A: IndexArray) -> FloatArray:
    """Log of the share of the beam that leads to each leaf (A,); NaN where none does."""
    order = np.argsort(beams.leaf_K)
    place = places_in(beams.leaf_K[order], leaf_A)
    share_A = beams.log_probs()[order[place]]
    share_A[place < 0] = np.nan
    return share_A
