"""The first ingestion with an embedder that needs statistics of the corpus.

Raw features of a sample are computed first and kept on disk in parts: a killed run does not compute
them twice, and they are not held in memory. Then the statistics are fitted and frozen, the sample
is read again, and the remaining files follow.
Shape legend: N segments, R raw feature width.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TypeAlias

import numpy as np

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.embedders.protocol import FittedEmbedder
from cart_qdrant.files import write_atomic
from cart_qdrant.index.index import Index
from cart_qdrant.index.pipeline import FileResult, Pipeline
from cart_qdrant.media.scan import FileEntry
from cart_qdrant.progress import Reporter, file_done
from cart_qdrant.records import Modality, Segment

SAMPLE = 12_000
"""Segments in the sample; 70 MB of features."""
MOST = 2 * SAMPLE
"""Most segments of one space in the statistics; long files may give the sample more."""
PART = 256
"""Files that are embedded between two checks of the sample's size."""
ROWS = 2_048
"""Segments from which a part is written before it has `PART` files."""
WORK = "features"
"""Folder of the parts in the work folder; to be removed when all points are stored."""

_Key: TypeAlias = tuple[str, int, int, int]


def fitted_features(
    index: Index,
    embedder: FittedEmbedder,
    pipeline: Pipeline,
    entries: Sequence[FileEntry],
    reporter: Reporter,
) -> Iterator[FileResult]:
    """Yield every file with its raw features, after the embedder has got its statistics.

    Where the index has no statistics yet, they are fitted on a sample and frozen; not if the sample
    has no segments.

    Args:
        index: Open index; its lock is held.
        embedder: Embedder that needs statistics.
        pipeline: Decodes files and computes raw features.
        entries: All files in random order: the first ones are the sample.
        reporter: Is called for the sample twice: when it is embedded, and when it is yielded.
    """
    sample = _Sample(index.folder.work / WORK, entries, embedder.raw_dim)
    rest = [entry for entry in entries if entry.rel not in sample.files]
    first = index.manifest.embedder.statistics is None
    if first:
        reporter.phase("embed", len(entries))
        reporter.advance(len(sample.files))
        rest = sample.gather(pipeline, rest, reporter)
        if sample.segments:
            embedder.fit(_by_space(sample.results, embedder))
            index.freeze_statistics(embedder)
        reporter.phase("store", len(sample.files))
    for result in sample.results():
        yield result
        reporter.advance()
    if not rest:
        return
    if first:
        reporter.phase("ingest", len(rest))
    for result in pipeline.run(rest):
        yield result
        file_done(reporter, result.seconds)


class _Sample:
    """The files of the sample: those whose features are on disk and that have not changed since,
    and those that failed.

    Attributes:
        files: Their paths.
        segments: Number of their segments.
    """

    def __init__(self, folder: Path, entries: Iterable[FileEntry], width: int) -> None:
        self._folder = folder
        self._width = width
        self._entries = {_key(entry): entry for entry in entries}
        self._failed: list[FileResult] = []  # not on disk: the next run tries them again
        self.files: set[str] = set()
        self.segments = 0
        self._count(self.results())

    def _count(self, results: Iterable[FileResult]) -> None:
        for result in results:
            self.files.add(result.entry.rel)
            self.segments += len(result.segments)

    def results(self) -> Iterator[FileResult]:
        """Every file with its features; one part at a time is in memory."""
        left = dict(self._entries)
        parts = (_read_part(path, left) for path in sorted(self._folder.glob("*.json")))
        yield from chain(chain.from_iterable(parts), self._failed)

    def gather(
        self, pipeline: Pipeline, entries: Sequence[FileEntry], reporter: Reporter
    ) -> list[FileEntry]:
        """Embed files until there are `SAMPLE` segments.

        Returns:
            The remaining files.
        """
        for begin in range(0, len(entries), PART):
            if self.segments >= SAMPLE:
                return list(entries[begin:])
            part: list[FileResult] = []
            rows = 0
            for result in pipeline.run(entries[begin : begin + PART]):
                part.append(result)
                rows += len(result.segments)
                if rows >= ROWS:
                    self._keep(part)
                    part, rows = [], 0
                file_done(reporter, result.seconds)
            self._keep(part)
        return []

    def _keep(self, results: Sequence[FileResult]) -> None:
        self._count(results)
        good = [r for r in results if r.segments and r.failure is None]
        self._failed += [r for r in results if not r.segments or r.failure is not None]
        if good:
            _write_part(self._folder, good, self._width)


def _key(entry: FileEntry) -> _Key:
    """What a file is known by while the sample waits: it changes when the content may have."""
    return entry.rel, entry.size, entry.mtime_ns, entry.ctime_ns


def _by_space(
    results: Callable[[], Iterable[FileResult]], embedder: FittedEmbedder
) -> dict[str, FloatArray]:
    """Features (N, R) of each space. The results are read twice, to hold the features once."""
    names: dict[str, list[str]] = {}
    for space, rel, _ in _rows(results(), embedder):
        names.setdefault(space, []).append(rel)
    place: dict[str, Iterator[int]] = {}
    x: dict[str, FloatArray] = {}
    for space, rels in names.items():
        # In a fixed order: sums depend on it, and the decoding threads finish in any order.
        order = sorted(range(len(rels)), key=rels.__getitem__)
        step = -(-len(rels) // MOST)
        to = np.full(len(rels), -1)
        to[order[::step]] = np.arange(len(order[::step]))
        place[space] = iter(to.tolist())
        x[space] = np.empty((len(order[::step]), embedder.raw_dim), dtype=np.float32)
    for space, _, row in _rows(results(), embedder):
        at = next(place[space])
        if at >= 0:
            x[space][at] = row
    return x


def _rows(
    results: Iterable[FileResult], embedder: FittedEmbedder
) -> Iterator[tuple[str, str, FloatArray]]:
    """Space, path and features (R,) of each segment."""
    for result in results:
        for segment, row in zip(result.segments, result.features, strict=True):
            yield embedder.spaces[segment.modality], result.entry.rel, row


def _write_part(folder: Path, results: Sequence[FileResult], width: int) -> None:
    """Write one part: features in .npy, the rest in JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.glob("*.json")))
    arrays = io.BytesIO()
    np.save(arrays, np.concatenate([r.stacked(width) for r in results]))
    write_atomic(folder / f"{number:05}.npy", arrays.getvalue())
    rows = [
        {
            "key": _key(r.entry),
            "hash": r.hash,
            "tags": r.tags,
            "notes": r.notes,
            "segments": [[str(s.modality), s.start, s.end] for s in r.segments],
        }
        for r in results
    ]
    # The JSON is written last: a part without it is ignored.
    write_atomic(folder / f"{number:05}.json", json.dumps(rows).encode())


def _read_part(path: Path, left: dict[_Key, FileEntry]) -> Iterator[FileResult]:
    """Files of a part that are in `left`; they are removed from it."""
    x_NR = np.load(path.with_suffix(".npy"), allow_pickle=False)
    at = 0
    for row in json.loads(path.read_bytes()):
        features = list(x_NR[at : at + len(row["segments"])])
        at += len(features)
        entry = left.pop(tuple(row["key"]), None)
        if entry is None:
            continue
        segments = [
            Segment(entry.rel, Modality(m), start, end) for m, start, end in row["segments"]
        ]
        yield FileResult(entry, row["hash"], segments, features, row["tags"], row["notes"])
