"""Turns files into raw features: decodes in threads, embeds in the calling thread.

PyAV and Pillow release the interpreter lock while they decode, and torch while it computes, so
threads overlap the two. Decoders wait while the decoded segments take too many bytes, so memory is
bounded for all files. Shape legend: N segments, R raw feature width.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.config import SegmentConfig
from cart_qdrant.errors import CartError, MediaError, VectorError
from cart_qdrant.media.clip import Clip
from cart_qdrant.media.scan import FileEntry, content_hash, has_changed
from cart_qdrant.media.segments import decode, probe
from cart_qdrant.records import Modality, Segment

DECODERS = 2
"""Threads that decode."""
WAITING = 32 << 20
"""Bytes of decoded segments that wait for the embedder, about: 200 images prepared by `lite`, or
six raw video segments."""
BATCH = 32
"""Segments that are embedded together."""
PATIENCE = 8
"""Segments at which an embedder may fail in a way of its own before the first that succeeds."""
UNSETTLED = "it is being written; the next run takes it"


@dataclass(slots=True)
class FileResult:
    """The segments of one file with their features, or the reason why there are none."""

    entry: FileEntry
    hash: str = ""
    segments: list[Segment] = field(default_factory=list)
    features: list[FloatArray] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failure: str | None = None
    unsettled: bool = False
    """Whether the file changed while it was read; `failure` says so."""

    def stacked(self, width: int) -> FloatArray:
        """Features (N, R)."""
        if not self.features:
            return np.empty((0, width), dtype=np.float32)
        return np.stack(self.features)

    @property
    def seconds(self) -> float:
        """End of the last segment of an audio or video file; 0 for an image."""
        return max((segment.end for segment in self.segments), default=0.0)


@runtime_checkable
class Preparing(Protocol):
    """An embedder that can prepare clips, and make them smaller, in the decoding thread."""

    def prepare(self, clip: Clip) -> Clip:
        """A clip that has the same vector; called by several threads at once."""


@dataclass(frozen=True, slots=True)
class _Decoded:
    result: FileResult
    segment: Segment
    clip: Clip

    @property
    def weight(self) -> int:
        """Bytes of the content, plus one."""
        samples = 0 if self.clip.samples is None else self.clip.samples.nbytes
        return 1 + samples + sum(frame.nbytes for frame in self.clip.frames)


@dataclass(frozen=True, slots=True)
class _Done:
    result: FileResult
    weight: int = 1


class _Ready(queue.Queue["_Decoded | _Done"]):
    """A queue that is bounded by the weight of its items, not by their number."""

    def _init(self, maxsize: int) -> None:
        super()._init(maxsize)
        self._weight = 0

    def _qsize(self) -> int:
        return self._weight

    def _put(self, item: _Decoded | _Done) -> None:
        super()._put(item)
        self._weight += item.weight

    def _get(self) -> _Decoded | _Done:
        item: _Decoded | _Done = super()._get()
        self._weight -= item.weight
        return item


def reason_of(error: BaseException) -> str:
    """The error in one line, for the report."""
    if isinstance(error, CartError):
        return str(error)
    return f"unexpected {type(error).__name__}: {error}"


def _raise_if_not_of_a_file(error: Exception) -> None:
    """Pass on our errors about the index, its store or an installation: each file would meet them.

    What other libraries raise, memory that is short included, may be due to the file.
    """
    if isinstance(error, CartError) and not isinstance(error, MediaError | VectorError):
        raise error


def _named(segment: Segment) -> str:
    """A segment in words: `its image`, `its video from 3 to 6 s`."""
    if segment.modality is Modality.IMAGE:
        return "its image"
    return f"its {segment.modality} from {segment.start:g} to {segment.end:g} s"


class Pipeline:
    """Decodes and embeds files.

    Args:
        features: Turns clips into rows (B, R). If it raises for a clip, the clip's file is reported
            and the others go on.
        modalities: Modalities of the embedder; segments of others are skipped with a note.
        config: How files are cut into segments.
        prepare: Is called with each clip in the thread that decoded it, see `Preparing`.

    Attributes:
        embed_seconds: Time spent in `features` so far.
        wait_seconds: Time spent waiting for decoded segments so far.
    """

    def __init__(
        self,
        features: Callable[[Sequence[Clip]], FloatArray],
        *,
        modalities: Sequence[Modality],
        config: SegmentConfig,
        prepare: Callable[[Clip], Clip] | None = None,
    ) -> None:
        self._features = features
        self._modalities = frozenset(modalities)
        self._config = config
        self._prepare = prepare
        self.embed_seconds = 0.0
        self.wait_seconds = 0.0
        self._embedded = False
        self._broken = 0

    def run(self, entries: Sequence[FileEntry]) -> Iterator[FileResult]:
        """Yield each file once, when all of it is embedded, in no fixed order."""
        todo: queue.SimpleQueue[FileEntry] = queue.SimpleQueue()
        for entry in entries:
            todo.put(entry)
        ready = _Ready(WAITING)
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

    def _embed_all(self, ready: _Ready, files: int) -> Iterator[FileResult]:
        batch: list[_Decoded] = []
        ended: list[FileResult] = []
        while files:
            item = self._next(ready)
            if isinstance(item, _Done):
                ended.append(item.result)
            else:
                batch.append(item)
            # A full batch, or nothing more is decoded yet: finished files do not wait.
            if len(batch) >= BATCH or ready.empty():
                self._embed(batch)
                batch = []
                files -= len(ended)
                yield from ended
                ended = []

    def _next(self, ready: _Ready) -> _Decoded | _Done:
        begin = time.perf_counter()
        item = ready.get()
        self.wait_seconds += time.perf_counter() - begin
        return item

    def _embed(self, batch: list[_Decoded]) -> None:
        begin = time.perf_counter()
        rows: list[FloatArray | None]
        try:
            rows = list(self._features([item.clip for item in batch])) if batch else []
        except Exception as error:  # noqa: BLE001 - one file never stops a run
            _raise_if_not_of_a_file(error)
            rows = [self._embed_one(item) for item in batch]
        self.embed_seconds += time.perf_counter() - begin
        for item, row in zip(batch, rows, strict=True):
            if row is None:
                continue
            if not np.isfinite(row).all():
                item.result.failure = (
                    f"the embedder gave no finite vector of {_named(item.segment)}"
                )
                continue
            self._embedded = True
            item.result.segments.append(item.segment)
            item.result.features.append(row)

    def _embed_one(self, item: _Decoded) -> FloatArray | None:
        """The features of one segment; None where there are none, and the file says why.

        An embedder that has failed at everything so far is broken: its error ends the run.
        """
        try:
            row: FloatArray = self._features([item.clip])[0]
        except Exception as error:
            _raise_if_not_of_a_file(error)
            item.result.failure = reason_of(error)
            if not isinstance(error, MediaError) and not self._embedded:
                self._broken += 1
                if self._broken >= PATIENCE:
                    raise
            return None
        self._embedded = True
        return row

    def _decode_all(
        self,
        todo: queue.SimpleQueue[FileEntry],
        ready: _Ready,
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

    def _decode(self, result: FileResult, ready: _Ready, stop: threading.Event) -> None:
        entry = result.entry
        result.hash = content_hash(entry.path)
        pairs = decode(entry.path, entry.rel, self._config, result.notes.append)
        with closing(pairs):  # type: ignore[type-var]
            for segment, clip in pairs:
                if stop.is_set():
                    return
                if segment.modality in self._modalities:
                    if self._prepare is not None:
                        clip = self._prepare(clip)
                    ready.put(_Decoded(result, segment, clip))
                    continue
                note = f"{segment.modality} is not known to the embedder"
                if note not in result.notes:
                    result.notes.append(note)
        result.tags = probe(entry.path, self._config).tags
        if has_changed(entry):
            result.failure, result.unsettled = UNSETTLED, True


def _drain(ready: _Ready) -> None:
    while not ready.empty():
        try:
            ready.get_nowait()
        except queue.Empty:
            return
