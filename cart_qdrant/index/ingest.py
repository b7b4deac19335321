"""Ingestion: turns files into points with identifiers. May be killed and run again at any time.

The points of a file are written together, and each has the number of them (`segments`): the next
run ingests a file again whose points are not all there. Identifiers come last; the next run assigns
them to points that have none.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np

from cart_qdrant.captions.reader import CaptionReader, from_tags
from cart_qdrant.compute import compute_of
from cart_qdrant.embedders.precomputed import PrecomputedEmbedder
from cart_qdrant.embedders.protocol import AnchoredEmbedder, Embedder, FittedEmbedder
from cart_qdrant.errors import MismatchError, UsageError
from cart_qdrant.extras import require
from cart_qdrant.index.consent import remember_media
from cart_qdrant.index.corpus_stats import WORK, fitted_features
from cart_qdrant.index.health import advice
from cart_qdrant.index.identify import remove_stale, summary, update_identifiers
from cart_qdrant.index.index import Index
from cart_qdrant.index.pipeline import UNSETTLED, FileResult, Pipeline, Preparing
from cart_qdrant.index.plan import Job, Plan, StoredFile, make_plan, read_stored
from cart_qdrant.index.points import vector_of
from cart_qdrant.index.report import IngestOptions, IngestReport
from cart_qdrant.index.vector_model import check_model, record_model
from cart_qdrant.index.writer import MADE_BY, PointWriter, Row, identifier_payload
from cart_qdrant.media.scan import Scan, has_changed, scan
from cart_qdrant.media.segments import probe
from cart_qdrant.progress import Reporter, Silent, file_done
from cart_qdrant.records import MADE_SOURCES, Caption, CaptionSource, Failure, Segment
from cart_qdrant.storage.protocol import MEDIA

TOGETHER = 64
"""Segments whose features are projected together, at least."""
SETTLE = 1.0
"""Seconds for which a file must be as it is: one that changed later is looked at again."""


class Ingest:
    """One run over some files and folders into an open index.

    The caller holds `index.folder.lock()`, unless it is a dry run.
    """

    def __init__(
        self, index: Index, options: IngestOptions, reporter: Reporter | None = None
    ) -> None:
        index.require_own()
        self._index = index
        self._options = options
        self._reporter = reporter or Silent()
        self._config = options.segments or index.manifest.segments
        self._report = IngestReport(dry_run=options.dry_run)
        self._embedder: Embedder = index.embedder(self._reporter.say)
        self._writer = PointWriter(index, use_captions=options.use_captions)

    def run(self) -> IngestReport:
        """Update the index from the folders.

        Raises:
            UsageError: No path, or a path that does not exist.
            CaptionError: The caption table cannot be read.
            MissingExtraError: The packages of `media` or `train` are not installed.
            StoreError: The store failed; the points that it has acknowledged are kept.
            MismatchError: The files would be cut otherwise than those that are stored, or the
                vectors are of another model.
        """
        begin = time.perf_counter()
        options, index, report = self._options, self._index, self._report
        if not options.paths:
            raise UsageError("Nothing to ingest: no path was given.", "cartq ingest FOLDER")
        base = index.folder.base
        found = scan(options.paths, base=base, exclude=options.exclude, follow=options.follow)
        reader = CaptionReader(
            base=base, roots=options.paths, explicit=options.captions, follow=options.follow
        )
        if not options.dry_run:
            require("media")
            require("train")  # identifiers are fitted at the end, captions embedded before
            self._writer.recover()
            remember_media(index.folder, index.manifest.id, options.paths, found.entries)
        stored = read_stored(index.store)
        self._check_config(stored)
        if isinstance(self._embedder, PrecomputedEmbedder):
            model = check_model(index, self._embedder, stored, found.entries, self._reporter.say)
            if not options.dry_run:
                record_model(index, model)
        plan = make_plan(
            found,
            stored,
            reader,
            base=base,
            roots=options.paths,
            use_captions=options.use_captions,
            force=options.force,
            verify=options.verify,
            reporter=self._reporter,
        )
        report.failed += [*found.failures, *plan.failures, *reader.failures]
        report.warnings += reader.remarks
        report.warnings += [*found.skipped, *plan.altered]
        report.warnings += [] if options.prune else plan.unwanted
        self._count(plan, found)
        if options.dry_run:
            report.would_ingest = sorted(job.entry.rel for job in plan.fresh)
        else:
            self._execute(plan, stored)
            if options.captions is not None and reader.unused:
                self._reporter.say(
                    f"{reader.unused} rows of {options.captions} name no ingested file"
                )
        report.compute = compute_of(self._embedder)
        report.seconds = time.perf_counter() - begin
        return report

    def _check_config(self, stored: Mapping[str, StoredFile]) -> None:
        """Take over another way of cutting files, which an index without files may have.

        Raises:
            MismatchError: The stored files were cut otherwise.
        """
        index, was = self._index, self._index.manifest.segments
        if self._config == was:
            return
        if stored:
            changed = [
                f"{name} is {getattr(was, name):g}, but was to be {getattr(self._config, name):g}"
                for name in asdict(was)
                if getattr(was, name) != getattr(self._config, name)
            ]
            raise MismatchError(
                f"The files of the index are cut with other lengths: {', '.join(changed)}.",
                "Leave these options out, or ingest into another `--index`.",
            )
        if not self._options.dry_run:
            index.clear_work([WORK])
            index.put(replace(index.manifest, segments=self._config))

    def _count(self, plan: Plan, found: Scan) -> None:
        report = self._report
        report.files = plan.files
        report.ignored = found.ignored
        report.unchanged = plan.unchanged + len(plan.touch)
        report.hashed = plan.hashed
        report.recaptioned = len(plan.recaption)
        report.renamed = len(plan.renamed)
        if not self._options.prune:
            return
        report.held_back = plan.held_back
        if self._options.dry_run:
            report.would_remove = plan.removable
        else:
            report.removed = len(plan.removable)

    def _execute(self, plan: Plan, stored: dict[str, StoredFile]) -> None:
        remove_stale(self._index)
        if plan.touch:
            self._writer.touch(plan.touch)
        for job in plan.recaption:
            plan.fresh += self._rewrite(job, stored)
        for job in plan.copies:
            left = self._rewrite(job, stored)
            plan.fresh += left
            self._report.segments += 0 if left else len(stored[job.source or ""].ids)
        self._writer.flush()
        self._embed(plan.fresh)
        if self._options.prune:
            self._writer.remove([one for rel in plan.removable for one in stored[rel].ids])
        self._report.embed_seconds += self._writer.embed_seconds
        self._report.write_seconds += self._writer.write_seconds
        self._keep_text_anchors(plan.fresh)
        begin = time.perf_counter()
        self._identify(has_points=bool(stored) or self._report.segments > 0)
        self._report.identify_seconds = time.perf_counter() - begin

    def _rewrite(self, job: Job, stored: dict[str, StoredFile]) -> list[Job]:
        """Write a file with vectors that are stored already.

        Returns:
            The file, if these vectors are no longer stored; else nothing.
        """
        assert job.source is not None
        source = stored[job.source]
        records = self._index.store.retrieve(source.ids, with_vectors=[MEDIA])
        rows: list[Row] = []
        tags: list[Caption] = []
        for record in records:
            payload, vector = record.payload or {}, vector_of(record)
            # An earlier job of this run may have stored other content under the path of the source.
            if payload.get("hash") != job.digest or vector is None:
                return [job]
            segment = Segment(
                job.entry.rel, payload["modality"], float(payload["start"]), float(payload["end"])
            )
            # A copy needs an identifier of its own.
            keep = identifier_payload(payload) if job.source == job.entry.rel else {}
            if MADE_BY in payload and self._options.use_captions:
                keep[MADE_BY] = payload[MADE_BY]
            captions = [Caption.from_payload(caption) for caption in payload["captions"]]
            tags += [c for c in captions if c.source is CaptionSource.CONTAINER]
            made = [c for c in captions if c.source in MADE_SOURCES]
            rows.append(Row(segment, vector, keep, made))
        if len(rows) != source.segments:
            return [job]
        self._writer.put(job, rows, job.digest, self._tags(job, tags))
        return []

    def _tags(self, job: Job, stored: Sequence[Caption]) -> Sequence[Caption]:
        """Captions inside the file; the stored ones lack those that other captions replaced."""
        if not self._options.use_captions:
            return ()
        try:
            return from_tags(probe(job.entry.path, self._config).tags)
        except Exception:  # noqa: BLE001 - whatever a damaged header leads a library to
            return stored  # the file was just deleted, or can no longer be read

    def _embed(self, jobs: Sequence[Job]) -> None:
        jobs = self._settled(jobs)
        if not jobs:
            return
        by_rel = {job.entry.rel: job for job in jobs}
        embedder, reporter = self._embedder, self._reporter
        fitted = embedder if isinstance(embedder, FittedEmbedder) else None
        pipeline = Pipeline(
            fitted.features if fitted else embedder.embed_media,
            modalities=list(embedder.spaces),
            config=self._config,
            prepare=embedder.prepare if isinstance(embedder, Preparing) else None,
        )
        entries = [job.entry for job in jobs]
        # Random order gives a fair sample for the statistics, and a fair estimate of the time left.
        random.Random(0).shuffle(entries)
        reporter.phase("ingest", len(entries))
        if fitted is not None:
            results = fitted_features(self._index, fitted, pipeline, entries, reporter)
        else:
            results = _advancing(pipeline.run(entries), reporter)
        # Without a projection, blocks gain nothing, and a kill would lose the files that wait.
        for block in _blocks(results, TOGETHER if fitted else 1):
            vectors = iter(self._vectors(block, fitted))
            for result in block:
                rows = [Row(segment, next(vectors), {}) for segment in result.segments]
                self._take(result, by_rel[result.entry.rel], rows)
        self._writer.flush()
        self._index.clear_work([WORK])
        self._report.embed_seconds += pipeline.embed_seconds
        self._report.wait_seconds += pipeline.wait_seconds

    def _settled(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """Files that are not being written: those that have just changed are looked at again."""
        now = time.time()
        ages = {job.entry.rel: now - job.entry.mtime_ns / 1e9 for job in jobs}
        recent = {rel: age for rel, age in ages.items() if 0 <= age < SETTLE}
        if not recent:
            return jobs
        time.sleep(SETTLE - min(recent.values()))
        busy = {j.entry.rel for j in jobs if j.entry.rel in recent and has_changed(j.entry)}
        self._report.warnings += [Failure(rel, UNSETTLED) for rel in sorted(busy)]
        return [job for job in jobs if job.entry.rel not in busy]

    def _vectors(
        self, results: Sequence[FileResult], fitted: FittedEmbedder | None
    ) -> list[list[float]]:
        """Unit vectors of all segments in order; features of a space are projected together."""
        features = [row for result in results for row in result.features]
        if not features:
            return []
        x_ND = np.stack(features)
        if fitted is not None:
            raw = x_ND
            x_ND = np.empty((len(raw), self._embedder.dim), dtype=np.float32)
            spaces = np.asarray([fitted.spaces[s.modality] for r in results for s in r.segments])
            for space in np.unique(spaces):
                x_ND[spaces == space] = fitted.project(raw[spaces == space], str(space))
        rows: list[list[float]] = x_ND.tolist()
        return rows

    def _take(self, result: FileResult, job: Job, rows: Sequence[Row]) -> None:
        rel, report = result.entry.rel, self._report
        if result.unsettled:  # what is stored of it stays
            report.warnings.append(Failure(rel, UNSETTLED))
            return
        good = [row for row in rows if any(row.vector)]
        if len(good) < len(rows) and result.failure is None:
            result.failure = f"the embedder gave zeros for {len(rows) - len(good)} of its segments"
        rows = good
        if not rows:
            # Points of the file that are stored stay: it may be damaged for a while only.
            reason = result.failure or "; ".join(result.notes) or "nothing in it can be embedded"
            report.failed.append(Failure(rel, reason))
            return
        report.warnings += [Failure(rel, note) for note in result.notes]
        if result.failure:
            report.failed.append(Failure(rel, f"partly stored: {result.failure}"))
        whole = result.failure is None
        self._writer.put(job, rows, result.hash, from_tags(result.tags), whole=whole)
        report.segments += len(rows)
        report.media_seconds += result.seconds

    def _keep_text_anchors(self, fresh: Sequence[Job]) -> None:
        """Keep the texts of the embedder, by which queries reach media vectors before training."""
        index, embedder = self._index, self._embedder
        if not isinstance(embedder, AnchoredEmbedder):
            return
        info = index.manifest.embedder
        if isinstance(embedder, FittedEmbedder):
            # Its text vectors depend on the statistics: they are kept once these are frozen.
            if info.statistics is not None and info.text_anchors is None:
                index.keep_text_anchors(embedder.text_anchors())
        elif info.text_anchors is None or fresh:
            text_anchors = embedder.text_anchors()
            if (
                info.text_anchors is None or text_anchors.texts
            ):  # a vectors file without texts does not remove the texts of an earlier one
                index.keep_text_anchors(text_anchors)

    def _identify(self, *, has_points: bool) -> None:
        """Update identifiers and prefix tree, then flush the store, if points have changed.

        Args:
            has_points: Whether the index has points, or had some before this run.
        """
        index = self._index
        info = index.manifest.identifiers
        if self._writer.changed or (info is None and has_points):
            self._reporter.phase("identifiers", None)
            without = update_identifiers(index)
            for line in advice(index, without):
                self._reporter.say(line)
        info = index.manifest.identifiers
        if info is not None:
            self._report.identifiers = summary(info)


def _blocks(results: Iterable[FileResult], segments: int) -> Iterator[list[FileResult]]:
    """Consecutive files in blocks of at least `segments` segments."""
    block: list[FileResult] = []
    count = 0
    for result in results:
        block.append(result)
        count += len(result.segments)
        if count >= segments:
            yield block
            block, count = [], 0
    if block:
        yield block


def _advancing(results: Iterable[FileResult], reporter: Reporter) -> Iterator[FileResult]:
    for result in results:
        yield result
        file_done(reporter, result.seconds)
