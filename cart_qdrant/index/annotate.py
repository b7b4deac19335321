"""Captions items of an index by a model, and measures the confidence of each caption.

May be killed at any time: points are written as they are done, with the names of the models that
have captioned them, so that the next run continues there.
Shape legend: N items, D vector width.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.captions.models import Captioner, Transcriber
from cart_qdrant.captions.reader import segment_captions
from cart_qdrant.captions.text import make_captions
from cart_qdrant.compute import Compute, compute_of
from cart_qdrant.errors import CaptionError, MediaError, UsageError
from cart_qdrant.index.caption_quality import CaptionConfidence
from cart_qdrant.index.caption_vectors import caption_means
from cart_qdrant.index.consent import media_folder
from cart_qdrant.index.identify import assign_new
from cart_qdrant.index.index import Index
from cart_qdrant.index.points import vector_of
from cart_qdrant.index.writer import MADE_BY, PointWriter, identifier_payload
from cart_qdrant.media.clip import Clip
from cart_qdrant.media.segments import decode
from cart_qdrant.progress import Reporter
from cart_qdrant.records import MADE_SOURCES, Caption, CaptionSource, Failure, Modality
from cart_qdrant.storage.protocol import MEDIA

TOGETHER = 8
"""Images that are captioned together."""
WRITE = 64
"""Points that are written together."""
LOW_CONFIDENCE = 0.5
"""Confidence under which a caption is listed."""
LABELS = "labels"
"""Name of the captioner that takes the texts of the embedder as labels."""
PATIENCE = 3
"""Failures before the first caption after which the run is given up."""
LONGEST_SPEECH = 300.0
"""Seconds of audio that are transcribed at once."""


@dataclass(frozen=True, slots=True)
class LowConfidenceCaption:
    """A caption with a confidence below `LOW_CONFIDENCE`."""

    path: str
    start: float
    text: str
    confidence: float


@dataclass(slots=True)
class CaptionReport:
    """What a captioning run did."""

    captioner: str
    items: int = 0
    """Items that the model was asked for."""
    captions: int = 0
    skipped: int = 0
    """Items that the model was asked for in an earlier run, or that have captions already."""
    failed: list[Failure] = field(default_factory=list)
    low_confidence: list[LowConfidenceCaption] = field(default_factory=list)
    seconds: float = 0.0
    compute: Compute | None = None
    """Where the model computed, and in which number format; None where it did not compute here."""

    def to_json(self) -> dict[str, Any]:
        """The `--json` contract."""
        return {
            "captioner": self.captioner,
            "items": self.items,
            "captions": self.captions,
            "skipped": self.skipped,
            "failed": [failure.to_json() for failure in self.failed],
            "low_confidence": [
                {"path": d.path, "start": d.start, "text": d.text, "confidence": d.confidence}
                for d in self.low_confidence
            ],
            "seconds": round(self.seconds, 2),
            "compute": None if self.compute is None else self.compute.to_json(),
        }


@dataclass(frozen=True, slots=True)
class _Item:
    """A stored point to caption."""

    id: str
    path: str
    modality: Modality
    start: float
    end: float


def caption_index(
    index: Index,
    captioner: Captioner | Transcriber | None,
    reporter: Reporter,
    *,
    every: bool = False,
    limit: int | None = None,
) -> CaptionReport:
    """Caption the items of an index by a model, and store the captions.

    Images and shots of videos are captioned, each by its middle frame. Audio is transcribed to
    captions with times, for the audio items and the video items of the same time. The caller holds
    `index.folder.lock()`.

    Args:
        captioner: The model; None labels each item with a text of the embedder.
        every: Caption also the items that have captions by people.
        limit: Most items to caption, about: of an audio file all windows are transcribed.

    Raises:
        CaptionError: The model fails from the first item on.
        UsageError: The embedder has no texts to label with, or the index is attached.
    """
    index.require_own()
    begin = time.perf_counter()
    run = _Run(index, captioner, reporter, every=every, limit=limit)
    run.go()
    run.report.seconds = time.perf_counter() - begin
    return run.report


class _Run:
    def __init__(
        self,
        index: Index,
        captioner: Captioner | Transcriber | None,
        reporter: Reporter,
        *,
        every: bool,
        limit: int | None,
    ) -> None:
        self.index, self.captioner, self.reporter = index, captioner, reporter
        self.every, self.limit = every, limit
        self.name = LABELS if captioner is None else captioner.name
        self.report = CaptionReport(self.name, compute=compute_of(captioner))
        self.writer = PointWriter(index)
        self.encoder = index.caption_encoder()  # fails before anything is written
        self.confidence = CaptionConfidence(index)
        self.waiting: list[tuple[_Item, list[Caption]]] = []
        self.refused = 0
        """Failures of the model before its first caption."""

    @property
    def done(self) -> bool:
        """Whether the limit of items is reached."""
        return self.limit is not None and self.report.items >= self.limit

    def go(self) -> None:
        self.writer.recover()
        speech = isinstance(self.captioner, Transcriber)
        modalities = {Modality.AUDIO} if speech else {Modality.IMAGE, Modality.VIDEO}
        if self.captioner is None:
            modalities = set(Modality)
        due, others = self._due(modalities, speech=speech)
        count = sum(map(len, due.values()))
        self.reporter.phase("captions", count if self.limit is None else min(count, self.limit))
        try:
            if self.captioner is None:
                self._label([item for items in due.values() for item in items])
            elif speech:
                for path, items in due.items():
                    if not self.done:
                        self._transcribe(path, items, others.get(path, []))
            else:
                self._describe(due)
        finally:
            self._flush()
            if self.writer.changed:
                assign_new(self.index)  # captions change the hubness of an item

    def _due(
        self, modalities: set[Modality], *, speech: bool
    ) -> tuple[dict[str, list[_Item]], dict[str, list[_Item]]]:
        """Items to caption by file, and for speech the video items of these files."""
        due: dict[str, list[_Item]] = defaultdict(list)
        others: dict[str, list[_Item]] = defaultdict(list)
        keys = ["hash", "path", "modality", "start", "end", "captions", MADE_BY]
        for record in self.index.store.scroll(with_payload=keys):
            payload = record.payload or {}
            if "hash" not in payload:
                continue
            item = _Item(
                str(record.id), payload["path"], Modality(payload["modality"]),
                float(payload["start"]), float(payload["end"]),
            )  # fmt: skip
            if item.modality not in modalities:
                if speech and item.modality is Modality.VIDEO:
                    others[item.path].append(item)
                continue
            captions = map(Caption.from_payload, payload.get("captions", ()))
            described = any(not c.is_weak and c.source not in MADE_SOURCES for c in captions)
            if self.name in payload.get(MADE_BY, ()) or (
                described and not self.every and not speech
            ):
                self.report.skipped += 1
            else:
                due[item.path].append(item)
        return due, others

    def _label(self, items: Sequence[_Item]) -> None:
        text_anchors = self.index.text_anchors()
        if text_anchors is None or not len(text_anchors.texts):
            raise UsageError(
                f"The embedder {self.index.manifest.embedder.name} has no texts to label with.",
                "Name a captioning model: --captioner hf:MODEL",
            )
        for begin in range(0, len(items), WRITE):
            block = items[begin : begin + WRITE]
            records = self.index.store.retrieve(
                [item.id for item in block], with_payload=False, with_vectors=[MEDIA]
            )
            vectors = {str(record.id): vector_of(record) for record in records}
            for item in block:
                if self.done:
                    return
                space, x = self.index.space(item.modality), vectors.get(item.id)
                names = (
                    None
                    if x is None
                    else text_anchors.name(np.asarray([x], np.float32), str(space))
                )
                self._put(item, self._made(names or [], CaptionSource.LABEL))

    def _made(
        self,
        texts: Sequence[str],
        source: CaptionSource,
        start: float | None = None,
        end: float | None = None,
    ) -> list[Caption]:
        """Captions of cleaned texts of the model; texts without content make none."""
        return [
            replace(one, by=self.name, start=start, end=end) for one in make_captions(texts, source)
        ]

    def _describe(self, due: Mapping[str, list[_Item]]) -> None:
        assert isinstance(self.captioner, Captioner)
        images = (
            (item, clip) for path, items in due.items() for item, clip in self._decoded(path, items)
        )
        while not self.done:
            left = TOGETHER if self.limit is None else self.limit - self.report.items
            block = list(islice(images, min(TOGETHER, left)))
            if not block:
                return
            frames = [clip.frames[len(clip.frames) // 2] for _, clip in block]
            items = [item for item, _ in block]
            texts: Sequence[str | None]
            try:
                texts = self.captioner.caption(frames)
            except CaptionError:
                texts = [self._one(item, frame) for item, frame in zip(items, frames, strict=True)]
            for item, text in zip(items, texts, strict=True):
                if text is not None:
                    whole = item.modality is Modality.IMAGE
                    times = (None, None) if whole else (item.start, item.end)
                    self._put(item, self._made([text], CaptionSource.GENERATED, *times))

    def _one(self, item: _Item, frame: Any) -> str | None:
        """The caption of one image, after a batch has failed."""
        assert isinstance(self.captioner, Captioner)
        try:
            (text,) = self.captioner.caption([frame])
        except CaptionError as error:
            self._fail(item.path, error)
            return None
        return text

    def _fail(self, path: str, error: CaptionError) -> None:
        """Report a failure: of this file, or of the model if no caption was made yet."""
        self.report.failed.append(Failure(path, error.what))
        if not self.report.items:
            self.refused += 1
            if self.refused >= PATIENCE:
                raise error

    def _transcribe(self, path: str, items: list[_Item], others: list[_Item]) -> None:
        assert isinstance(self.captioner, Transcriber)
        speech: list[Caption] = []
        decoded: list[_Item] = []
        try:
            for begin, samples, rate in _stretches(self._decoded(path, items), decoded):
                for one in self.captioner.transcribe(samples, rate):
                    start, end = round(begin + one.start, 2), round(begin + one.end, 2)
                    speech += self._made([one.text], CaptionSource.SPEECH, start, end)
        except CaptionError as error:
            self._fail(path, error)
            return
        # Video items first: once the audio items are marked, the file is not captioned again.
        for item in others if len(decoded) == len(items) else ():
            self.waiting.append((item, [c for c in speech if c.covers(item.start, item.end)]))
        for item in decoded:
            self._put(item, [c for c in speech if c.covers(item.start, item.end)])

    def _decoded(self, path: str, items: Sequence[_Item]) -> Iterator[tuple[_Item, Clip]]:
        """The items of a file with their decoded content, in time order."""
        due = {item.id: item for item in items}
        modalities = {item.modality for item in items}
        config = self.index.manifest.segments  # as they were cut
        try:
            file = media_folder(self.index.folder, self.index.manifest.id).file(path)
            for segment, clip in decode(file, path, config, wanted=modalities):
                item = due.pop(segment.id, None)
                if item is not None:
                    yield item, clip
        except MediaError as error:
            self.report.failed.append(Failure(path, error.what))
            return
        if due:
            reason = f"{len(due)} of its segments have changed; ingest the file again"
            self.report.failed.append(Failure(path, reason))

    def _put(self, item: _Item, made: list[Caption]) -> None:
        self.report.items += 1
        self.report.captions += len(made)
        self.reporter.advance()
        self.waiting.append((item, made))
        if len(self.waiting) >= WRITE:
            self._flush()

    def _flush(self) -> None:
        """Write the buffered items: caption vectors, then captions and the name of the model."""
        if not self.waiting:
            return
        records = self.index.store.retrieve(
            [item.id for item, _ in self.waiting], with_vectors=[MEDIA]
        )
        payloads = {str(r.id): r.payload or {} for r in records}
        waiting = [(item, made) for item, made in self.waiting if item.id in payloads]
        measured = self.confidence.measure(
            [(item.id, item.modality) for item, _ in waiting],
            [made for _, made in waiting],
            {str(r.id): vector_of(r) for r in records},
        )
        updates: list[tuple[str, dict[str, Any]]] = []
        described: list[tuple[str, list[Caption]]] = []
        for (item, _), made in zip(waiting, measured, strict=True):
            for one in made:
                if one.confidence is not None and one.confidence < LOW_CONFIDENCE:
                    self.report.low_confidence.append(
                        LowConfidenceCaption(
                            item.path, item.start, one.text, round(one.confidence, 3)
                        )
                    )
            payload = payloads[item.id]
            update: dict[str, Any] = {MADE_BY: sorted({*payload.get(MADE_BY, ()), self.name})}
            if made:
                old = map(Caption.from_payload, payload.get("captions", ()))
                merged = segment_captions((*old, *made), item.start, item.end)
                described.append((item.id, merged))
                update["captions"] = [c.to_payload() for c in merged]
                update |= identifier_payload(payload)  # without hubness: it is computed again
            updates.append((item.id, update))
        if described:
            self.writer.mark_changed([one for one, _ in described])
            means = caption_means(self.encoder, [captions for _, captions in described])
            vectors = zip(described, means, strict=True)
            self.index.store.update_vectors(
                self.index.caption_vector,
                [(one, x.tolist()) for (one, _), x in vectors if x is not None],
            )
        self.index.store.set_payload(updates)
        self.waiting = []


def _stretches(
    windows: Iterator[tuple[_Item, Clip]], decoded: list[_Item]
) -> Iterator[tuple[float, FloatArray, int]]:
    """Consecutive windows of audio, joined: start in seconds, samples and rate.

    Args:
        windows: Items with their samples.
        decoded: Gets each item as it comes.
    """
    joined: list[FloatArray] = []
    begin = end = 0.0
    rate = 0
    for item, clip in windows:
        assert clip.samples is not None
        decoded.append(item)
        apart = abs(item.start - end) > 0.01 or item.end - begin > LONGEST_SPEECH
        if joined and apart:
            yield begin, np.concatenate(joined), rate
            joined = []
        if not joined:
            begin = item.start
        joined.append(clip.samples)
        end, rate = item.end, clip.rate
    if joined:
        yield begin, np.concatenate(joined), rate
