"""Fits identifiers, assigns them to points and replaces them without an interruption.

Shape legend: N items, D vector width, L identifier length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cart_qdrant.arrays.point_ids import keys_of
from cart_qdrant.errors import StoreError
from cart_qdrant.files import save_arrays
from cart_qdrant.identifiers.codec import DisambiguationTokens, IdentifierConfig, fit_codec
from cart_qdrant.identifiers.hubness import QueryBank
from cart_qdrant.identifiers.item_edits import Items
from cart_qdrant.identifiers.parts import MadeOf, Parts
from cart_qdrant.identifiers.quantizer import Codec
from cart_qdrant.identifiers.trie import Trie
from cart_qdrant.index.caption_vectors import with_captions
from cart_qdrant.index.collection import TEXT_DIM, identifier_fields
from cart_qdrant.index.identifier_files import save_part
from cart_qdrant.index.identifier_updates import built_parts, edited_parts
from cart_qdrant.index.identifier_writes import (
    ENCODED,
    Errors,
    encode,
    measure_hubness,
    write_identifiers,
)
from cart_qdrant.index.index import Index
from cart_qdrant.index.manifest import Artifact, CaptionVectors, GeneratorInfo, IdentifierInfo
from cart_qdrant.index.points import Vectors, is_ours, lacks, read_captions, read_vectors
from cart_qdrant.storage import requests as qdrant

GROWN = 2
"""Growth since fitting from which identifiers are refitted, if no generator was trained on them."""


@dataclass(frozen=True, slots=True)
class PreparedIdentifiers:
    """Identifiers that are written, but not yet in force.

    Attributes:
        info: The record for the manifest, which `activate_identifiers` activates without a
            generator.
        trie: The prefix tree.
        items: All items, in the order of the vectors.
    """

    info: IdentifierInfo
    trie: Trie
    items: Items


def prepare(
    index: Index,
    vectors: Vectors,
    codec: Codec,
    bank: QueryBank | None = None,
    captions: str | None = None,
) -> PreparedIdentifiers:
    """Write new identifiers under the next payload field; no search reads them until they are
    activated.

    Tree and table are made of what was computed, not of what the store gives back: on a cluster a
    replica may lag behind.

    Args:
        index: Open index; its lock is held.
        vectors: All items.
        codec: Fitted on every space that has items.
        bank: Queries from which hubness is computed; None writes no hubness.
        captions: Vector that holds the captions that identifiers are made of and whose hubness is
            measured; None for that in force.

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
    slot, errors = captions or index.caption_vector, Errors(codec)
    items = _write_all(index, field, vectors, codec, bank, slot, errors)
    codec = _with_errors(codec, errors.relative())
    trie, table = items.build()
    index.store.flush()
    name = f"identifiers-{version}.safetensors"
    folder = index.folder
    books = Artifact(name, save_arrays(folder.root / name, codec.to_arrays(), folder.work))
    info = IdentifierInfo(
        version=version,
        field=field,
        books=books,
        trie=save_part(index, "trie", trie),
        items=save_part(index, "items", table),
        meta=codec.to_meta(),
        levels=codec.levels,
        count=len(trie),
        unique_ratio=trie.unique_ratio,
    )
    return PreparedIdentifiers(info, trie, items)


def _write_all(
    index: Index,
    field: str,
    vectors: Vectors,
    codec: Codec,
    bank: QueryBank | None,
    slot: str,
    errors: Errors,
) -> Items:
    """Write the identifiers of all items, with their hubness if there is a bank; `errors` gets all
    of them."""
    count, reads = len(vectors.ids), bank is not None or codec.reads_captions
    row_NL = np.empty((count, codec.levels + 1), dtype=np.int32)
    hub_N2 = np.full((count, 2), np.nan, dtype=np.float32)
    tokens = DisambiguationTokens()
    for begin in range(0, count, ENCODED):
        some = slice(begin, begin + ENCODED)
        ids, x_BD, spaces = vectors.ids[some], vectors.x_ND[some], vectors.spaces[some]
        caption_BW = np.zeros((len(ids), TEXT_DIM), np.float32)
        if reads:
            caption_BW = read_captions(index, ids, slot)
        codes_BL = encode(codec, x_BD, spaces, caption_BW)
        if codec.reads_captions:
            errors.add(x_BD, spaces, caption_BW, codes_BL)
        row_NL[some] = tokens.complete(codes_BL)
        hubs = None
        if bank is not None:
            hubs = measure_hubness(bank, x_BD, spaces, caption_BW, vectors.file_N[some])
            hub_N2[some] = [[h.get(name, np.nan) for name in ("media", "caption")] for h in hubs]
        write_identifiers(index.store, field, ids, row_NL[some], hubs)
    return Items(
        keys_of(vectors.ids), row_NL, hub_N2[:, 0], vectors.modality_N, vectors.file_N, hub_N2[:, 1]
    )


def _with_errors(codec: Codec, errors: Mapping[str, float]) -> Codec:
    """The codec with the errors of the items that it names, where these are made of captions: it
    was fitted on those that train, and what is held out is further from its codes."""
    quantizers = {
        name: replace(q, error=errors[name]) if q.parts.caption and name in errors else q
        for name, q in codec.quantizers.items()
    }
    return Codec(quantizers)


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


def activate_identifiers(
    index: Index,
    info: IdentifierInfo,
    generator: GeneratorInfo | None = None,
    captions: CaptionVectors | None = None,
) -> None:
    """Activate identifiers from `prepare`, with the generator that writes them, and caption vectors
    from `write_caption_vectors`: None keeps those in force. A generator that was trained before
    writes the old identifiers, so the manifest no longer names it.

    The old payload field and the old caption vectors stay until the next writing run calls
    `remove_stale`, so that a search which opened the old manifest still finds what it names.
    """
    manifest, old = index.manifest, index.manifest.identifiers
    stale = [*manifest.stale_fields, *([old.field] if old is not None else [])]
    manifest = with_captions(manifest, captions or manifest.captions)
    index.put(replace(manifest, identifiers=info, generator=generator, stale_fields=stale))


def remove_stale(index: Index) -> None:
    """Remove the files, payload fields and vectors of earlier versions, at the start of a run that
    writes: searches that opened them have followed since. A run that is killed in between leaves
    the rest to the next one."""
    index.folder.sweep(index.manifest)
    if not index.manifest.stale_fields and not index.manifest.stale_vectors:
        return
    for name in index.manifest.stale_vectors:
        index.store.clear_vector(name)
    for field in index.manifest.stale_fields:
        index.store.delete_payload_key(field)
        for name in identifier_fields(field):
            index.store.drop_index(name)
    index.store.flush()
    index.put(replace(index.manifest, stale_fields=[], stale_vectors=[]))


def refit(index: Index, config: IdentifierConfig | None = None) -> IdentifierInfo | None:
    """Fit identifiers on all items and activate them; None when there is no item."""
    remove_stale(index)
    vectors = read_vectors(index)
    if not vectors.ids:
        return None
    info = prepare(index, vectors, fit_codec(vectors.by_space(), config)).info
    activate_identifiers(index, info)
    return info


def fitted_on(info: IdentifierInfo) -> int:
    """Number of items that the codebooks were fitted on: those of the media spaces know all."""
    media = [one for one in info.meta.values() if not one["parts"]["caption"]]
    return sum(int(one["fitted_on"]) for one in media)


def made_of(info: IdentifierInfo) -> MadeOf:
    """What the identifiers of items with captions are made of."""
    found = {Parts(**one["parts"]).made_of for one in info.meta.values()}
    return next((one for one in found if one != "media"), "media")


def summary(info: IdentifierInfo) -> dict[str, Any]:
    """The figures of the identifiers that reports contain."""
    return {
        "unique_ratio": round(info.unique_ratio, 4),
        "levels": info.levels,
        "count": info.count,
        "fitted_on": fitted_on(info),
    }


def update_identifiers(index: Index) -> int:
    """Bring identifiers, tree and table up to date with the points. Refit all identifiers instead
    where the collection has outgrown its codebooks and no generator was trained on them.

    Returns:
        How many items stay without an identifier.
    """
    info = index.manifest.identifiers
    if (
        info is not None
        and index.manifest.generator is None
        and index.store.count(is_ours()) > GROWN * fitted_on(info)
    ):
        return _refit_all(index)
    return assign_new(index)


def _refit_all(index: Index) -> int:
    refit(index)
    index.store.flush()
    index.changes.settle()
    return 0


def assign_new(index: Index, *, rebuild: bool = False) -> int:
    """Assign an identifier to every point that has none, and update tree and table.

    The points that `index.changes` names are replaced in both. Where it does not know all of them,
    since a run was killed, both are built from the payloads of all points. Items of a space without
    codebooks need a new fit: it is done at once, unless that would discard a trained generator.

    Args:
        index: Open index; its lock is held.
        rebuild: Build tree and table from all payloads in any case.

    Returns:
        How many items stay without an identifier.
    """
    info = index.manifest.identifiers
    if info is None:
        return _refit_all(index)
    updated = None if rebuild else edited_parts(index, info)
    without, trie, table = updated or built_parts(index, info)
    if without and index.manifest.generator is None:
        return _refit_all(index)
    index.store.flush()
    written = replace(
        info, trie=save_part(index, "trie", trie), items=save_part(index, "items", table),
        count=len(trie), unique_ratio=trie.unique_ratio,
    )  # fmt: skip
    if (written.trie, written.items) != (info.trie, info.items):
        index.put(replace(index.manifest, identifiers=written))
    index.changes.settle()
    return without
