"""Files to raw features: decoding in threads, embedding in the caller, bounded memory between.

PyAV and Pillow release the interpreter lock while they decode, and torch while it computes, so
threads overlap the two. Shape legend: N segments, R raw feature width.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cart_qdrant.config import SegmentConfig
from cart_qdrant.errors import CartError, MediaError
from cart_qdrant.index.embedders import Clip
from cart_qdrant.index.media import decode, probe
from cart_qdrant.index.scan import FileEntry, content_hash
from cart_qdrant.records import Modality, Segment

FloatArray = npt.NDArray[np.float32]

DECODERS = 2
"""Threads that decode."""
WAITING = 48
"""Decoded segments that wait for the embedder at most; a video segment may take 5 MB."""
BATCH = 32
"""Segments embedded together."""


@dataclass(slots=True)
class FileResult:
    """What became of one file: its segments with their features, or the reason why not."""

    entry: FileEntry
    hash: str = ""
    segments: list[Segment] = field(default_factory=list)
    features: list[FloatArray] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failure: str | None = None

    def stacked(self, width: int) -> FloatArray:
        """Features (N, R)."""
        if not self.features:
            return np.empty((0, width), dtype=np.float32)
        return np.stack(self.features)


@dataclass(frozen=True, slots=True)
class _Decoded:
    result: FileResult
    segment: Segment
    clip: Clip


@dataclass(frozen=True, slots=True)
class _Done:
    result: FileResult


def reason_of(error: BaseException) -> str:
    """One line for the report of failures."""
    if isinstance(error, CartError):
        return str(error)
    return f"unexpected {type(error).__name__}: {error}"


class Pipeline:
    """Decodes and embeds files.

    Args:
        features: Turns clips into rows (B, R); may raise `MediaError` for a clip.
        modalities: What the embedder knows; other segments are noted and skipped.
        config: How files are cut.

    Attributes:
        embed_seconds: Time spent in `features` so far.
    """

    def __init__(
        self,
        features: Callable[[Sequence[Clip]], FloatArray],
        *,
        modalities: Sequence[Modality],
        config: SegmentConfig,
    ) -> None:
        self._features = features
        self._modalities = frozenset(modalities)
        self._config = config
        self.embed_seconds = 0.0

    def run(self, entries: Sequence[FileEntry]) -> Iterator[FileResult]:
        """Yield each file once, when all of it is embedded; order is not kept."""
        todo: queue.SimpleQueue[FileEntry] = queue.SimpleQueue()
        for entry in entries:
            todo.put(entry)
        ready: queue.Queue[_Decoded | _Done] = queue.Queue(WAITING)
        stop = threading.Event()
        threads = [
            threading.Thread(target=self._decode_all, args=(todo, ready, stop), daemon=True)
            for _ in range(min(DECODERS, len(entries)))
        ]
        for thread in threads:
            thread.start()
        try:
            yield from self._embed_all(ready, len(entries))
        finally:
            stop.set()
            while any(thread.is_alive() for thread in threads):
                _drain(ready)
                threads[0].join(0.05)
                threads = [t for t in threads if t.is_alive()] or threads[:1]

    def _embed_all(self, ready: queue.Queue[_Decoded | _Done], files: int) -> Iterator[FileResult]:
        batch: list[_Decoded] = []
        ended: list[FileResult] = []
        while files:
            item = ready.get()
            if isinstance(item, _Done):
                ended.append(item.result)
            else:
                batch.append(item)
            # A full batch, or nothing more decoded yet: do not let finished files wait.
            if len(batch) >= BATCH or ready.empty():
                self._embed(batch)
                batch = []
                files -= len(ended)
                yield from ended
                ended = []

    def _embed(self, batch: list[_Decoded]) -> None:
        begin = time.perf_counter()
        try:
            rows = list(self._features([item.clip for item in batch])) if batch else []
        except MediaError:
            rows = [self._embed_one(item) for item in batch]
        self.embed_seconds += time.perf_counter() - begin
        for item, row in zip(batch, rows, strict=True):
            if row is not None:
                item.result.segments.append(item.segment)
                item.result.features.append(row)

    def _embed_one(self, item: _Decoded) -> FloatArray | None:
        try:
            row: FloatArray = self._features([item.clip])[0]
        except MediaError as error:
            item.result.failure = reason_of(error)
            return None
        return row

    def _decode_all(
        self,
        todo: queue.SimpleQueue[FileEntry],
        ready: queue.Queue[_Decoded | _Done],
        stop: threading.Event,
    ) -> None:
        while not stop.is_set():
            try:
                entry = todo.get_nowait()
            except queue.Empty:
                return
            result = FileResult(entry)
            try:
                self._decode(result, ready, stop)
            except Exception as error:  # noqa: BLE001 - one file never stops a run
                result.failure = reason_of(error)
            ready.put(_Done(result))

    def _decode(
        self, result: FileResult, ready: queue.Queue[_Decoded | _Done], stop: threading.Event
    ) -> None:
        entry = result.entry
        result.hash = content_hash(entry.path)
        pairs = decode(entry.path, entry.rel, self._config, result.notes.append)
        with closing(pairs):  # type: ignore[type-var]
            for segment, clip in pairs:
                if stop.is_set():
                    return
                if segment.modality in self._modalities:
                    ready.put(_Decoded(result, segment, clip))
                    continue
                note = f"{segment.modality} is not known to the embedder"
                if note not in result.notes:
                    result.notes.append(note)
        result.tags = probe(entry.path, self._config).tags


def _drain(ready: queue.Queue[_Decoded | _Done]) -> None:
    while not ready.empty():
        try:
            ready.get_nowait()
        except queue.Empty:
            return
