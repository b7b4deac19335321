"""Follow the changes that others make to an attached collection.

Shape legend: N points, D vector width.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from cart_qdrant.errors import UsageError
from cart_qdrant.identifiers.codec import Counters
from cart_qdrant.index.health import advice
from cart_qdrant.index.identifier_files import load_codec, load_trie
from cart_qdrant.index.identify import (
    encode,
    remove_stale,
    summary,
    update_identifiers,
    write_identifiers,
)
from cart_qdrant.index.index import TEXT_DIM, Index
from cart_qdrant.index.points import has_identifier, in_blocks, is_ours, vector_of
from cart_qdrant.index.writer import caption_means
from cart_qdrant.progress import Reporter, Silent
from cart_qdrant.records import Caption, CaptionSource
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.attachment import Attachment
from cart_qdrant.storage.protocol import CAPTION, CAPTION_TEXTS, MEDIA

if TYPE_CHECKING:
    pass


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
    named = 0 if info is None else index.store.count(has_identifier(info.field))
    if verify and before is not None:
        reporter.phase("vectors", named)
        report.changed = _repair_changed(index, reporter)
    reporter.phase("identifiers", None)
    old = info is not None and info.items is None  # an older version's
    if known != named or named != ours or report.changed or old:
        report.unnamed = update_identifiers(index)
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
        has_identifier(info.field), with_payload=["modality", info.field], with_vectors=[MEDIA]
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
