"""Follow the changes that others make to an attached collection.

Shape legend: N points, D vector width.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from cart_qdrant.errors import UsageError
from cart_qdrant.identifiers.codec import DisambiguationTokens
from cart_qdrant.identifiers.free_tokens import FreeTokens
from cart_qdrant.index.caption_vectors import caption_means
from cart_qdrant.index.collection import TEXT_DIM
from cart_qdrant.index.field_changes import changes_between, read_again, remarks_on
from cart_qdrant.index.health import advice
from cart_qdrant.index.identifier_files import load_codec, load_trie
from cart_qdrant.index.identifier_writes import encode, write_identifiers
from cart_qdrant.index.identify import remove_stale, summary, update_identifiers
from cart_qdrant.index.index import Index
from cart_qdrant.index.points import (
    caption_rows,
    has_identifier,
    in_blocks,
    is_ours,
    vector_of,
)
from cart_qdrant.progress import Reporter, Silent
from cart_qdrant.records import Caption, CaptionSource
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.attached import AttachedStore
from cart_qdrant.storage.attachment import Attachment
from cart_qdrant.storage.protocol import CAPTION_TEXTS, MEDIA


@dataclass(slots=True)
class SyncReport:
    """What `sync` did, and how the collection is read; `to_json` is the `--json` contract.

    Attributes:
        items: Items that have an identifier now.
        new: Items that got one.
        deleted: Items that others have deleted.
        changed: Items whose vector others have replaced; counted only with `verify`.
        without_identifier: Items of a space without codebooks: they are found by their vectors
            alone until training.
        captions: Items whose captions were embedded.
        fields: What is read from another payload field than before, with its `was` and `is`.
    """

    location: str
    attachment: Attachment
    embedder: str
    items: int = 0
    new: int = 0
    deleted: int = 0
    changed: int = 0
    without_identifier: int = 0
    captions: int = 0
    fields: dict[str, dict[str, str | None]] = field(default_factory=dict)
    identifiers: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {**asdict(self), "seconds": round(self.seconds, 3)}


def sync(index: Index, reporter: Reporter | None = None, *, verify: bool = False) -> SyncReport:
    """Follow what others did to an attached collection: new points get identifiers, deleted points
    leave the prefix tree. The first run fits the identifiers.

    Args:
        index: Open attached index; its lock is held.
        reporter: Is called with the progress.
        verify: Read all vectors and captions again, to find points whose content was replaced
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
            "Update it from its files: `cartq ingest FOLDER`.",
        )
    remove_stale(index)
    how = _read_again(index, how)
    report = SyncReport(index.store.location, how, index.manifest.embedder.name)
    report.fields = changes_between(index.manifest.store.attachment or how, how)
    report.remarks += remarks_on(report.fields)
    index.make_collection(index.store)  # payload indexes that others have dropped
    before = load_trie(index)
    known = 0 if before is None else len(before)
    if how.caption_vector is not None:
        reporter.phase("captions", None)
        index.store.add_vector(index.caption_vector, TEXT_DIM)
        anew = verify or "captions" in report.fields
        report.captions = _embed_captions(index, how, reporter, everything=anew)
    _keep(index, how)
    info, ours = index.manifest.identifiers, index.store.count(is_ours())
    identified = 0 if info is None else index.store.count(has_identifier(info.field))
    if verify and before is not None:
        reporter.phase("vectors", identified)
        report.changed = _reassign_changed(index, reporter)
    reporter.phase("identifiers", None)
    if known != identified or identified != ours or index.changes.pending:
        report.without_identifier = update_identifiers(index)
    info = index.manifest.identifiers
    if info is None:
        report.remarks.append("the collection has no point with this vector yet")
    else:
        report.items = info.count
        report.new = info.count - identified
        report.deleted = max(0, known - identified)
        report.identifiers = summary(info)
    without = index.store.count() - ours
    if without:
        report.remarks.append(
            f"{without} points are left out: they lack this vector, or have another modality"
        )
    report.remarks += advice(index, report.without_identifier)
    report.seconds = time.perf_counter() - begin
    return report


def _read_again(index: Index, how: Attachment) -> Attachment:
    """Find out which payload fields hold what, and read the collection in that way."""
    info, store = index.manifest.identifiers, index.store
    assert isinstance(store, AttachedStore)
    now = read_again(store, how, None if info is None else info.field)
    store.read_as(now)
    return now


def _keep(index: Index, how: Attachment) -> None:
    """Record how the collection is read, when caption vectors have followed: a run that is killed
    before lets the next one find the same changes. Tree and table, which know modality and file
    of each item, are built anew."""
    manifest = index.manifest
    if manifest.store.attachment == how:
        return
    index.changes.add(())
    index.changes.forget_ids()
    index.put(replace(manifest, store=replace(manifest.store, attachment=how)))


def _embed_captions(index: Index, how: Attachment, reporter: Reporter, *, everything: bool) -> int:
    """Embed the captions of points that have no caption vector, or of all points.

    Returns:
        How many points got a caption vector.
    """
    slot = index.caption_vector
    missing: list[qdrant.AnyCondition] = [qdrant.HasVectorCondition(has_vector=slot)]
    if len(how.captions) == 1:  # the one whose words are indexed
        missing.append(qdrant.IsEmptyCondition(is_empty=qdrant.PayloadField(key=CAPTION_TEXTS)))
    which = is_ours() if everything else qdrant.Filter(must=[is_ours()], must_not=missing)
    info, measured = index.manifest.identifiers, index.query_bank() is not None
    field = None if info is None or not measured else info.field
    wanted = ["captions"] if field is None else ["captions", field]
    count = 0
    for chunk in in_blocks(index.store.scroll(which, with_payload=wanted)):
        captions = [
            [
                Caption(text=one["text"], source=CaptionSource(one["source"]))
                for one in (record.payload or {})["captions"]
            ]
            for record in chunk
        ]
        empty = [str(r.id) for r, own in zip(chunk, captions, strict=True) if not own]
        if field is not None:
            some = [r for r, own in zip(chunk, captions, strict=True) if own or everything]
            _forget_hubness(index, field, some)
        if everything:
            index.store.delete_vectors(slot, empty)
        if not any(captions):
            continue
        means = caption_means(index.caption_encoder(), captions)
        updates = [
            (str(record.id), mean.tolist())
            for record, mean in zip(chunk, means, strict=True)
            if mean is not None
        ]
        index.store.update_vectors(slot, updates)
        count += len(updates)
        reporter.advance(len(updates))
    return count


def _forget_hubness(index: Index, field: str, records: Sequence[qdrant.AnyRecord]) -> None:
    """Remove the hubness of points whose captions change, before they do: `update_identifiers`
    measures it again, in a later run if this one is killed."""
    carts = {str(r.id): (r.payload or {}).get(field) for r in records}
    known = {id: cart for id, cart in carts.items() if cart and "codes" in cart}
    if not known:
        return
    index.changes.add(known)
    bare = {id: {k: v for k, v in cart.items() if k != "hub"} for id, cart in known.items()}
    index.store.set_payload([(id, {field: cart}) for id, cart in bare.items()])


def _reassign_changed(index: Index, reporter: Reporter) -> int:
    """Write another identifier to points whose vector no longer has the codes of the stored one.

    Returns:
        How many points there were.
    """
    info, codec, trie = index.manifest.identifiers, load_codec(index), load_trie(index)
    assert info is not None and codec is not None and trie is not None
    counters = DisambiguationTokens(FreeTokens(trie))
    changed, slot = 0, index.caption_vector
    found = index.store.scroll(
        has_identifier(info.field), with_payload=["modality", info.field],
        with_vectors=[MEDIA, slot] if codec.reads_captions else [MEDIA],
    )  # fmt: skip
    for chunk in in_blocks(found):
        spaces = np.asarray([index.space((r.payload or {})["modality"]) or "" for r in chunk])
        x_BD = np.asarray([vector_of(r) for r in chunk], np.float32)
        captions = caption_rows([vector_of(r, slot) for r in chunk])
        codes = encode(codec, x_BD, spaces, captions)
        old = np.asarray([(r.payload or {})[info.field]["codes"] for r in chunk], np.int32)
        rows = np.flatnonzero((codes != old).any(axis=1) & (codes[:, 0] >= 0))
        ids = [str(chunk[n].id) for n in rows]
        index.changes.add(ids)
        write_identifiers(index.store, info.field, ids, counters.complete(codes[rows]))
        changed += len(rows)
        reporter.advance(len(chunk))
    return changed
