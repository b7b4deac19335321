"""Fits identifiers, assigns them to points and replaces them without an interruption.

Shape legend: N items, D vector width, L identifier length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cart_qdrant.arrays.types import FloatArray, IntArray
from cart_qdrant.arrays.vectors import unique_ratio
from cart_qdrant.errors import StoreError
from cart_qdrant.files import save_arrays
from cart_qdrant.identifiers.codec import DisambiguationTokens, IdentifierConfig, fit_codec
from cart_qdrant.identifiers.hubness import CAPTION as CAPTION_BANK
from cart_qdrant.identifiers.hubness import QueryBank, media_space
from cart_qdrant.identifiers.quantizer import Codec
from cart_qdrant.index.identified_items import IdentifiedItems
from cart_qdrant.index.identifier_files import load_codec, save_part
from cart_qdrant.index.index import Index, identifier_fields
from cart_qdrant.index.manifest import Artifact, IdentifierInfo
from cart_qdrant.index.points import (
    BLOCK,
    Vectors,
    has_identifier,
    in_blocks,
    is_ours,
    lacks,
    read_vectors,
    vector_of,
)
from cart_qdrant.records import Identifier
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.protocol import CAPTION, MEDIA, Store

ENCODED = 65_536
"""Vectors that are copied and encoded together."""
GROWN = 2
"""Growth since fitting from which identifiers are refitted, if no generator was trained on them."""


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
    store: Store, field: str, ids: Sequence[str], codes_NL: IntArray, counters: DisambiguationTokens
) -> IntArray:
    """Write identifiers into the payload.

    Args:
        store: The collection.
        field: Payload field.
        ids: Point ids.
        codes_NL: Semantic part of each identifier, without its disambiguation token.
        counters: Next free disambiguation token of each semantic part; advanced.

    Returns:
        The whole identifiers (N, levels + 1).
    """
    rows = counters.complete(codes_NL)
    for begin in range(0, len(ids), BLOCK):
        updates: list[tuple[str, Mapping[str, Any]]] = []
        for n in range(begin, min(begin + BLOCK, len(ids))):
            *codes, u = rows[n].tolist()
            identifier = Identifier(tuple(codes), u)
            updates.append((ids[n], {field: identifier.to_payload()}))
        store.set_payload(updates)
    return rows


def write_hubness(
    index: Index,
    field: str,
    bank: QueryBank,
    which: qdrant.Filter,
    on_write: Callable[[str, Mapping[str, float]], None] | None = None,
) -> None:
    """Compute the hubness of points and write it beside their identifier.

    Args:
        index: Open index.
        field: Payload field of the identifiers.
        bank: Queries from which hubness is computed.
        which: Points that have an identifier there.
        on_write: Is called with each point id and its hubness by vector, after they are written.
    """
    names = [MEDIA, CAPTION]
    found = index.store.scroll(which, with_payload=["modality", field], with_vectors=names)
    for chunk in in_blocks(found):
        hubs: list[dict[str, float]] = [{} for _ in chunk]
        wanted: dict[str, list[tuple[int, str, list[float]]]] = {}
        for n, record in enumerate(chunk):
            space = index.space((record.payload or {}).get("modality", ""))
            media, caption = vector_of(record), vector_of(record, CAPTION)
            if media is not None and space is not None:
                wanted.setdefault(media_space(space), []).append((n, "media", media))
            if caption is not None:
                wanted.setdefault(CAPTION_BANK, []).append((n, "caption", caption))
        for space, rows in wanted.items():
            h_N = bank.hubness(np.asarray([x for _, _, x in rows], dtype=np.float32), space)
            for (n, name, _), h in zip(rows, h_N.tolist(), strict=True):
                if h == h:  # a space without a bank has none
                    # The store gives a number of few digits back exactly.
                    hubs[n][name] = round(h, 5)
        index.store.set_payload(
            [
                (str(record.id), {field: {**(record.payload or {})[field], "hub": hub}})
                for record, hub in zip(chunk, hubs, strict=True)
            ]
        )
        if on_write is not None:
            for record, hub in zip(chunk, hubs, strict=True):
                on_write(str(record.id), hub)


def prepare(
    index: Index,
    vectors: Vectors,
    codec: Codec,
    bank: QueryBank | None = None,
) -> IdentifierInfo:
    """Write new identifiers under the next payload field; no search reads them until they are
    activated.

    Args:
        index: Open index; its lock is held.
        vectors: All items.
        codec: Fitted on every space that has items.
        bank: Queries from which hubness is computed; None writes no hubness.

    Returns:
        The record for the manifest, which `activate_identifiers` activates without a generator.

    Raises:
        StoreError: The store failed, or the payload field of an attached collection is in use.
    """
    current = index.manifest.identifiers
    version = 1 if current is None else current.version + 1
    field = index.key if version == 1 else f"{index.key}_{version}"
    for name in identifier_fields(field):
        index.store.create_keyword_index(name)
    if index.attachment is not None:
        _check_free(index, field)
    codes = encode(codec, vectors.x_ND, vectors.spaces)
    write_identifiers(index.store, field, vectors.ids, codes, DisambiguationTokens())
    if bank is not None:
        write_hubness(index, field, bank, has_identifier(field))
    trie, table = IdentifiedItems.read(index, field, codec.levels).finish()
    index.store.flush()
    name = f"identifiers-{version}.safetensors"
    folder = index.folder
    books = Artifact(name, save_arrays(folder.root / name, codec.to_arrays(), folder.work))
    return IdentifierInfo(
        version=version,
        field=field,
        books=books,
        trie=save_part(index, "trie", trie),
        items=save_part(index, "items", table),
        meta=codec.to_meta(),
        levels=codec.levels,
        count=len(trie),
        unique_ratio=unique_ratio(codes),
    )


def _check_free(index: Index, field: str) -> None:
    """Refuse to overwrite a payload field of others.

    Raises:
        StoreError: The field of some points holds something else than an identifier.
    """
    theirs = qdrant.Filter(must=[lacks(f"{field}.id"), is_ours()], must_not=[lacks(field)])
    try:
        count = index.store.count(theirs)
    except StoreError:
        return  # strict mode refuses conditions on unindexed fields; `attach` has checked
    if count:
        raise StoreError(
            f"{count} points of {index.store.location} have a payload field {field!r} that holds "
            "no identifier.",
            "Attach again with another --key.",
        )


def activate_identifiers(index: Index, info: IdentifierInfo) -> None:
    """Activate identifiers from `prepare`. A trained generator writes the old identifiers, so the
    manifest no longer names it.

    The old payload field stays until the next writing run calls `remove_stale`, so that a search
    which opened the old manifest still resolves its identifiers.
    """
    old = index.manifest.identifiers
    stale = [*index.manifest.stale_fields, *([old.field] if old is not None else [])]
    index.put(replace(index.manifest, identifiers=info, generator=None, stale_fields=stale))


def remove_stale(index: Index) -> None:
    """Remove the files and payload fields of earlier versions, at the start of a run that writes:
    searches that opened them have followed since. A run that is killed in between leaves the rest
    to the next one."""
    index.folder.sweep(index.manifest)
    if not index.manifest.stale_fields:
        return
    for field in index.manifest.stale_fields:
        index.store.delete_payload_key(field)
        for name in identifier_fields(field):
            index.store.drop_index(name)
    index.store.flush()
    index.put(replace(index.manifest, stale_fields=[]))


def refit(index: Index, config: IdentifierConfig | None = None) -> IdentifierInfo | None:
    """Fit identifiers on all items and activate them; None when there is no item."""
    remove_stale(index)
    vectors = read_vectors(index)
    if not vectors.ids:
        return None
    info = prepare(index, vectors, fit_codec(vectors.by_space(), config))
    activate_identifiers(index, info)
    return info


def fitted_on(info: IdentifierInfo) -> int:
    """Number of items that the codebooks were fitted on."""
    return sum(int(one["fitted_on"]) for one in info.meta.values())


def summary(info: IdentifierInfo) -> dict[str, Any]:
    """The figures of the identifiers that reports contain."""
    return {
        "unique_ratio": round(info.unique_ratio, 4),
        "levels": info.levels,
        "count": info.count,
        "fitted_on": fitted_on(info),
    }


def update_identifiers(index: Index) -> int:
    """Assign identifiers to new points. Refit all identifiers instead where the collection has
    outgrown its codebooks and no generator was trained on them.

    Returns:
        How many items stay without an identifier.
    """
    info = index.manifest.identifiers
    if (
        info is not None
        and index.manifest.generator is None
        and index.store.count(is_ours()) > GROWN * fitted_on(info)
    ):
        refit(index)
        return 0
    return assign_new(index)


def assign_new(index: Index) -> int:
    """Assign an identifier to every point that has none, and update tree and table.

    Both are built from the payloads of all points, since a run that was killed may have written
    points without updating them. Items of a space without codebooks need a new fit: it is done at
    once, unless that would discard a trained generator.

    Returns:
        How many items stay without an identifier.
    """
    info = index.manifest.identifiers
    if info is None:
        refit(index)
        return 0
    bank = index.query_bank()
    items = IdentifiedItems.read(index, info.field, info.levels, list_unmeasured=bank is not None)
    without = _assign(index, info, items)
    if without and index.manifest.generator is None:
        refit(index)
        return 0
    if bank is not None:
        unmeasured = list(items.unmeasured)
        for begin in range(0, len(unmeasured), BLOCK):
            some = qdrant.HasIdCondition(has_id=unmeasured[begin : begin + BLOCK])
            which = qdrant.Filter(must=[some])
            write_hubness(index, info.field, bank, which, items.set_hubness)
    index.store.flush()
    trie, table = items.finish()
    written = replace(
        info, trie=save_part(index, "trie", trie), items=save_part(index, "items", table),
        count=len(trie), unique_ratio=trie.unique_ratio,
    )  # fmt: skip
    if (written.trie, written.items) != (info.trie, info.items):
        index.put(replace(index.manifest, identifiers=written))
    return without


def _assign(index: Index, info: IdentifierInfo, items: IdentifiedItems) -> int:
    """Write identifiers of points that have none, and add these points to `items`.

    Returns:
        How many items stay without one, since their space has no codebooks.
    """
    codec = load_codec(index)
    assert codec is not None
    missing = qdrant.Filter(must=[lacks(f"{info.field}.id")], must_not=[lacks("hash")])
    counters = DisambiguationTokens(items.free_tokens())
    without = 0
    wanted = ["modality", "path"]
    for chunk in in_blocks(index.store.scroll(missing, with_payload=wanted, with_vectors=[MEDIA])):
        x = np.asarray([vector_of(r) for r in chunk], dtype=np.float32)
        spaces = np.asarray([index.space((r.payload or {})["modality"]) or "" for r in chunk])
        codes = encode(codec, x, spaces)
        known = codes[:, 0] >= 0
        # A modality that the embedder does not know never gets one: that is no reason to refit.
        without += int((~known & (spaces != "")).sum())
        kept = [record for record, ok in zip(chunk, known, strict=True) if ok]
        ids = [str(record.id) for record in kept]
        rows = write_identifiers(index.store, info.field, ids, codes[known], counters)
        for id, record, row in zip(ids, kept, rows.tolist(), strict=True):
            items.add(id, row, record.payload or {})
    return without
