"""The first ingest with an embedder that needs statistics of the corpus.

Raw features of a sample are gathered first and kept on disk in parts, so that a killed run does
not embed them twice; then the statistics are fitted and frozen, and the rest streams.
Shape legend: N segments, R raw feature width.
"""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cart_qdrant.index.embedders import FittedEmbedder
from cart_qdrant.index.library import Library
from cart_qdrant.index.pipeline import FileResult, Pipeline
from cart_qdrant.index.scan import FileEntry
from cart_qdrant.persistence import write_atomic
from cart_qdrant.records import Modality, Segment

FloatArray = npt.NDArray[np.float32]

SAMPLE = 12_000
"""Segments in the sample; 60 MB of features."""
PART = 256
"""Files in one part on disk."""
WORK = "features"
"""Folder of the parts, below the index's work folder; to be removed when all is stored."""


class _Advances(Protocol):
    def advance(self, units: int = 1) -> None:
        """Units of work are done."""


def fitted_features(
    library: Library,
    embedder: FittedEmbedder,
    pipeline: Pipeline,
    entries: Sequence[FileEntry],
    reporter: _Advances,
) -> Iterator[FileResult]:
    """Yield every file with its raw features, once the embedder has its statistics.

    Where the index has none yet, a sample is embedded first, and they are fitted and frozen.
    Nothing is frozen when the sample holds no segment.

    Args:
        entries: All files, in random order: the sample is their head.
    """
    folder = library.folder.work / WORK
    ready = _read_parts(folder, entries)
    reporter.advance(len(ready))
    done = {result.entry.rel for result in ready}
    rest = [entry for entry in entries if entry.rel not in done]
    if library.manifest.embedder.statistics is None:
        taken = 0
        for part in _parts(pipeline, rest, SAMPLE - _segments(ready)):
            _write_part(folder, part, embedder.raw_dim)
            ready += part
            taken += len(part)
            reporter.advance(len(part))
        rest = rest[taken:]
        if _segments(ready):
            embedder.fit(_by_space(ready, embedder))
            library.freeze_statistics(embedder)
    while ready:
        yield ready.pop()
    for result in pipeline.run(rest):
        yield result
        reporter.advance()


def _segments(results: Iterable[FileResult]) -> int:
    return sum(len(result.segments) for result in results)


def _parts(
    pipeline: Pipeline, entries: Sequence[FileEntry], segments: int
) -> Iterator[list[FileResult]]:
    """Embed files in parts until there are that many segments."""
    for begin in range(0, len(entries), PART):
        if segments <= 0:
            return
        part = list(pipeline.run(entries[begin : begin + PART]))
        segments -= _segments(part)
        yield part


def _by_space(results: Iterable[FileResult], embedder: FittedEmbedder) -> dict[str, FloatArray]:
    rows: dict[str, list[FloatArray]] = defaultdict(list)
    # In a fixed order: decoding threads finish as they like, and sums depend on the order.
    for result in sorted(results, key=lambda r: r.entry.rel):
        for segment, row in zip(result.segments, result.features, strict=True):
            rows[embedder.spaces[segment.modality]].append(row)
    return {space: np.stack(found) for space, found in rows.items()}


def _write_part(folder: Path, results: Sequence[FileResult], width: int) -> None:
    """One part: arrays in .npy, the rest in JSON; failures are tried again, so left out."""
    good = [r for r in results if r.segments and r.failure is None]
    if not good:
        return
    folder.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.glob("*.json")))
    arrays = io.BytesIO()
    np.save(arrays, np.concatenate([r.stacked(width) for r in good]))
    write_atomic(folder / f"{number:05}.npy", arrays.getvalue())
    rows = [
        {
            "rel": r.entry.rel,
            "size": r.entry.size,
            "mtime_ns": r.entry.mtime_ns,
            "hash": r.hash,
            "tags": r.tags,
            "notes": r.notes,
            "segments": [[str(s.modality), s.start, s.end] for s in r.segments],
        }
        for r in good
    ]
    # The JSON comes last: a part without it does not count.
    write_atomic(folder / f"{number:05}.json", json.dumps(rows).encode())


def _read_parts(folder: Path, entries: Iterable[FileEntry]) -> list[FileResult]:
    """What an earlier run kept of these files, where they are as they were then."""
    by_key = {(entry.rel, entry.size, entry.mtime_ns): entry for entry in entries}
    out: list[FileResult] = []
    for path in sorted(folder.glob("*.json")):
        x_NR = np.load(path.with_suffix(".npy"), allow_pickle=False)
        at = 0
        for row in json.loads(path.read_bytes()):
            features = list(x_NR[at : at + len(row["segments"])])
            at += len(features)
            entry = by_key.pop((row["rel"], row["size"], row["mtime_ns"]), None)
            if entry is None:
                continue
            segments = [
                Segment(entry.rel, Modality(m), start, end) for m, start, end in row["segments"]
            ]
            out.append(
                FileResult(entry, row["hash"], segments, features, row["tags"], row["notes"])
            )
    return out
