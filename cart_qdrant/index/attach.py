"""Makes an index over a collection that others fill; `sync` keeps it up to date afterwards."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cart_qdrant.embedders.external import ExternalEmbedder
from cart_qdrant.embedders.protocol import Embedder, FittedEmbedder
from cart_qdrant.errors import MismatchError, StoreError, UsageError
from cart_qdrant.extras import require
from cart_qdrant.index.collection import KEY
from cart_qdrant.index.consent import remember_key
from cart_qdrant.index.field_guess import (
    FIELDS,
    SAMPLE,
    guess_fields,
    modality_by_name,
    word_field,
)
from cart_qdrant.index.folder import IndexFolder
from cart_qdrant.index.index import Index
from cart_qdrant.index.manifest import EmbedderInfo, Manifest
from cart_qdrant.index.ownership import check_owner
from cart_qdrant.index.points import vector_of
from cart_qdrant.progress import Reporter, Silent
from cart_qdrant.records import Modality
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.attached import AttachedStore
from cart_qdrant.storage.attached_mapping import value_at
from cart_qdrant.storage.attachment import Attachment
from cart_qdrant.storage.factory import open_store
from cart_qdrant.storage.payloads import json_path
from cart_qdrant.storage.protocol import CAPTION_SLOTS, Store, VectorInfo
from cart_qdrant.storage.store_info import StoreInfo

if TYPE_CHECKING:
    from qdrant_client import QdrantClient


SPACE = "media"
"""The only space of an attached collection whose embedder is not known."""
LENGTH = 1e-3
"""How far from 1 the length of a vector may be that is compared by dot product."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachOptions:
    """How to read a collection; what is not given is guessed from its points.

    Attributes:
        vector: Name of the media vector; needed where the collection has several.
        modality: Modality of all items.
        fields: Payload field of each of `FIELDS`; "" for none. Several fields of captions are
            separated by commas.
        key: Payload field that identifiers are written to.
        embedder: The embedder that made the vectors, if this package has it.
        caption_vectors: Whether to add a vector for captions to the collection.
    """

    vector: str | None = None
    modality: Modality | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    key: str = KEY
    embedder: Embedder | None = None
    caption_vectors: bool = False

    def __post_init__(self) -> None:
        for name in self.fields:
            if name not in FIELDS:
                raise UsageError(
                    f"--field names {name!r}, but must name one of {', '.join(FIELDS)}.",
                    "Write for example --field captions=description.",
                )
        if not self.key.isidentifier():
            raise UsageError(f"--key is {self.key!r}.", "Use letters, digits and underscores.")


def attach(
    root: Path,
    collection: str,
    *,
    url: str | None = None,
    path: Path | None = None,
    client: QdrantClient | None = None,
    api_key: str | None = None,
    options: AttachOptions | None = None,
    reporter: Reporter | None = None,
) -> Index:
    """Make an index over a collection that others fill. It has no identifiers before `sync`.

    Existing payloads and vectors of the collection are never changed. What is added: the payload
    field `options.key`, payload indexes where they are missing, one key of the collection's
    metadata, and the vector `cart_caption` if the options ask for it.

    Args:
        root: Folder of the new index, such as `.cartq`. Its lock is held.
        collection: Name of the collection.
        url: Server.
        path: Folder of an embedded engine instead.
        client: A client of the caller's instead; `Retriever.open` needs it again.
        api_key: Key of the server.

    Raises:
        MissingExtraError: The packages of `train` are not installed.
        UsageError: The folder holds an index or other files, or it is ambiguous which vector is
            the media vector.
        MismatchError: The vector is not compared by cosine, or the embedder has another width.
        StoreError: There is no such collection, or it cannot be reached.
    """
    require("train")  # identifiers are fitted, captions embedded
    options, reporter = options or AttachOptions(), reporter or Silent()
    folder = IndexFolder(Path(root).absolute())
    if folder.exists():
        raise UsageError(f"There is an index at {root} already.", "Update it: `cartq sync`.")
    place = StoreInfo(
        kind="client" if client is not None else "edge" if url is None else "server",
        url=url,
        collection=collection,
        path=None if path is None else str(Path(path).absolute()),
    )
    folder.prepare()
    store = open_store(place, folder.store, api_key, client)
    try:
        if not store.exists():
            raise StoreError(
                f"There is no collection at {store.location}.", "Name another with --collection."
            )
        remember_key(api_key, url)
        check_owner(store, options.key, None)
        how, dim = read_attachment(store, options, reporter)
        embedder = options.embedder or ExternalEmbedder(dim, dict.fromkeys(Modality, SPACE))
        _check_embedder(embedder, dim, how, store.location)
        how = replace(how, modalities=[str(modality) for modality in embedder.spaces])
        info = EmbedderInfo(
            name=embedder.name, version=embedder.version, dim=dim,
            spaces={str(m): space for m, space in embedder.spaces.items()},
        )  # fmt: skip
        place = replace(place, attachment=how)
        manifest = Manifest(id=str(uuid.uuid4()), embedder=info, store=place)
        index = Index(folder, manifest, AttachedStore(store, how))
        index.own(index.store)
        index.set_embedder(embedder)
        index.put(manifest)
        if index.keeps_captions:
            _clear_captions(index)
    except BaseException:
        store.close()
        raise
    return index


def read_attachment(
    store: Store, options: AttachOptions, reporter: Reporter
) -> tuple[Attachment, int]:
    """How to read a collection, and the width of its media vector.

    Raises:
        UsageError: It is ambiguous which vector is the media vector, or `options.key` is in use.
        MismatchError: The scores of the vector are not cosines.
    """
    ours = _caption_vector(options.key)
    vectors = {
        name: one for name, one in store.info().vectors.items() if name not in (ours, f"{ours}_2")
    }
    name = _vector(vectors, options.vector, store.location)
    sample = list(islice(store.scroll(batch=SAMPLE, with_vectors=[name]), SAMPLE))
    _check_lengths(sample, name, vectors[name], store.location)
    payloads = [dict(record.payload or {}) for record in sample]
    _check_key(store, options.key, payloads, reporter)
    found = {**guess_fields(payloads), **options.fields}
    captions = [one.strip() for one in found.get("captions", "").split(",") if one.strip()]
    path = found.get("path") or None
    for one in (path, *captions, *(found.get(key) for key in ("start", "end", "modality"))):
        if one:
            json_path(one)  # refused here, before an index is made that could not be read
    how = Attachment(
        vector=name,
        key=options.key,
        modality=str(options.modality or modality_by_name(payloads, path)),
        modality_field=None if options.modality else found.get("modality") or None,
        path=path,
        start=found.get("start") or None,
        end=found.get("end") or None,
        captions=captions,
        words=word_field(payloads, captions),
        caption_vector=ours if options.caption_vectors else None,
        given=sorted({*options.fields, *(["modality"] if options.modality else [])}),
    )
    for key in ("path", "captions", "modality", "start", "end"):
        if key not in options.fields and found.get(key):
            share = np.mean([value_at(one, found[key]) is not None for one in payloads])
            reporter.say(
                f"{key}: read from the payload field {found[key]!r} ({share:.0%} of points)"
            )
    return how, vectors[name].size


def _clear_captions(index: Index) -> None:
    """Remove the caption vectors of an index that was attached under the same key before: another
    encoder may have made them."""
    there = index.store.info().vectors
    own = _caption_vector(index.key)
    for slot, name in zip(CAPTION_SLOTS, (own, f"{own}_2"), strict=True):
        if name in there:
            index.store.clear_vector(slot)


def _caption_vector(key: str) -> str:
    """Vector that is added for captions if the user asks for it: one for each index that is
    attached to the collection."""
    return f"{key}_caption"


def _vector(vectors: Mapping[str, VectorInfo], wanted: str | None, location: str) -> str:
    usable = [name for name, one in vectors.items() if one.is_usable]
    shown = ", ".join(
        f"{name or '(without a name)'} {one.size}-d {one.distance}{', several a point' * one.multi}"
        for name, one in vectors.items()
    )
    if wanted is not None and wanted in vectors and wanted not in usable:
        raise MismatchError(
            f"Vector {wanted!r} of {location} cannot be used: {shown}.",
            "Name one that is compared by Cosine or Dot, one a point.",
        )
    if wanted is None and len(usable) == 1:
        return usable[0]
    if wanted is None or wanted not in usable:
        asked = "no vector is named" if wanted is None else f"there is no vector {wanted!r}"
        raise UsageError(
            f"{location}: {asked}, and it has {shown or 'none'}.", "Name one with --vector."
        )
    return wanted


def _check_lengths(
    sample: Sequence[qdrant.AnyRecord], name: str, vector: VectorInfo, location: str
) -> None:
    """Refuse vectors whose dot products are not cosines since their length is not 1."""
    if vector.distance != "Dot":
        return
    rows = [x for record in sample if (x := vector_of(record, name)) is not None]
    lengths = np.linalg.norm(np.asarray(rows, np.float32).reshape(-1, vector.size), axis=1)
    worst = float(np.abs(lengths - 1).max(initial=0.0))
    if worst > LENGTH:
        raise MismatchError(
            f"Vector {name!r} of {location} is compared by dot product, and its vectors are "
            f"{lengths.min():.3g} to {lengths.max():.3g} long; this needs Cosine, or length 1.",
            "Use a collection with Cosine.",
        )


def _check_key(
    store: Store, key: str, payloads: Sequence[Mapping[str, Any]], reporter: Reporter
) -> None:
    """Refuse a payload field that is in use, or whose name with a number is: later versions of the
    identifiers go there."""
    mine = re.compile(rf"{key}(_\d+)?")
    indexed = {field.split(".")[0] for field in store.info().indexed}
    taken = sorted(
        {one for payload in payloads for one in payload if mine.fullmatch(one)}
        | {one for one in indexed if mine.fullmatch(one)}
    )
    if not taken:
        empty = qdrant.IsEmptyCondition(is_empty=qdrant.PayloadField(key=key))
        try:
            taken = [key] if store.count(qdrant.Filter(must_not=[empty])) else []
        except StoreError:
            reporter.say(
                f"the server refuses conditions on unindexed fields: whether {key!r} is unused was "
                f"checked on {len(payloads)} points only"
            )
    if taken:
        raise UsageError(
            f"Points of {store.location} have a payload field {taken[0]!r} already.",
            "Name another field for the identifiers, such as --key cart_ids, or delete that field "
            "if it is left over from a deleted index.",
        )


def _check_embedder(embedder: Embedder, dim: int, how: Attachment, location: str) -> None:
    if isinstance(embedder, FittedEmbedder) or embedder.name == "precomputed":
        raise UsageError(
            f"The embedder {embedder.name} is fitted to one index: it cannot embed texts for an "
            "attached collection.",
            "Leave --embedder out.",
        )
    if embedder.dim != dim:
        raise MismatchError(
            f"The embedder {embedder.name} makes {embedder.dim}-d vectors, but {how.vector!r} of "
            f"{location} has {dim}-d ones.",
            "Name the model that made the vectors, or leave --embedder out.",
        )
    if how.modality_field is None and Modality(how.modality) not in embedder.spaces:
        raise MismatchError(
            f"The embedder {embedder.name} knows {', '.join(sorted(embedder.spaces))}, but the "
            f"items have the modality {how.modality}.",
            "Name the modality of the items with --modality.",
        )
