"""The first ingest with an embedder that needs statistics of the corpus.

Raw features of a sample are gathered first and kept on disk in parts, so that a killed run does
not embed them twice; then the statistics are fitted and frozen, and the rest streams.
"""

from __future__ import annotations

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


class _Advances(Protocol):
    def advance(self, units: int = 1) -> None: ...


def sample_features(
    library: Library,
    embedder: FittedEmbedder,
    pipeline: Pipeline,
    entries: Sequence[FileEntry],
    reporter: _Advances,
) -> Iterator[FileResult]:
    """Fit and freeze the embedder's statistics on a sample, then yield every file.

    Args:
        entries: All files, in random order: the sample is their head.
    """
    folder = library.folder.work / "features"
    folder.mkdir(parents=True, exist_ok=True)
    kept = _read_parts(folder)
    by_rel = {entry.rel: entry for entry in entries}
    sample: list[FileResult] = []
    for rel, result in kept.items():
        entry = by_rel.get(rel)
        if entry is not None and (entry.size, entry.mtime_ns) == (
            result.entry.size,
            result.entry.mtime_ns,
        ):
            result.entry = entry
            sample.append(result)
            reporter.advance()
    done = {result.entry.rel for result in sample}
    rest = [entry for entry in entries if entry.rel not in done]
    count = sum(len(result.segments) for result in sample)
    part: list[FileResult] = []
    position = 0
    # In slices, so that the stream can be left when the sample is full.
    while position < len(rest) and count < SAMPLE:
        for result in pipeline.run(rest[position : position + PART]):
            sample.append(result)
            part.append(result)
            count += len(result.segments)
            reporter.advance()
        position += PART
        _write_part(folder, part, embedder.raw_dim)
        part = []
    embedder.fit(_by_space(sample, embedder))
    library.freeze_statistics(embedder)
    yield from sample
    sample.clear()
    for result in pipeline.run(rest[position:]):
        yield result
        reporter.advance()


def _by_space(results: Iterable[FileResult], embedder: FittedEmbedder) -> dict[str, FloatArray]:
    rows: dict[str, list[FloatArray]] = defaultdict(list)
    for result in results:
        for segment, row in zip(result.segments, result.features, strict=True):
            rows[embedder.spaces[segment.modality]].append(row)
    return {space: np.stack(found) for space, found in rows.items()}


def _write_part(folder: Path, results: Sequence[FileResult], width: int) -> None:
    """One part: arrays in .npy, the rest in JSON; failures are tried again, so left out."""
    good = [r for r in results if r.segments and r.failure is None]
    if not good:
        return
    number = len(list(folder.glob("*.json")))
    np.save(folder / f"{number:05}.npy", np.concatenate([r.stacked(width) for r in good]))
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
    # The JSON comes last and atomically: a part without it does not count.
    write_atomic(folder / f"{number:05}.json", json.dumps(rows).encode())


def _read_parts(folder: Path) -> dict[str, FileResult]:
    out: dict[str, FileResult] = {}
    for path in sorted(folder.glob("*.json")):
        x_NR = np.load(path.with_suffix(".npy"), allow_pickle=False)
        at = 0
        for row in json.loads(path.read_bytes()):
            entry = FileEntry(Path(), row["rel"], row["size"], row["mtime_ns"])
            segments = [
                Segment(row["rel"], Modality(m), start, end) for m, start, end in row["segments"]
            ]
            features = list(x_NR[at : at + len(segments)])
            at += len(segments)
            out[row["rel"]] = FileResult(
                entry, row["hash"], segments, features, row["tags"], row["notes"]
            )
    return out
