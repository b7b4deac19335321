"""Ingestion: files to points with identifiers. Safe to kill and to run again at any time.

A file's points are written together, each saying how many there are (`segments`), so a file is
known to be whole or is done again. Identifiers come last; points without one are found and
given theirs by the next run.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from qdrant_client import models

from cart_qdrant.config import SegmentConfig
from cart_qdrant.errors import UsageError
from cart_qdrant.index.captions import (
    CaptionReader,
    FileCaptions,
    from_tags,
    merge_captions,
    segment_captions,
)
from cart_qdrant.index.embedders import Embedder, FittedEmbedder
from cart_qdrant.index.identify import assign_new, remove_stale, renew, vector_of
from cart_qdrant.index.library import Library
from cart_qdrant.index.media import MEDIA_EXTENSIONS, sniff
from cart_qdrant.index.pipeline import FileResult, Pipeline
from cart_qdrant.index.scan import FileEntry, Scan, content_hash, scan
from cart_qdrant.index.store import CAPTION, MEDIA
from cart_qdrant.index.warmup import sample_features
from cart_qdrant.records import Caption, CaptionSource, Failure, Segment

FloatArray = npt.NDArray[np.float32]

WRITE = 512
"""Points written together."""
KEYS = ["path", "size", "mtime", "hash", "segments", "caption_digest"]


class Reporter(Protocol):
    """Is told how a run goes."""

    def phase(self, name: str, total: int | None) -> None:
        """A step begins; `total` units of it are due if that is known."""

    def advance(self, units: int = 1) -> None:
        """Units of the step are done."""

    def say(self, line: str) -> None:
        """A remark for the user."""


class Silent:
    """A reporter that shows nothing."""

    def phase(self, name: str, total: int | None) -> None:
        """Nothing is shown."""

    def advance(self, units: int = 1) -> None:
        """Nothing is shown."""

    def say(self, line: str) -> None:
        """Nothing is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestOptions:
    """What to ingest and how."""

    paths: Sequence[Path]
    captions: Path | None = None
    """A caption table given by name."""
    use_captions: bool = True
    """False leaves captions of every kind unread; other columns are still kept."""
    exclude: Sequence[str] = ()
    prune: bool = False
    """Remove points of files that are gone from under `paths`."""
    dry_run: bool = False
    segments: SegmentConfig = field(default_factory=SegmentConfig)


@dataclass(slots=True)
class IngestReport:
    """What a run did; `to_json` is the `--json` contract."""

    files: int = 0
    segments: int = 0
    unchanged: int = 0
    removed: int = 0
    renamed: int = 0
    recaptioned: int = 0
    would_ingest: list[str] = field(default_factory=list)
    would_remove: list[str] = field(default_factory=list)
    dry_run: bool = False
    failed: list[Failure] = field(default_factory=list)
    warnings: list[Failure] = field(default_factory=list)
    identifiers: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    embed_seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """One object: the contract's keys, and what else is known."""

        def rows(failures: Iterable[Failure]) -> list[dict[str, str]]:
            return [{"path": f.path, "reason": f.reason} for f in failures]

        out: dict[str, Any] = {
            "files": self.files,
            "segments": self.segments,
            "unchanged": self.unchanged,
            "removed": self.removed,
            "renamed": self.renamed,
            "recaptioned": self.recaptioned,
            "failed": rows(self.failed),
            "warnings": rows(self.warnings),
            "identifiers": self.identifiers,
            "seconds": round(self.seconds, 3),
            "embed_seconds": round(self.embed_seconds, 3),
        }
        if self.dry_run:
            out |= {"would_ingest": self.would_ingest, "would_remove": self.would_remove}
        return out


@dataclass(slots=True)
class _Stored:
    """What the store knows about one file."""

    size: int
    mtime: float
    hash: str
    segments: int
    digest: str
    ids: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        return len(self.ids) == self.segments


@dataclass(frozen=True, slots=True)
class _Job:
    entry: FileEntry
    captions: FileCaptions


class Ingest:
    """One run over some folders into an open index. The caller holds `library.folder.lock()`."""

    def __init__(
        self, library: Library, options: IngestOptions, reporter: Reporter | None = None
    ) -> None:
        self._library = library
        self._options = options
        self._reporter = reporter or Silent()
        self._report = IngestReport(dry_run=options.dry_run)
        self._embedder: Embedder = library.embedder(self._reporter.say)
        self._buffer: list[tuple[models.PointStruct, list[Caption]]] = []
        self._obsolete: list[str] = []
        self._touched = False

    def run(self) -> IngestReport:
        """Bring the index in step with the folders.

        Raises:
            UsageError: No path, or a path that does not exist.
            CaptionError: The caption table cannot be read.
            StoreError: The store failed; what was acknowledged before is kept.
        """
        begin = time.perf_counter()
        options, library = self._options, self._library
        if not options.paths:
            raise UsageError("Nothing to ingest: no path was given.", "cartq ingest FOLDER")
        found = scan(options.paths, base=library.folder.base, exclude=options.exclude)
        self._report.failed += found.failures
        reader = CaptionReader(
            base=library.folder.base, roots=options.paths, explicit=options.captions
        )
        stored = self._read_stored()
        jobs = self._classify(found, reader, stored)
        gone = self._gone(found, stored) if options.prune else []
        if options.dry_run:
            self._report.would_ingest = [job.entry.rel for job in jobs]
            self._report.would_remove = gone
        else:
            remove_stale(library)
            jobs = self._reuse(jobs, stored, found)
            self._embed(jobs, stored)
            self._remove(gone, stored)
            self._finish()
        self._report.failed += reader.failures
        if options.captions is not None and reader.unused and not options.dry_run:
            self._reporter.say(f"{reader.unused} rows of {options.captions} fit no file")
        self._report.seconds = time.perf_counter() - begin
        return self._report

    def _read_stored(self) -> dict[str, _Stored]:
        out: dict[str, _Stored] = {}
        for record in self._library.store.scroll(with_payload=KEYS):
            data = record.payload or {}
            if "path" not in data or "hash" not in data:
                continue  # a foreign point
            one = out.setdefault(
                data["path"],
                _Stored(
                    size=data["size"],
                    mtime=data["mtime"],
                    hash=data["hash"],
                    segments=data["segments"],
                    digest=data["caption_digest"],
                ),
            )
            if one.hash != data["hash"]:
                one.segments = -1  # killed between new and old points: do the file again
            one.ids.append(str(record.id))
        return out

    def _captions(self, reader: CaptionReader, entry: FileEntry) -> FileCaptions:
        found = reader.read(entry.path, entry.rel)
        if self._options.use_captions:
            return found
        return FileCaptions((), found.meta, f"none {found.digest}"[:32])

    def _classify(
        self, found: Scan, reader: CaptionReader, stored: dict[str, _Stored]
    ) -> list[_Job]:
        """Skip what is unchanged without opening it, and what is no media."""
        jobs: list[_Job] = []
        captions_only: list[_Job] = []
        for entry in found.entries:
            if reader.is_sidecar(entry.path):
                continue
            known = stored.get(entry.rel)
            if known is None and not self._is_media(entry):
                continue
            job = _Job(entry, self._captions(reader, entry))
            self._report.files += 1
            same_file = (
                known is not None
                and known.whole
                and (known.size, known.mtime) == (entry.size, entry.mtime_ns / 1e9)
            )
            if known is None or not same_file:
                jobs.append(job)
            elif known.digest != job.captions.digest:
                captions_only.append(job)
            else:
                self._report.unchanged += 1
        if not self._options.dry_run:
            self._recaption(captions_only, stored)
        return jobs

    def _is_media(self, entry: FileEntry) -> bool:
        """Whether to try it: media by content, or by a name that claims so (then it is reported
        when it is not)."""
        if entry.path.suffix.lower() in MEDIA_EXTENSIONS:
            return True
        try:
            return sniff(entry.path) is not None
        except OSError as error:
            self._report.failed.append(Failure(entry.rel, error.strerror or str(error)))
            return False

    def _gone(self, found: Scan, stored: dict[str, _Stored]) -> list[str]:
        """Stored paths under the given folders that are no longer there."""
        base = self._library.folder.base
        here = {entry.rel for entry in found.entries} | {f.path for f in found.failures}
        roots = [Path(p).absolute() for p in self._options.paths]
        out = []
        for rel in stored:
            path = (base / rel).absolute()
            under = any(path == root or root in path.parents for root in _normal(roots))
            if rel not in here and under and not path.exists():
                out.append(rel)
        return sorted(out)

    def _remove(self, gone: Sequence[str], stored: dict[str, _Stored]) -> None:
        ids = [one for rel in gone for one in stored[rel].ids]
        for begin in range(0, len(ids), WRITE):
            self._library.store.delete(ids[begin : begin + WRITE])
        self._report.removed = len(gone)
        self._touched |= bool(ids)

    def _recaption(self, jobs: Sequence[_Job], stored: dict[str, _Stored]) -> None:
        """Media unchanged, captions edited: keep the vectors, write the rest anew."""
        for job in jobs:
            old = self._library.store.retrieve(
                stored[job.entry.rel].ids, with_payload=True, with_vectors=[MEDIA]
            )
            for record in old:
                self._rewrite(record, job, record_hash=None)
            self._report.recaptioned += 1
        self._flush_buffer()

    def _reuse(self, jobs: Sequence[_Job], stored: dict[str, _Stored], found: Scan) -> list[_Job]:
        """Files whose content is stored already (touched, renamed, copied) keep its vectors."""
        by_hash: dict[str, str] = {}
        sizes: set[int] = set()
        for rel, one in stored.items():
            if one.whole:
                by_hash.setdefault(one.hash, rel)
                sizes.add(one.size)
        here = {entry.rel for entry in found.entries}
        left: list[_Job] = []
        for job in jobs:
            entry = job.entry
            if entry.size not in sizes or entry.size == 0:
                left.append(job)
                continue
            try:
                digest = content_hash(entry.path)
            except OSError:
                left.append(job)  # reported by the decoder
                continue
            source = by_hash.get(digest)
            if source is None:
                left.append(job)
                continue
            old = self._library.store.retrieve(
                stored[source].ids, with_payload=True, with_vectors=[MEDIA]
            )
            for record in old:
                self._rewrite(record, job, record_hash=digest)
            if source == entry.rel:
                self._report.unchanged += 1
            elif source not in here and not (self._library.folder.base / source).exists():
                self._obsolete += stored[source].ids
                self._report.renamed += 1
            self._report.segments += len(old) if source != entry.rel else 0
            if entry.rel in stored and source != entry.rel:
                self._obsolete += stored[entry.rel].ids
        self._flush_buffer()
        return left

    def _rewrite(self, record: models.Record, job: _Job, record_hash: str | None) -> None:
        """Write a stored point under a job's path, captions and times."""
        payload = dict(record.payload or {})
        segment = Segment(
            job.entry.rel, payload["modality"], float(payload["start"]), float(payload["end"])
        )
        tags = [
            caption
            for caption in map(Caption.from_payload, payload["captions"])
            if caption.source is CaptionSource.CONTAINER
        ]
        keep = {k: v for k, v in payload.items() if k.startswith("cart")}
        if payload["path"] != job.entry.rel:
            keep = {}  # a copy needs an identifier of its own
        vector = vector_of(record)
        assert vector is not None
        self._add(
            job, segment, vector, record_hash or payload["hash"], payload["segments"], tags, keep
        )

    def _add(
        self,
        job: _Job,
        segment: Segment,
        vector: list[float],
        digest: str,
        count: int,
        tags: Sequence[Caption],
        keep: dict[str, Any],
    ) -> None:
        extra = tags if self._options.use_captions else ()
        captions = segment_captions(
            merge_captions((*job.captions.captions, *extra)), segment.start, segment.end
        )
        payload = {
            **job.captions.meta,
            **keep,
            "path": segment.path,
            "modality": str(segment.modality),
            "start": segment.start,
            "end": segment.end,
            "captions": [c.to_payload() for c in captions],
            "hash": digest,
            "size": job.entry.size,
            "mtime": job.entry.mtime_ns / 1e9,
            "segments": count,
            "caption_digest": job.captions.digest,
        }
        point = models.PointStruct(id=segment.id, vector={MEDIA: vector}, payload=payload)
        self._buffer.append((point, captions))
        if len(self._buffer) >= WRITE:
            self._flush_buffer()

    def _flush_buffer(self) -> None:
        """Embed the captions of waiting points, write them, then remove what they replace."""
        if self._buffer:
            self._touched = True
            self._embed_captions()
            self._library.store.upsert([point for point, _ in self._buffer])
            written = {str(point.id) for point, _ in self._buffer}
            self._buffer = []
            self._obsolete = [one for one in self._obsolete if one not in written]
        if self._obsolete:
            self._library.store.delete(self._obsolete)
            self._obsolete = []

    def _embed_captions(self) -> None:
        """Mean vector of each point's captions; weak ones count only where there is no other."""
        texts: list[str] = []
        owner: list[int] = []
        for n, (_, captions) in enumerate(self._buffer):
            strong = [c for c in captions if not c.is_weak] or captions
            texts += [c.text for c in strong]
            owner += [n] * len(strong)
        if not texts:
            return
        begin = time.perf_counter()
        x_BD = self._library.text_encoder().embed(texts)
        self._report.embed_seconds += time.perf_counter() - begin
        means = np.zeros((len(self._buffer), x_BD.shape[1]), dtype=np.float32)
        np.add.at(means, owner, x_BD)
        for n in set(owner):
            mean = means[n] / max(float(np.linalg.norm(means[n])), 1e-12)
            vectors = self._buffer[n][0].vector
            assert isinstance(vectors, dict)
            vectors[CAPTION] = mean.tolist()

    def _embed(self, jobs: Sequence[_Job], stored: dict[str, _Stored]) -> None:
        if not jobs:
            return
        by_entry = {job.entry.rel: job for job in jobs}
        embedder = self._embedder
        fitted = embedder if isinstance(embedder, FittedEmbedder) else None
        pipeline = Pipeline(
            fitted.features if fitted else embedder.embed_media,
            modalities=list(embedder.spaces),
            config=self._options.segments,
        )
        entries = [job.entry for job in jobs]
        self._reporter.phase("ingest", len(entries))
        results: Iterator[FileResult]
        if fitted is not None and self._library.manifest.embedder.statistics is None:
            random.Random(0).shuffle(entries)  # statistics of a fair sample
            results = sample_features(self._library, fitted, pipeline, entries, self._reporter)
        else:
            results = _advancing(pipeline.run(entries), self._reporter)
        for result in results:
            self._take(result, by_entry[result.entry.rel], stored, fitted)
        self._flush_buffer()
        self._library.clear_work(["features"])
        self._report.embed_seconds += pipeline.embed_seconds

    def _take(
        self,
        result: FileResult,
        job: _Job,
        stored: dict[str, _Stored],
        fitted: FittedEmbedder | None,
    ) -> None:
        rel = result.entry.rel
        self._report.warnings += [Failure(rel, note) for note in result.notes]
        if not result.segments:
            reason = result.failure or "; ".join(result.notes) or "nothing in it can be embedded"
            self._report.failed.append(Failure(rel, reason))
            return
        if result.failure:
            self._report.failed.append(Failure(rel, f"partly stored: {result.failure}"))
        x_NR = np.stack(result.features)
        if fitted is not None:
            x_ND = np.empty((len(x_NR), self._embedder.dim), dtype=np.float32)
            spaces = np.asarray([fitted.spaces[s.modality] for s in result.segments])
            for space in np.unique(spaces):
                x_ND[spaces == space] = fitted.project(x_NR[spaces == space], str(space))
        else:
            x_ND = x_NR
        tags = from_tags(result.tags)
        count = len(result.segments)
        ids = {segment.id for segment in result.segments}
        if rel in stored:
            self._obsolete += [one for one in stored[rel].ids if one not in ids]
        for segment, vector in zip(result.segments, x_ND.tolist(), strict=True):
            self._add(job, segment, vector, result.hash, count, tags, {})
        self._report.segments += count

    def _finish(self) -> None:
        """Identifiers for new points, then a durable store."""
        library = self._library
        library.store.flush()
        total = library.store.count()
        if total == 0:
            return
        self._reporter.phase("identifiers", None)
        info = library.manifest.identifiers
        if info is not None and library.manifest.generator is None and _outgrown(info.meta, total):
            renew(library)  # nothing depends on the old ones yet
        else:
            assign_new(library)
        info = library.manifest.identifiers
        assert info is not None
        fitted_on = sum(one["fitted_on"] for one in info.meta.values())
        self._report.identifiers = {
            "U": round(info.U, 4),
            "levels": info.levels,
            "count": info.count,
            "fitted_on": fitted_on,
        }
        if library.manifest.generator is not None and _outgrown(info.meta, total):
            self._reporter.say(
                f"identifiers were fitted on {fitted_on} items, now there are {total}: "
                "renew them with `cartq train`"
            )


def _outgrown(meta: dict[str, Any], total: int) -> bool:
    return total > 2 * int(sum(one["fitted_on"] for one in meta.values()))


def _normal(roots: Sequence[Path]) -> list[Path]:
    return [Path(str(root.resolve())) for root in roots] + list(roots)


def _advancing(results: Iterable[FileResult], reporter: Reporter) -> Iterator[FileResult]:
    for result in results:
        yield result
        reporter.advance()


__all__ = ["Ingest", "IngestOptions", "IngestReport", "Reporter", "Silent"]
