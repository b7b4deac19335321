"""Features of items that do not depend on the query: modality group, file, hubness, beam.

They are read from the item table and the tree, and from the payload for points that are newer than
these. Shape legend: C items, K beams, A points of one list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cart_qdrant.arrays.point_ids import keys_of
from cart_qdrant.arrays.types import FloatArray, IndexArray, KeyArray, MaskArray
from cart_qdrant.generator.beam_search import Beams
from cart_qdrant.identifiers.item_table import (
    MODALITIES,
    NO_MODALITY,
    ItemTable,
    file_number,
    modality_number,
    positions_in,
)
from cart_qdrant.identifiers.trie import Trie
from cart_qdrant.index.index import Index
from cart_qdrant.storage import requests as qdrant

UNREACHED = -1
"""Number of a media space that no query reaches."""
UNKNOWN_MODALITY = -2
"""In place of a media space: the item has a modality that the embedder does not know."""
NO_LEAF = -1
"""In place of a leaf: the item is not in the tree."""

NamedPoints = tuple[Beams, IndexArray]
"""Beams of a query, and the positions (A,) of the points that the store found by them."""


@dataclass(frozen=True, slots=True)
class ItemFeatures:
    """Features of items (C).

    Attributes:
        space_C: Number of the media space, `UNREACHED` or `UNKNOWN_MODALITY`.
        group_C: Number of the modality group.
        file_C: Number of the file.
        hub_C: Hubness of the media vector; NaN where it is not known.
        caption_hub_C: Hubness of the caption vector; NaN where it is not known.
    """

    space_C: IndexArray
    group_C: IndexArray
    file_C: npt.NDArray[np.uint64]
    hub_C: FloatArray
    caption_hub_C: FloatArray

    def take(self, positions: IndexArray) -> ItemFeatures:
        """The features of some of the items."""
        return ItemFeatures(
            self.space_C[positions], self.group_C[positions], self.file_C[positions],
            self.hub_C[positions], self.caption_hub_C[positions],
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Columns:
    """The features while they are read; each column is written in place.

    Attributes:
        modality_C: Number of the modality, see `item_table.MODALITIES`.
        leaf_C: Leaf of the item in the tree, or `NO_LEAF`.
    """

    modality_C: npt.NDArray[np.uint8]
    file_C: npt.NDArray[np.uint64]
    leaf_C: IndexArray
    hub_C: FloatArray
    caption_hub_C: FloatArray

    @classmethod
    def unknown(cls, count: int) -> _Columns:
        """The columns of items of which nothing is known yet."""
        hub_C = np.full(count, np.nan, np.float32)
        return cls(
            np.full(count, NO_MODALITY, np.uint8), np.zeros(count, np.uint64),
            np.full(count, NO_LEAF, np.intp), hub_C, hub_C.copy(),
        )  # fmt: skip


class ItemFeatureReader:
    """Reads the features of the items of one index.

    Args:
        index: The index.
        trie: The tree of its identifiers; None before the first fit.
        table: The item table beside the tree; None before the first fit.
        group_of: Number of each modality's group.
        spaces: The media spaces in the order of their numbers.
    """

    def __init__(
        self,
        index: Index,
        trie: Trie | None,
        table: ItemTable | None,
        group_of: Mapping[str, int],
        spaces: Sequence[str],
    ) -> None:
        self._index, self._trie, self._table = index, trie, table
        self._field = index.field
        number = {space: n for n, space in enumerate(spaces)}
        known = [index.space(modality) for modality in MODALITIES]
        # By the number of the modality; the last entry is for NO_MODALITY.
        self._space_of = np.asarray(
            [UNKNOWN_MODALITY if one is None else number.get(one, UNREACHED) for one in known]
            + [UNKNOWN_MODALITY]
        )
        self._group_of = np.asarray([group_of.get(modality, 0) for modality in (*MODALITIES, "")])

    def read(
        self, ids: list[Any], key_C: KeyArray, beams: Sequence[NamedPoints]
    ) -> tuple[ItemFeatures, list[FloatArray]]:
        """Features of points, and the probability of the beam that names each.

        Args:
            ids: Points (C), as the store returned them.
            key_C: Their keys, in order, each once.
            beams: Beams of each query that has some, with the points that they name.

        Returns:
            The features, and for each entry of `beams` the log-probability (A,) of the beam that
            names each point; NaN where the point has another identifier by now.
        """
        columns = _Columns.unknown(len(ids))
        new_C = self._read_table(key_C, columns)
        shares = []
        for one, point_A in beams:
            share_A = _shares(one, columns.leaf_C[point_A])
            new_C[point_A[np.isnan(share_A)]] = True  # perhaps it got another identifier
            shares.append(share_A)
        new = np.flatnonzero(new_C)
        if len(new):
            identifier_of = self._read_payloads(ids, key_C, new, columns)
            for (one, point_A), share_A in zip(beams, shares, strict=True):
                _fill_shares(share_A, one, point_A, identifier_of)
        features = ItemFeatures(
            self._space_of[columns.modality_C], self._group_of[columns.modality_C],
            columns.file_C, columns.hub_C, columns.caption_hub_C,
        )  # fmt: skip
        return features, shares

    def leaves(self, ids: Sequence[Any] | None) -> MaskArray:
        """A mask (N,) of the leaves of the tree: all of them, or those of some points."""
        count = 0 if self._trie is None else len(self._trie)
        if ids is None or self._table is None:
            return np.ones(count, bool)
        row_C = self._table.rows(np.unique(keys_of(ids)))
        leaf_N = np.zeros(count, bool)
        leaf_N[self._table.leaf_N.take(row_C[row_C >= 0])] = True
        return leaf_N

    def leaves_of_files(self, files: npt.NDArray[np.uint64]) -> IndexArray:
        """The leaves of all segments of some files."""
        if self._table is None:
            return np.empty(0, np.intp)
        of_files = np.flatnonzero(np.isin(self._table.file_N, files))
        return np.asarray(self._table.leaf_N.take(of_files), np.intp)

    def _read_table(self, key_C: KeyArray, columns: _Columns) -> MaskArray:
        """Read the items that the table holds; returns a mask (C,) of the others."""
        if self._table is None or self._trie is None:
            return np.ones(len(key_C), bool)
        table, trie = self._table, self._trie
        row_C = table.rows(key_C)
        new_C = row_C < 0
        here = np.flatnonzero(~new_C)
        row = row_C[here]
        columns.modality_C[here] = table.modality_N.take(row)
        columns.file_C[here] = table.file_N.take(row)
        columns.leaf_C[here] = leaf = table.leaf_N.take(row)
        columns.hub_C[here] = trie.hub_N.take(leaf)
        columns.caption_hub_C[here] = table.caption_hub_N.take(row)
        return new_C

    def _read_payloads(
        self, ids: list[Any], key_C: KeyArray, new: IndexArray, columns: _Columns
    ) -> dict[int, str | None]:
        """Read some items from their payloads, as far as they are still stored; returns the
        identifier of each by its position."""
        wanted = qdrant.HasIdCondition(has_id=[ids[n] for n in new.tolist()])
        request = qdrant.QueryRequest(
            filter=qdrant.Filter(must=[wanted]), limit=len(new),
            with_payload=["modality", "path", f"{self._field}.id", f"{self._field}.hub"],
        )  # fmt: skip
        (points,) = self._index.store.query_batch([request])
        positions = key_C.searchsorted(keys_of([point.id for point in points])).tolist()
        identifier_of: dict[int, str | None] = {}
        for n, point in zip(positions, points, strict=True):
            payload = point.payload or {}
            cart = payload.get(self._field) or {}
            hub = cart.get("hub") or {}
            columns.modality_C[n] = modality_number(payload.get("modality"))
            columns.file_C[n] = file_number(payload.get("path", str(ids[n])))
            columns.hub_C[n] = hub.get("media", np.nan)
            columns.caption_hub_C[n] = hub.get("caption", np.nan)
            identifier_of[n] = cart.get("id")
        return identifier_of


def _shares(beams: Beams, leaf_A: IndexArray) -> FloatArray:
    """Log-probability (A,) of the beam that ends at each leaf; NaN where none does."""
    order = np.argsort(beams.leaf_K)
    position = positions_in(beams.leaf_K[order], leaf_A)
    share_A = beams.log_probs()[order[position]]
    share_A[position < 0] = np.nan
    return share_A


def _fill_shares(
    share_A: FloatArray, beams: Beams, point_A: IndexArray, identifier_of: Mapping[int, str | None]
) -> None:
    """Fill in the log-probabilities that are NaN, from the identifiers in payloads."""
    lacking = np.flatnonzero(np.isnan(share_A))
    if len(lacking) == 0:
        return
    share_of = dict(zip(beams.ids(), beams.log_probs().tolist(), strict=True))
    for a in lacking.tolist():
        named = identifier_of.get(int(point_A[a])) or ""
        share_A[a] = share_of.get(named, np.nan)
