"""Writes identifiers and hubness into the payloads of points.

Shape legend: N items, B items of a block, D vector width, W caption vector width, L identifier
length.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cart_qdrant.arrays.types import FloatArray, IntArray, MaskArray
from cart_qdrant.identifiers.codec import DisambiguationTokens
from cart_qdrant.identifiers.free_tokens import FreeTokens
from cart_qdrant.identifiers.hubness import CAPTION, QueryBank, media_space
from cart_qdrant.identifiers.item_table import file_number
from cart_qdrant.identifiers.quantizer import Codec
from cart_qdrant.index.identified_items import IdentifiedItems
from cart_qdrant.index.identifier_files import load_codec
from cart_qdrant.index.index import Index
from cart_qdrant.index.manifest import IdentifierInfo
from cart_qdrant.index.points import (
    BLOCK,
    caption_rows,
    has_identifier,
    in_blocks,
    lacks,
    vector_of,
)
from cart_qdrant.records import Identifier
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.batches import chunks
from cart_qdrant.storage.protocol import MEDIA, Store

ENCODED = 65_536
"""Vectors that are copied and encoded together."""
Hubs = dict[str, float]
"""Hubness of the vectors `media` and `caption` of an item, where it is known."""


def encode(
    codec: Codec,
    x_ND: FloatArray,
    spaces: npt.NDArray[np.str_],
    caption_NW: FloatArray | None = None,
) -> IntArray:
    """Codes (N, levels) of items of several spaces; -1 where a space has no quantiser.

    Args:
        x_ND: Media vectors.
        spaces: Their media spaces (N,).
        caption_NW: Caption vectors, zero where an item has none; None where none has.
    """
    out = np.full((len(x_ND), codec.levels), -1, dtype=np.int32)
    captioned_N: MaskArray = np.zeros(len(x_ND), bool)
    if caption_NW is not None:
        captioned_N = np.any(caption_NW, axis=1)
    names = codec.names(spaces, captioned_N)
    for name, quantizer in codec.quantizers.items():
        rows = np.flatnonzero(names == name)
        for begin in range(0, len(rows), ENCODED):
            some = rows[begin : begin + ENCODED]
            z_ND = x_ND[some]
            if caption_NW is not None:
                z_ND = quantizer.parts.of_items(z_ND, caption_NW[some])
            out[some] = quantizer.encode(z_ND)
    return out


class Errors:
    """Adds up how well identifiers stand for their items, block by block.

    Attributes:
        sizes: Number of items of each identifier space, also where it has no quantiser.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._sums: dict[str, float] = defaultdict(float)
        self.sizes: dict[str, int] = defaultdict(int)

    def add(
        self,
        x_BD: FloatArray,
        spaces: npt.NDArray[np.str_],
        caption_BW: FloatArray,
        codes_BL: IntArray,
    ) -> None:
        """Add items; the arguments are those of `encode`, and the codes that it gave."""
        names = self._codec.names(spaces, np.any(caption_BW, axis=1))
        for name in np.unique(names).tolist():
            rows = np.flatnonzero(names == name)
            self.sizes[name] += len(rows)
            quantizer = self._codec.quantizers.get(name)
            if quantizer is not None:
                z_BD = quantizer.parts.of_items(x_BD[rows], caption_BW[rows])
                # All vectors of a space are of one length, so the relative errors add up.
                self._sums[name] += len(rows) * quantizer.relative_error(z_BD, codes_BL[rows])

    def relative(self) -> dict[str, float]:
        """Relative reconstruction error of each identifier space that has items and a quantiser."""
        return {name: total / self.sizes[name] for name, total in self._sums.items()}


def write_identifiers(
    store: Store,
    field: str,
    ids: Sequence[str],
    row_NL: IntArray,
    hubs: Sequence[Hubs] | None = None,
) -> None:
    """Write identifiers, and hubness where it is given, with one update of the payload of a point.

    Args:
        store: The collection.
        field: Payload field.
        ids: Point ids.
        row_NL: Whole identifiers.
        hubs: Hubness of each point.
    """
    for begin in range(0, len(ids), BLOCK):
        updates: list[tuple[str, Mapping[str, Any]]] = []
        for n in range(begin, min(begin + BLOCK, len(ids))):
            *codes, token = row_NL[n].tolist()
            cart = Identifier(tuple(codes), token).to_payload()
            if hubs is not None:
                cart["hub"] = hubs[n]
            updates.append((ids[n], {field: cart}))
        store.set_payload(updates)


def measure_hubness(
    bank: QueryBank,
    media: Sequence[Sequence[float] | None] | FloatArray,
    spaces: Sequence[str | None] | npt.NDArray[np.str_],
    caption_NW: FloatArray,
    file_B: npt.NDArray[np.uint64],
) -> list[Hubs]:
    """Hubness of the vectors of each of B items.

    Args:
        bank: Queries from which hubness is computed.
        media: Media vectors; None where an item has none.
        spaces: Spaces of the media vectors.
        caption_NW: Caption vectors; zero where an item has none.
        file_B: Number of each item's file: its own captions do not count.
    """
    hubs: list[Hubs] = [{} for _ in caption_NW]
    wanted: dict[str, list[tuple[int, str, Sequence[float] | FloatArray]]] = {}
    for n, (x, space, caption) in enumerate(zip(media, spaces, caption_NW, strict=True)):
        if x is not None and space:
            wanted.setdefault(media_space(space), []).append((n, "media", x))
        if caption.any():
            wanted.setdefault(CAPTION, []).append((n, "caption", caption))
    for space, rows in wanted.items():
        x_ND = np.asarray([x for _, _, x in rows], dtype=np.float32)
        h_N = bank.hubness(x_ND, space, file_B[[n for n, _, _ in rows]])
        for (n, name, _), h in zip(rows, h_N.tolist(), strict=True):
            if h == h:  # a space without a bank has none
                # The store gives a number of few digits back exactly.
                hubs[n][name] = round(h, 5)
    return hubs


@dataclass(frozen=True, slots=True)
class _Moved:
    """A point that gets an identifier: id, payload, codes, and hubness by vector."""

    id: str
    payload: Mapping[str, Any]
    codes_L: IntArray
    hub: Hubs


class PointIdentifier:
    """Gives identifiers and hubness to points that lack them, and collects these points.

    Args:
        index: Open index; its lock is held.
        info: Identifiers in force.
        free: Next free disambiguation token of each semantic part.
        items: Gets each point that has an identifier.
    """

    def __init__(
        self, index: Index, info: IdentifierInfo, free: FreeTokens, items: IdentifiedItems
    ) -> None:
        self._index, self._info, self._items = index, info, items
        self._free = free
        self._bank = index.query_bank()
        codec = load_codec(index)
        assert codec is not None
        self._codec = codec
        reads = self._bank is not None or codec.reads_captions
        self._vectors = [MEDIA, index.caption_vector] if reads else []

    def collect(self, ids: Collection[str]) -> None:
        """Collect those of some points that have an identifier, and measure their hubness again.
        Where identifiers are made of captions, a point whose codes are others now gets another."""
        store, field = self._index.store, self._info.field
        wanted = ["modality", "path", field]
        moved: list[_Moved] = []
        for some in chunks(sorted(ids), BLOCK):
            which = qdrant.Filter(must=[qdrant.HasIdCondition(has_id=some), has_identifier(field)])
            records = list(store.scroll(which, with_payload=wanted, with_vectors=self._vectors))
            carts = [(r.payload or {})[field] for r in records]
            hubs = self._measured(records)
            codes_BL = self._codes(records) if self._codec.reads_captions else None
            updates: list[tuple[str, dict[str, Any]]] = []
            for n, (record, cart, hub) in enumerate(zip(records, carts, hubs, strict=True)):
                part, token = tuple(cart["codes"]), cart["disambiguation"]
                self._free[part] = max(self._free.get(part, 0), token + 1)
                id, payload = str(record.id), record.payload or {}
                others = codes_BL is not None and tuple(codes_BL[n].tolist()) != part
                if codes_BL is not None and others and vector_of(record) is not None:
                    moved.append(_Moved(id, payload, codes_BL[n], hub))
                    continue
                self._items.add(id, (*part, token), payload, hub)
                if self._bank is not None and cart.get("hub") != hub:
                    updates.append((id, {field: {**cart, "hub": hub}}))
            store.set_payload(updates)
        # All tokens of the points that keep their identifier are known by now.
        for begin in range(0, len(moved), BLOCK):
            self._write(moved[begin : begin + BLOCK])

    def assign_missing(self) -> int:
        """Give an identifier to every point that has none.

        Returns:
            How many points stay without one, since their space has no codebooks.
        """
        missing = qdrant.Filter(must=[lacks(f"{self._info.field}.id")], must_not=[lacks("hash")])
        found = self._index.store.scroll(
            missing, with_payload=["modality", "path"], with_vectors=self._vectors or [MEDIA]
        )
        return sum(self._assign(chunk) for chunk in in_blocks(found))

    def _assign(self, chunk: Sequence[qdrant.AnyRecord]) -> int:
        codes_BL, hubs = self._codes(chunk), self._measured(chunk)
        known = codes_BL[:, 0] >= 0
        self._index.changes.add([str(r.id) for r, ok in zip(chunk, known, strict=True) if ok])
        self._write(
            [
                _Moved(str(record.id), record.payload or {}, codes, hub)
                for record, codes, hub, ok in zip(chunk, codes_BL, hubs, known, strict=True)
                if ok
            ]
        )
        # A modality that the embedder does not know never gets one: that is no reason to refit.
        return sum(
            self._index.space((record.payload or {})["modality"]) is not None
            for record, ok in zip(chunk, known, strict=True)
            if not ok
        )

    def _write(self, moved: Sequence[_Moved]) -> None:
        """Write the identifiers of points that get one, and collect these points."""
        if not moved:
            return
        codes_BL = np.stack([one.codes_L for one in moved])
        row_BL = DisambiguationTokens(self._free).complete(codes_BL)
        hubs = None if self._bank is None else [one.hub for one in moved]
        ids = [one.id for one in moved]
        write_identifiers(self._index.store, self._info.field, ids, row_BL, hubs)
        for one, row in zip(moved, row_BL.tolist(), strict=True):
            self._items.add(one.id, row, one.payload, one.hub)

    def _codes(self, records: Sequence[qdrant.AnyRecord]) -> IntArray:
        """Codes (B, levels) of records with their vectors; -1 where a space has no codebooks."""
        index = self._index
        none = [0.0] * index.manifest.embedder.dim
        x_BD = np.asarray([vector_of(r) or none for r in records], dtype=np.float32)
        spaces = np.asarray([index.space((r.payload or {})["modality"]) or "" for r in records])
        return encode(self._codec, x_BD, spaces, self._captions(records))

    def _captions(self, records: Sequence[qdrant.AnyRecord]) -> FloatArray:
        """Caption vectors (B, W) of records; zero where there is none."""
        return caption_rows([vector_of(one, self._index.caption_vector) for one in records])

    def _measured(self, records: Sequence[qdrant.AnyRecord]) -> list[Hubs]:
        """Hubness of each record; as stored, where there is no bank."""
        payloads = [record.payload or {} for record in records]
        if self._bank is None:
            return [payload.get(self._info.field, {}).get("hub", {}) for payload in payloads]
        return measure_hubness(
            self._bank,
            [vector_of(record) for record in records],
            [self._index.space(payload.get("modality", "")) for payload in payloads],
            self._captions(records),
            np.asarray(
                [
                    file_number(payload.get("path", str(record.id)))
                    for record, payload in zip(records, payloads, strict=True)
                ],
                np.uint64,
            ),
        )
