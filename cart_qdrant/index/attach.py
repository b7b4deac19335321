"""An index over a collection that others fill: identifiers beside their payloads, kept in step.

Shape legend: N points, D vector width.
"""

from __future__ import annotations

import mimetypes
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cart_qdrant.embedders.external import ExternalEmbedder
from cart_qdrant.embedders.protocol import Embedder, FittedEmbedder
from cart_qdrant.errors import MismatchError, StoreError, UsageError
from cart_qdrant.identifiers.codec import Counters
from cart_qdrant.index.folder import IndexFolder
from cart_qdrant.index.identify import (
    advice,
    bring_in_step,
    encode,
    in_blocks,
    is_named,
    is_ours,
    load_codec,
    load_trie,
    remove_stale,
    summary,
    vector_of,
    write_identifiers,
)
from cart_qdrant.index.index import KEY, TEXT_DIM, Index, check_owner
from cart_qdrant.index.manifest import EmbedderInfo, Manifest
from cart_qdrant.index.writer import caption_means
from cart_qdrant.progress import Reporter, Silent
from cart_qdrant.records import Caption, CaptionSource, Modality
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.attached import AttachedStore
from cart_qdrant.storage.attached_mapping import texts_of, value_at
from cart_qdrant.storage.attachment import Attachment
from cart_qdrant.storage.factory import open_store
from cart_qdrant.storage.payloads import json_path
from cart_qdrant.storage.protocol import CAPTION, CAPTION_TEXTS, MEDIA, Store, VectorInfo
from cart_qdrant.storage.store_info import StoreInfo

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

SAMPLE = 1_000
"""Points whose payloads are looked at to guess what is where."""
SPACE = "media"
"""The one space of vectors whose model is not known."""
CAPTION_VECTOR = "cart_caption"
"""Vector that is added for captions, where that is asked for."""
LENGTH = 1e-3
"""How far the length of a vector compared by dot product may be from 1."""
FIELDS = ("path", "modality", "captions", "start", "end")
"""What may be mapped to a payload field of the collection."""
GUESSES: Mapping[str, tuple[str, ...]] = {
    "path": ("path", "file_path", "filepath", "image_path", "file_name", "filename", "file", "url",
             "uri", "image_url", "src", "source", "image"),
    "captions": ("captions", "caption", "text", "description", "page_content", "title", "alt",
                 "alt_text", "transcript", "prompt"),
    "modality": ("modality", "media_type", "kind", "type"),
    "start": ("start", "start_time", "start_s", "t_start", "begin"),
    "end": ("end", "end_time", "end_s", "t_end"),
}  # fmt: skip
"""Last parts of payload fields, the likeliest first."""
_OFTEN = {"path": 0.5, "captions": 0.02, "modality": 0.99, "start": 0.5, "end": 0.5}
"""Share of the sample that must hold a value for it to be guessed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachOptions:
    """How to read a collection; what is left out is guessed from its points.

    Attributes:
        vector: Name of the media vector; needed where there are several.
        modality: Kind of all items.
        fields: Payload field of each of `FIELDS`; "" for none. Several fields of captions are
            separated by commas.
        key: Payload field that identifiers are written to.
        embedder: What made the vectors, if it is one of ours.
        caption_vectors: Give the collection a vector for captions.
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


@dataclass(slots=True)
class SyncReport:
    """What a run did, and how the collection is read; `to_json` is the `--json` contract.

    Attributes:
        items: Items with an identifier now.
        new: Items that got one.
        gone: Items that others have deleted.
        changed: Items whose vector others have replaced; only looked for when asked.
        unnamed: Items of a kind without code books: found by their vectors until training.
        captions: Items whose captions were embedded.
    """

    location: str
    attachment: Attachment
    embedder: str
    items: int = 0
    new: int = 0
    deleted: int = 0
    changed: int = 0
    unnamed: int = 0
    captions: int = 0
    identifiers: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """One object."""
        return {**asdict(self), "seconds": round(self.seconds, 3)}


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
    """Make an index over a collection that others fill, without identifiers yet: see `sync`.

    No payload or vector of theirs is changed: the payload field `options.key` is written later,
    payload indexes are made where there is none, the collection's metadata gets one key, and the
    vector `cart_caption` is added if asked for.

    Args:
        root: Folder of the new index, such as `.cartq`. Its lock is held.
        collection: Name of the collection.
        url: Server.
        path: Folder of an embedded engine instead.
        client: Client of your own instead; to be given again to `Retriever.open`.
        api_key: Key of the server.

    Raises:
        UsageError: There is an index already, or other files, or it is not clear which vector is
            meant.
        MismatchError: The vector is not compared by cosine, or the embedder has another width.
        StoreError: There is no such collection, or it cannot be reached.
    """
    options, reporter = options or AttachOptions(), reporter or Silent()
    folder = IndexFolder(Path(root).absolute())
    if folder.exists():
        raise UsageError(f"There is an index at {root} already.", "Bring it in step: `cartq sync`.")
    folder.prepare()
    place = StoreInfo(
        kind="client" if client is not None else "edge" if url is None else "server",
        url=url,
        collection=collection,
        path=None if path is None else str(Path(path).absolute()),
    )
    store = open_store(place, folder.store, api_key, client)
    try:
        if not store.exists():
            raise StoreError(
                f"There is no collection at {store.location}.", "Name another with --collection."
            )
        check_owner(store, options.key, None)
        how, dim = read_attachment(store, options, reporter)
        embedder = options.embedder or ExternalEmbedder(dim, dict.fromkeys(Modality, SPACE))
        _check_embedder(embedder, dim, how, store.location)
        how = replace(how, kinds=[str(modality) for modality in embedder.spaces])
        info = EmbedderInfo(
            name=embedder.name, version=embedder.version, dim=dim,
            spaces={str(m): space for m, space in embedder.spaces.items()},
        )  # fmt: skip
        place = replace(place, attachment=how)
        manifest = Manifest(id=str(uuid.uuid4()), embedder=info, store=place)
        index = Index(folder, manifest, AttachedStore(store, how))
        index.set_embedder(embedder)
        index.put(manifest)
    except BaseException:
        store.close()
        raise
    return index


def read_attachment(
    store: Store, options: AttachOptions, reporter: Reporter
) -> tuple[Attachment, int]:
    """Where in a collection is what, and the width of its vectors.

    Raises:
        UsageError: It is not clear which vector is meant, or `options.key` is taken.
        MismatchError: Scores of the vector are no cosines.
    """
    vectors = {name: one for name, one in store.info().vectors.items() if name != CAPTION_VECTOR}
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
            json_path(one)  # told here, before an index is made that could not be read
    how = Attachment(
        vector=name,
        key=options.key,
        modality=str(options.modality or _kind_by_name(payloads, path)),
        kind=None if options.modality else found.get("modality") or None,
        path=path,
        start=found.get("start") or None,
        end=found.get("end") or None,
        captions=captions,
        words=_words(payloads, captions),
        caption_vector=CAPTION_VECTOR if options.caption_vectors else None,
    )
    for key in ("path", "captions", "modality", "start", "end"):
        if key not in options.fields and found.get(key):
            share = np.mean([value_at(one, found[key]) is not None for one in payloads])
            reporter.say(
                f"{key}: read from the payload field {found[key]!r} ({share:.0%} of points)"
            )
    return how, vectors[name].size


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
    """Dot products are cosines of unit vectors alone."""
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
    """Refuse a payload field that is taken, it or those that later identifiers go to."""
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
                f"the collection takes no condition on a field without an index: that {key!r} is "
                f"free was seen on {len(payloads)} points alone"
            )
    if taken:
        raise UsageError(
            f"Points of {store.location} have a payload field {taken[0]!r} already.",
            "Name another for the identifiers, such as --key cart_ids, or delete it if an "
            "index that is gone has left it.",
        )


def _check_embedder(embedder: Embedder, dim: int, how: Attachment, location: str) -> None:
    if isinstance(embedder, FittedEmbedder) or embedder.name == "precomputed":
        raise UsageError(
            f"Vectors of {embedder.name} are of one index alone: it cannot tell what a text means "
            "here.",
            "Leave --embedder out.",
        )
    if embedder.dim != dim:
        raise MismatchError(
            f"The embedder {embedder.name} makes {embedder.dim}-d vectors, but {how.vector!r} of "
            f"{location} has {dim}-d ones.",
            "Name the model that they were made with, or leave --embedder out.",
        )
    if how.kind is None and Modality(how.modality) not in embedder.spaces:
        raise MismatchError(
            f"The embedder {embedder.name} knows {', '.join(sorted(embedder.spaces))}, but the "
            f"items are of the kind {how.modality}.",
            "Say what they are with --modality.",
        )


def guess_fields(payloads: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Payload fields that look like ours, by name and values; one level of nesting is read."""
    fields: Counter[str] = Counter()
    for payload in payloads:
        for key, value in payload.items():
            fields[key] += 1
            if isinstance(value, Mapping):
                fields.update(f"{key}.{inner}" for inner in value)
    fits: Mapping[str, Callable[[Any], bool]] = {
        "path": lambda v: isinstance(v, str) and bool(v),
        "captions": lambda v: bool(texts_of({"v": v}, ["v"])),
        "modality": lambda v: v in list(Modality),
        "start": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
        "end": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    }
    found: dict[str, str] = {}
    for ours, names in GUESSES.items():
        least = max(1, int(_OFTEN[ours] * len(payloads)))
        likely = sorted(
            (names.index(last), one.count("."), one)
            for one in fields
            if (last := one.rpartition(".")[2].lower()) in names
        )
        for _, _, one in likely:
            if one in found.values():
                continue
            if sum(fits[ours](value_at(payload, one)) for payload in payloads) >= least:
                found[ours] = one
                break
    return found


def _kind_by_name(payloads: Sequence[Mapping[str, Any]], path: str | None) -> Modality:
    """The commonest kind of file by its name; pictures where names tell nothing."""
    names = (str(value_at(payload, path) or "") for payload in payloads)
    kinds = Counter((mimetypes.guess_type(name)[0] or "").split("/")[0] for name in names)
    known = [kind for kind, _ in kinds.most_common() if kind in list(Modality)]
    return Modality(known[0]) if known else Modality.IMAGE


def _words(payloads: Sequence[Mapping[str, Any]], captions: Sequence[str]) -> str | None:
    """The field whose words are indexed: within objects where captions are such."""
    for name in captions:
        for payload in payloads:
            value = value_at(payload, name)
            if isinstance(value, list) and value:
                return f"{name}[].text" if isinstance(value[0], Mapping) else name
            if value is not None:
                return name
    return captions[0] if captions else None


def sync(index: Index, reporter: Reporter | None = None, *, verify: bool = False) -> SyncReport:
    """Follow what others did to an attached collection: points that are new get identifiers, those
    that are gone leave the tree. The first run fits the identifiers. The lock is held.

    Args:
        verify: Look at each vector and caption again, for points whose content was replaced
            while their payload stayed.

    Raises:
        UsageError: The index is not attached.
        StoreError: The store cannot be reached; what was written stays, and the next run goes on.
    """
    begin = time.perf_counter()
    reporter = reporter or Silent()
    how = index.attachment
    if how is None:
        raise UsageError(
            f"The index at {index.folder.root} fills its own collection.",
            "Bring it in step with its files: `cartq ingest FOLDER`.",
        )
    report = SyncReport(index.store.location, how, index.manifest.embedder.name)
    remove_stale(index)
    index.add_indexes()
    before = load_trie(index)
    known = 0 if before is None else len(before)
    if how.caption_vector is not None:
        reporter.phase("captions", None)
        _add_caption_vector(index, how.caption_vector)
        report.captions = _embed_captions(index, reporter, everything=verify)
    info, ours = index.manifest.identifiers, index.store.count(is_ours())
    named = 0 if info is None else index.store.count(is_named(info.field))
    if verify and before is not None:
        reporter.phase("vectors", named)
        report.changed = _repair_changed(index, reporter)
    reporter.phase("identifiers", None)
    old = info is not None and info.items is None  # an older version's
    if known != named or named != ours or report.changed or old:
        report.unnamed = bring_in_step(index)
    info = index.manifest.identifiers
    if info is None:
        report.remarks.append("the collection has no point with this vector yet")
    else:
        report.items = info.count
        report.new = info.count - named
        report.deleted = max(0, known - named)
        report.identifiers = summary(info)
    without = index.store.count() - ours
    if without:
        report.remarks.append(
            f"{without} points have no such vector, or are of another kind, and are left out"
        )
    report.remarks += advice(index, report.unnamed)
    report.seconds = time.perf_counter() - begin
    return report


def _add_caption_vector(index: Index, name: str) -> None:
    if name not in index.store.info().vectors:
        index.store.add_vector(name, TEXT_DIM)


def _embed_captions(index: Index, reporter: Reporter, *, everything: bool) -> int:
    """Embed the captions of points that have no caption vector; of all, if asked."""
    how = index.attachment
    assert how is not None
    missing: list[qdrant.AnyCondition] = [qdrant.HasVectorCondition(has_vector=CAPTION)]
    if len(how.captions) == 1:  # the one whose words are indexed
        missing.append(qdrant.IsEmptyCondition(is_empty=qdrant.PayloadField(key=CAPTION_TEXTS)))
    which = is_ours() if everything else qdrant.Filter(must=[is_ours()], must_not=missing)
    count = 0
    for chunk in in_blocks(index.store.scroll(which, with_payload=["captions"])):
        captions = [
            [
                Caption(text=one["text"], source=CaptionSource(one["source"]))
                for one in (record.payload or {})["captions"]
            ]
            for record in chunk
        ]
        if everything:
            bare = [str(r.id) for r, own in zip(chunk, captions, strict=True) if not own]
            index.store.delete_vectors(CAPTION, bare)
        if not any(captions):
            continue
        means = caption_means(index.text_encoder(), captions)
        updates = [
            (str(record.id), mean.tolist())
            for record, mean in zip(chunk, means, strict=True)
            if mean is not None
        ]
        index.store.update_vectors(CAPTION, updates)
        count += len(updates)
        reporter.advance(len(updates))
    return count


def _repair_changed(index: Index, reporter: Reporter) -> int:
    """Give points another identifier whose vector no longer fits the one they have."""
    info, codec, trie = index.manifest.identifiers, load_codec(index), load_trie(index)
    assert info is not None and codec is not None and trie is not None
    counters = Counters(trie.counters())
    changed = 0
    found = index.store.scroll(
        is_named(info.field), with_payload=["modality", info.field], with_vectors=[MEDIA]
    )
    for chunk in in_blocks(found):
        spaces = np.asarray([index.space((r.payload or {})["modality"]) or "" for r in chunk])
        codes = encode(codec, np.asarray([vector_of(r) for r in chunk], np.float32), spaces)
        old = np.asarray([(r.payload or {})[info.field]["codes"] for r in chunk], np.int32)
        rows = np.flatnonzero((codes != old).any(axis=1) & (codes[:, 0] >= 0))
        ids = [str(chunk[n].id) for n in rows]
        write_identifiers(index.store, info.field, ids, codes[rows], counters)
        changed += len(rows)
        reporter.advance(len(chunk))
    return changed
