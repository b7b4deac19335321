"""Identifiers in the index: fit, assign to new points, renew without an interruption, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cart_qdrant.arrays.types import FloatArray, IntArray
from cart_qdrant.errors import StoreError
from cart_qdrant.files import save_arrays
from cart_qdrant.identifiers.codec import (
    Codec,
    Counters,
    IdentifierConfig,
    fit_codec,
    unique_ratio,
)
from cart_qdrant.identifiers.hubness import CAPTION as CAPTION_BANK
from cart_qdrant.identifiers.hubness import QueryBank, media_space
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
"""Vectors copied out of all to be coded."""
GROWN = 2
"""Growth since fitting from which identifiers are renewed while nothing depends on them."""


def encode(codec: Codec, x_ND: FloatArray, spaces: npt.NDArray[np.str_]) -> IntArray:
    """Codes (N, L) of vectors of mixed spaces; rows of a space without a quantiser are -1."""
    out = np.full((len(x_ND), codec.levels), -1, dtype=np.int32)
    for space, quantizer in codec.quantizers.items():
        rows = np.flatnonzero(spaces == space)
        for begin in range(0, len(rows), ENCODED):
            some = rows[begin : begin + ENCODED]
            out[some] = quantizer.encode(x_ND[some])
    return out


def write_identifiers(
    store: Store, field: str, ids: Sequence[str], codes_NL: IntArray, counters: Counters
) -> IntArray:
    """Store identifiers in the payload; returns them whole (N, L + 1)."""
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
    tell: Callable[[str, Mapping[str, float]], None] | None = None,
) -> None:
    """Store the hubness of points beside their identifier, see `querybank`.

    Args:
        field: Payload field of the identifiers.
        which: Points that have an identifier there.
        tell: Is told each point, when it is written, and its hubness by vector.
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
                    # Few digits: the store gives those back exactly.
                    hubs[n][name] = round(h, 5)
        index.store.set_payload(
            [
                (str(record.id), {field: {**(record.payload or {})[field], "hub": hub}})
                for record, hub in zip(chunk, hubs, strict=True)
            ]
        )
        if tell is not None:
            for record, hub in zip(chunk, hubs, strict=True):
                tell(str(record.id), hub)


def prepare(
    index: Index,
    vectors: Vectors,
    codec: Codec,
    bank: QueryBank | None = None,
) -> IdentifierInfo:
    """Write new identifiers under the next payload field; nothing reads them until the flip.

    Args:
        vectors: All items.
        codec: Fitted on every space that has items.
        bank: Queries by which hubness is measured; without, none is stored.

    Returns:
        What to put into the manifest, alone or with a generator, see `adopt`.
    """
    current = index.manifest.identifiers
    version = 1 if current is None else current.version + 1
    field = index.key if version == 1 else f"{index.key}_{version}"
    for name in identifier_fields(field):
        index.store.create_keyword_index(name)
    if index.attachment is not None:
        _check_free(index, field)
    codes = encode(codec, vectors.x_ND, vectors.spaces)
    write_identifiers(index.store, field, vectors.ids, codes, Counters())
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
    """Refuse to write over a payload field of others.

    Raises:
        StoreError: Some points have it, and it holds no identifier.
    """
    theirs = qdrant.Filter(must=[lacks(f"{field}.id"), is_ours()], must_not=[lacks(field)])
    try:
        count = index.store.count(theirs)
    except StoreError:
        return  # the server takes no condition on a field without an index; `attach` has looked
    if count:
        raise StoreError(
            f"{count} points of {index.store.location} have a payload field {field!r} that holds "
            "no identifier.",
            "Attach again with another --key.",
        )


def activate_identifiers(index: Index, info: IdentifierInfo) -> None:
    """Flip to prepared identifiers. A trained generator goes: it writes the old ones.

    The old payload field stays until the next run that writes (`remove_stale`), so that a search
    which has the old manifest open still finds what it names.
    """
    old = index.manifest.identifiers
    stale = [*index.manifest.stale_fields, *([old.field] if old is not None else [])]
    index.put(replace(index.manifest, identifiers=info, generator=None, stale_fields=stale))


def remove_stale(index: Index) -> None:
    """Remove payload fields of older identifiers; a crash in between leaves it for next time."""
    if not index.manifest.stale_fields:
        return
    for field in index.manifest.stale_fields:
        index.store.delete_payload_key(field)
        for name in identifier_fields(field):
            index.store.drop_index(name)
    index.store.flush()
    index.put(replace(index.manifest, stale_fields=[]))


def refit(index: Index, config: IdentifierConfig | None = None) -> IdentifierInfo | None:
    """Fit identifiers on all items and flip to them; None when there is no item."""
    remove_stale(index)
    vectors = read_vectors(index)
    if not vectors.ids:
        return None
    info = prepare(index, vectors, fit_codec(vectors.by_space(), config))
    activate_identifiers(index, info)
    return info


def fitted_on(info: IdentifierInfo) -> int:
    """Items that the code books were fitted on."""
    return sum(int(one["fitted_on"]) for one in info.meta.values())


def summary(info: IdentifierInfo) -> dict[str, Any]:
    """What reports tell of identifiers."""
    return {
        "unique_ratio": round(info.unique_ratio, 4),
        "levels": info.levels,
        "count": info.count,
        "fitted_on": fitted_on(info),
    }


def update_identifiers(index: Index) -> int:
    """Identifiers for new points; all anew where the collection has outgrown its code books and
    nothing depends on them yet.

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
    """Give every point an identifier that has none, and bring the tree in step with the points.

    The tree is made anew from the payload, since a killed run may have left them apart. Items of
    a space that had none at fitting need new code books: they are fitted at once, unless a
    generator was trained, which would be lost.

    Returns:
        How many items stay without an identifier.
    """
    info = index.manifest.identifiers
    if info is None:
        refit(index)
        return 0
    codec = load_codec(index)
    assert codec is not None
    store = index.store
    missing = qdrant.Filter(must=[lacks(f"{info.field}.id")], must_not=[lacks("hash")])
    bank = index.query_bank()
    items = IdentifiedItems.read(index, info.field, info.levels, bare=bank is not None)
    counters = Counters(items.counters())
    unnamed = 0
    wanted = ["modality", "path"]
    for chunk in in_blocks(store.scroll(missing, with_payload=wanted, with_vectors=[MEDIA])):
        x = np.asarray([vector_of(r) for r in chunk], dtype=np.float32)
        spaces = np.asarray([index.space((r.payload or {})["modality"]) or "" for r in chunk])
        codes = encode(codec, x, spaces)
        known = codes[:, 0] >= 0
        # Of a kind that the embedder does not know there never are any: no reason to fit anew.
        unnamed += int((~known & (spaces != "")).sum())
        kept = [record for record, ok in zip(chunk, known, strict=True) if ok]
        ids = [str(record.id) for record in kept]
        rows = write_identifiers(store, info.field, ids, codes[known], counters)
        for id, record, row in zip(ids, kept, rows.tolist(), strict=True):
            items.add(id, row, record.payload or {})
    if unnamed and index.manifest.generator is None:
        refit(index)
        return 0
    bare = list(items.bare)
    if bank is not None:
        for begin in range(0, len(bare), BLOCK):
            some = qdrant.HasIdCondition(has_id=bare[begin : begin + BLOCK])
            which = qdrant.Filter(must=[some])
            write_hubness(index, info.field, bank, which, items.set_hub)
    store.flush()
    trie, table = items.finish()
    written = replace(
        info, trie=save_part(index, "trie", trie), items=save_part(index, "items", table),
        count=len(trie), unique_ratio=trie.unique_ratio,
    )  # fmt: skip
    if (written.trie, written.items) != (info.trie, info.items):
        index.put(replace(index.manifest, identifiers=written))
    return unnamed
