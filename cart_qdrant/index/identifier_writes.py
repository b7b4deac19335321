"""Writes identifiers and hubness into the payloads of points.

Shape legend: N items, B items of a block, D vector width, L identifier length.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cart_qdrant.arrays.types import FloatArray, IntArray
from cart_qdrant.identifiers.codec import DisambiguationTokens
from cart_qdrant.identifiers.free_tokens import FreeTokens
from cart_qdrant.identifiers.hubness import CAPTION, QueryBank, media_space
from cart_qdrant.identifiers.item_table import file_number
from cart_qdrant.identifiers.quantizer import Codec
from cart_qdrant.index.identified_items import IdentifiedItems
from cart_qdrant.index.identifier_files import load_codec
from cart_qdrant.index.index import Index
from cart_qdrant.index.manifest import IdentifierInfo
from cart_qdrant.index.points import BLOCK, has_identifier, in_blocks, lacks, vector_of
from cart_qdrant.records import Identifier
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.batches import chunks
from cart_qdrant.storage.protocol import MEDIA, Store

ENCODED = 65_536
"""Vectors that are copied and encoded together."""
Hubs = dict[str, float]
"""Hubness of the vectors `media` and `caption` of an item, where it is known."""


def encode(codec: Codec, x_ND: FloatArray, spaces: npt.NDArray[np.str_]) -> IntArray:
    """Codes (N, levels) of vectors of several spaces; -1 where a space has no quantiser."""
    out = np.full((len(x_ND), codec.levels), -1, dtype=np.int32)
    for space, quantizer in codec.quantizers.items():
        rows = np.flatnonzero(spaces == space)
        for begin in range(0, len(rows), ENCODED):
            some = rows[begin : begin + ENCODED]
            out[some] = quantizer.encode(x_ND[some])
    return out


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
    captions: Sequence[Sequence[float] | None],
    file_B: npt.NDArray[np.uint64],
) -> list[Hubs]:
    """Hubness of the vectors of each of B items.

    Args:
        bank: Queries from which hubness is computed.
        media: Media vectors; None where an item has none.
        spaces: Spaces of the media vectors.
        captions: Caption vectors; None where an item has none.
        file_B: Number of each item's file: its own captions do not count.
    """
    hubs: list[Hubs] = [{} for _ in captions]
    wanted: dict[str, list[tuple[int, str, Sequence[float]]]] = {}
    for n, (x, space, caption) in enumerate(zip(media, spaces, captions, strict=True)):
        if x is not None and space:
            wanted.setdefault(media_space(space), []).append((n, "media", x))
        if caption is not None:
            wanted.setdefault(CAPTION, []).append((n, "caption", caption))
    for space, rows in wanted.items():
        x_ND = np.asarray([x for _, _, x in rows], dtype=np.float32)
        h_N = bank.hubness(x_ND, space, file_B[[n for n, _, _ in rows]])
        for (n, name, _), h in zip(rows, h_N.tolist(), strict=True):
            if h == h:  # a space without a bank has none
                # The store gives a number of few digits back exactly.
                hubs[n][name] = round(h, 5)
    return hubs


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

    def collect(self, ids: Collection[str]) -> None:
        """Collect those of some points that have an identifier, and measure their hubness again."""
        store, field = self._index.store, self._info.field
        names = [] if self._bank is None else [MEDIA, self._index.caption_vector]
        wanted = ["modality", "path", field]
        for some in chunks(sorted(ids), BLOCK):
            which = qdrant.Filter(must=[qdrant.HasIdCondition(has_id=some), has_identifier(field)])
            records = list(store.scroll(which, with_payload=wanted, with_vectors=names))
            carts = [(r.payload or {})[field] for r in records]
            hubs = self._measured(records)
            for record, cart, hub in zip(records, carts, hubs, strict=True):
                part, token = tuple(cart["codes"]), cart["disambiguation"]
                self._free[part] = max(self._free.get(part, 0), token + 1)
                self._items.add(str(record.id), (*part, token), record.payload or {}, hub)
            if self._bank is not None:
                store.set_payload(
                    [
                        (str(record.id), {field: {**cart, "hub": hub}})
                        for record, cart, hub in zip(records, carts, hubs, strict=True)
                        if cart.get("hub") != hub
                    ]
                )

    def assign_missing(self) -> int:
        """Give an identifier to every point that has none.

        Returns:
            How many points stay without one, since their space has no codebooks.
        """
        missing = qdrant.Filter(must=[lacks(f"{self._info.field}.id")], must_not=[lacks("hash")])
        names = [MEDIA] if self._bank is None else [MEDIA, self._index.caption_vector]
        found = self._index.store.scroll(
            missing, with_payload=["modality", "path"], with_vectors=names
        )
        return sum(self._assign(chunk) for chunk in in_blocks(found))

    def _assign(self, chunk: Sequence[qdrant.AnyRecord]) -> int:
        index = self._index
        x_BD = np.asarray([vector_of(r) for r in chunk], dtype=np.float32)
        spaces = np.asarray([index.space((r.payload or {})["modality"]) or "" for r in chunk])
        codes = encode(self._codec, x_BD, spaces)
        known = codes[:, 0] >= 0
        kept = [record for record, ok in zip(chunk, known, strict=True) if ok]
        ids = [str(record.id) for record in kept]
        index.changes.add(ids)
        rows = DisambiguationTokens(self._free).complete(codes[known])
        hubs = self._measured(kept)
        write_identifiers(
            index.store, self._info.field, ids, rows, None if self._bank is None else hubs
        )
        for id, record, row, hub in zip(ids, kept, rows.tolist(), hubs, strict=True):
            self._items.add(id, row, record.payload or {}, hub)
        # A modality that the embedder does not know never gets one: that is no reason to refit.
        return int((~known & (spaces != "")).sum())

    def _measured(self, records: Sequence[qdrant.AnyRecord]) -> list[Hubs]:
        """Hubness of each record; as stored, where there is no bank."""
        payloads = [record.payload or {} for record in records]
        if self._bank is None:
            return [payload.get(self._info.field, {}).get("hub", {}) for payload in payloads]
        return measure_hubness(
            self._bank,
            [vector_of(record) for record in records],
            [self._index.space(payload.get("modality", "")) for payload in payloads],
            [vector_of(record, self._index.caption_vector) for record in records],
            np.asarray(
                [
                    file_number(payload.get("path", str(record.id)))
                    for record, payload in zip(records, payloads, strict=True)
                ],
                np.uint64,
            ),
        )
