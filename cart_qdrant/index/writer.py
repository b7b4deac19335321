"""Writes the points of files: embeds captions, replaces old points, and may be killed at any time.

The points of a file are written together, and each has the number of them. The points that they
replace are removed afterwards; a file on disk lets the next run do that if this one is killed.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from qdrant_client import models

from cart_qdrant.captions.reader import merge_captions, segment_captions
from cart_qdrant.files import write_atomic
from cart_qdrant.index.caption_vectors import caption_means
from cart_qdrant.index.index import Index
from cart_qdrant.index.plan import Job, file_state
from cart_qdrant.index.points import has_identifier
from cart_qdrant.records import Caption, Segment
from cart_qdrant.storage.payloads import is_plain_key
from cart_qdrant.storage.protocol import CAPTION_TEXTS, MEDIA

WRITE = 512
"""Points that are written together, at least: those of one file are never split."""
COLUMNS = 16
"""Most columns of caption tables of a collection that get a payload index."""
CATEGORY = 64
"""Length of a value in characters up to which its column counts as a category."""
OUR_INDEXES = frozenset({"modality", "path", "hash", CAPTION_TEXTS})
"""Payload fields with an index that are no columns of caption tables."""
MADE_BY = "captioned_by"
"""Payload key: names of the models that were asked for captions of an item."""
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_IDENTIFIER_FIELD = re.compile(r"cart(_\d+)?")


@dataclass(frozen=True, slots=True)
class Row:
    """One segment to store: its unit vector, the payload and the model captions that it keeps."""

    segment: Segment
    vector: list[float]
    keep: Mapping[str, Any]
    made: Sequence[Caption] = ()


@dataclass(frozen=True, slots=True)
class _Replacement:
    """Old points, and the new points after whose write they are removed."""

    new: list[str]
    old: list[str]


class PointWriter:
    """Buffers points of whole files and writes them.

    Args:
        index: Open index; its lock is held.
        use_captions: False stores no captions.

    Attributes:
        embed_seconds: Time spent on caption vectors.
        write_seconds: Time spent on writing points.
    """

    def __init__(self, index: Index, *, use_captions: bool = True) -> None:
        self._index = index
        self._use_captions = use_captions
        self._points: list[tuple[models.PointStruct, list[Caption]]] = []
        self._replacements: list[_Replacement] = []
        self._note = index.folder.work / "replaced.json"
        self._columns: dict[str, str] = {}
        self._indexed: frozenset[str] | None = None
        self.embed_seconds = 0.0
        self.write_seconds = 0.0

    @property
    def changed(self) -> bool:
        """Whether points have changed since identifiers were up to date, also by a killed run."""
        return self._index.changes.pending

    def recover(self) -> None:
        """Remove the points whose replacements a killed run has written."""
        if not self._note.exists():
            return
        for one in json.loads(self._note.read_bytes()):
            there = self._index.store.retrieve(one["new"], with_payload=False)
            if len(there) == len(one["new"]):
                self.mark_changed(one["old"])
                self._index.store.delete(one["old"])
        self._forget_replaced()

    def _forget_replaced(self) -> None:
        """Remove the note when the replaced points are gone from the disk, not before."""
        self._index.store.flush()
        self._note.unlink()

    def put(
        self,
        job: Job,
        rows: Sequence[Row],
        digest: str,
        tags: Sequence[Caption],
        *,
        whole: bool = True,
    ) -> None:
        """Buffer the points of a file, which replace `job.replaces`; `flush` writes them.

        Args:
            job: The file.
            rows: All segments of the file.
            digest: Content hash of the file.
            tags: Captions from inside the file.
            whole: False where a part of the file failed: the next run tries it again.
        """
        extra = tags if self._use_captions else ()
        merged = merge_captions((*job.captions.captions, *extra))
        for row in rows:
            segment = row.segment
            made = row.made if self._use_captions else ()
            captions = segment_captions((*merged, *made), segment.start, segment.end)
            payload = {
                **job.captions.meta,
                **row.keep,
                "path": segment.path,
                "modality": str(segment.modality),
                # The store gives a number of few digits back exactly.
                "start": round(segment.start, 3),
                "end": round(segment.end, 3),
                "captions": [c.to_payload() for c in captions],
                "hash": digest,
                **file_state(job.entry),
                "segments": len(rows) if whole else 0,
                "caption_digest": job.captions.digest,
            }
            point = models.PointStruct(id=segment.id, vector={MEDIA: row.vector}, payload=payload)
            self._points.append((point, captions))
        for key, value in job.captions.meta.items():
            if key not in self._columns and is_plain_key(key) and (kind := column_kind(value)):
                self._columns[key] = kind
        new = [row.segment.id for row in rows]
        old = sorted(set(job.replaces).difference(new))
        if old:
            self._replacements.append(_Replacement(new, old))
        if len(self._points) >= WRITE:
            self.flush()

    def touch(self, jobs: Sequence[Job]) -> None:
        """Store new times of files whose content and captions are stored already."""
        updates = [(one, file_state(job.entry)) for job in jobs for one in job.replaces]
        for begin in range(0, len(updates), WRITE):
            self._index.store.set_payload(updates[begin : begin + WRITE])

    def remove(self, ids: Sequence[str]) -> None:
        """Remove points by id."""
        if not ids:
            return
        self.mark_changed(ids)
        for begin in range(0, len(ids), WRITE):
            self._index.store.delete(ids[begin : begin + WRITE])

    def flush(self) -> None:
        """Embed the captions of buffered points, write the points, then remove those replaced."""
        if not self._points:
            return
        self._embed_captions()
        begin = time.perf_counter()
        written = {str(point.id) for point, _ in self._points}
        old = sorted({one for r in self._replacements for one in r.old} - written)
        self.mark_changed([*written, *old])
        self._index_columns()
        if old:
            note = [{"new": r.new, "old": sorted(set(r.old) - written)} for r in self._replacements]
            write_atomic(self._note, json.dumps(note).encode())
        self._index.store.upsert([point for point, _ in self._points])
        self._points, self._replacements = [], []
        if old:
            self._index.store.delete(old)
            self._forget_replaced()
        self.write_seconds += time.perf_counter() - begin

    def _index_columns(self) -> None:
        """Index the columns that users filter by: without an index, a filter reads every point."""
        if not self._columns:
            return
        store = self._index.store
        if self._indexed is None:
            self._indexed = store.info().indexed
        left = COLUMNS - sum(map(_is_column, self._indexed))
        missing = [one for one in sorted(self._columns.items()) if one[0] not in self._indexed]
        for key, kind in missing[: max(left, 0)]:
            if kind == "keyword":
                store.create_keyword_index(key)
            else:
                store.create_range_index(key, "float" if kind == "float" else "datetime")
            self._indexed |= {key}

    def mark_changed(self, ids: Iterable[str]) -> None:
        """Record points that are about to change, until `update_identifiers` has followed."""
        index = self._index
        info = index.manifest.identifiers
        if info is not None and not index.changes.pending:
            stored = index.store.count(has_identifier(info.field))
            if stored != info.count:  # others have deleted points, or brought back older ones
                index.changes.forget_ids()
        index.changes.add(ids)

    def _embed_captions(self) -> None:
        if not any(captions for _, captions in self._points):
            return
        begin = time.perf_counter()
        means = caption_means(self._index.caption_encoder(), [c for _, c in self._points])
        self.embed_seconds += time.perf_counter() - begin
        for (point, _), mean in zip(self._points, means, strict=True):
            if mean is not None:
                assert isinstance(point.vector, dict)
                point.vector[self._index.caption_vector] = mean.tolist()


def _is_column(field: str) -> bool:
    ours = field in OUR_INDEXES or _IDENTIFIER_FIELD.fullmatch(field.partition(".")[0])
    return not ours


def column_kind(value: object) -> str | None:
    """Kind of payload index for a column with this value: `keyword`, `float` or `datetime`; None
    where it gets none. Of a list the first value counts."""
    if isinstance(value, list):
        return column_kind(value[0]) if value and not isinstance(value[0], list) else None
    if isinstance(value, bool):
        return None  # two values: an index finds half of the points at most
    if isinstance(value, int | float):
        return "float"
    if not isinstance(value, str) or len(value) > CATEGORY:
        return None
    if not _DAY.match(value):
        return "keyword"
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return "keyword"
    return "datetime"


def identifier_payload(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The identifiers of all versions in a payload, without hubness, which depends on captions."""
    return {
        k: {name: value for name, value in v.items() if name != "hub"}
        for k, v in payload.items()
        if _IDENTIFIER_FIELD.fullmatch(k)
    }
