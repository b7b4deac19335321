"""Captions by models for items of an index, and how well each fits its item.

Safe to kill: points are written as they are done, and carry the names of the models that have
looked at them, so that the next run goes on from there.
Shape legend: N items, D vector width.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
from qdrant_client import models

from cart_qdrant.config import SegmentConfig
from cart_qdrant.errors import CaptionError, CartError, MediaError, UsageError
from cart_qdrant.index.captioner import Captioner, Spoken, Transcriber
from cart_qdrant.index.captions import segment_captions
from cart_qdrant.index.embedders import Clip
from cart_qdrant.index.identify import assign_new, vector_of
from cart_qdrant.index.ingest import Reporter
from cart_qdrant.index.library import Library
from cart_qdrant.index.media import decode
from cart_qdrant.index.store import CAPTION, MEDIA
from cart_qdrant.index.writer import MADE_BY, PointWriter, caption_means, identifier_payload
from cart_qdrant.learn.model import Model
from cart_qdrant.records import Caption, CaptionSource, Failure, Modality

FloatArray = npt.NDArray[np.float32]

TOGETHER = 8
"""Pictures captioned together."""
WRITE = 64
"""Points written together."""
COMPARED = 200
"""Other items that a caption is compared with."""
DOUBTFUL = 0.5
"""Confidence under which a caption is listed."""
LABELS = "labels"
"""Name of the captioner that knows the embedder's texts alone."""
LONGEST_SPEECH = 300.0
"""Seconds of sound transcribed at once."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """A caption that fits its item worse than most others."""

    path: str
    start: float
    text: str
    confidence: float


@dataclass(slots=True)
class CaptionReport:
    """What a run did."""

    captioner: str
    items: int = 0
    """Items that were looked at."""
    captions: int = 0
    skipped: int = 0
    """Items that had been looked at before, or have captions already."""
    failed: list[Failure] = field(default_factory=list)
    doubtful: list[Doubt] = field(default_factory=list)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The `--json` contract."""
        return {
            "captioner": self.captioner,
            "items": self.items,
            "captions": self.captions,
            "skipped": self.skipped,
            "failed": [{"path": f.path, "reason": f.reason} for f in self.failed],
            "doubtful": [
                {"path": d.path, "start": d.start, "text": d.text, "confidence": d.confidence}
                for d in self.doubtful
            ],
            "seconds": round(self.seconds, 2),
        }


@dataclass(frozen=True, slots=True)
class _Item:
    """A stored point."""

    id: str
    path: str
    modality: Modality
    start: float
    end: float
    captions: tuple[Caption, ...]
    payload: Mapping[str, Any]
    vector: tuple[float, ...]

    @classmethod
    def of(cls, record: models.Record) -> _Item:
        payload = record.payload or {}
        captions = tuple(Caption.from_payload(c) for c in payload.get("captions", []))
        return cls(
            str(record.id), payload["path"], Modality(payload["modality"]),
            float(payload["start"]), float(payload["end"]), captions, payload,
            tuple(vector_of(record) or ()),
        )  # fmt: skip


def caption_index(
    library: Library,
    captioner: Captioner | Transcriber | None,
    reporter: Reporter,
    *,
    every: bool = False,
    limit: int | None = None,
) -> CaptionReport:
    """Let a model look at the items of an index, and store what it says.

    Pictures and shots are described, each by its middle frame; of sound it is written down what is
    said, as captions with times, on the sound and on the pictures that are seen meanwhile. The
    caller holds `library.folder.lock()`.

    Args:
        captioner: None takes the label that the embedder knows for each item, a weak caption.
        every: Also for items that people have described.
        limit: Items looked at, at most.

    Raises:
        CaptionError: The model fails time and again.
        UsageError: Labels are asked of an embedder that knows no text.
    """
    begin = time.perf_counter()
    run = _Run(library, captioner, reporter, every=every, limit=limit)
    run.go()
    run.report.seconds = time.perf_counter() - begin
    return run.report


class _Run:
    def __init__(
        self,
        library: Library,
        captioner: Captioner | Transcriber | None,
        reporter: Reporter,
        *,
        every: bool,
        limit: int | None,
    ) -> None:
        self.library, self.captioner, self.reporter = library, captioner, reporter
        self.every, self.limit = every, limit
        self.name = LABELS if captioner is None else captioner.name
        self.report = CaptionReport(self.name)
        self.writer = PointWriter(library)
        self.fits = _Fits(library)
        self.waiting: list[tuple[_Item, list[Caption]]] = []

    def go(self) -> None:
        speech = self.captioner is not None and hasattr(self.captioner, "transcribe")
        kinds = {Modality.AUDIO} if speech else {Modality.IMAGE, Modality.VIDEO}
        if self.captioner is None:
            kinds = set(Modality)
        due, others = self._due(kinds, speech=speech)
        self.reporter.phase("captions", sum(map(len, due.values())))
        try:
            if self.captioner is None:
                self._label([item for items in due.values() for item in items])
            elif speech:
                for path, items in due.items():
                    self._transcribe(path, items, others.get(path, []))
            else:
                self._describe(due)
        finally:
            self._flush()
            if self.writer.changed:
                assign_new(self.library)  # captions change how near an item is to all queries
                self.writer.settle()

    def _due(
        self, kinds: set[Modality], *, speech: bool
    ) -> tuple[dict[str, list[_Item]], dict[str, list[_Item]]]:
        """Items to look at by file, and for speech the other items of these files."""
        due: dict[str, list[_Item]] = defaultdict(list)
        others: dict[str, list[_Item]] = defaultdict(list)
        left = self.limit
        for record in self.library.store.scroll(with_vectors=[MEDIA]):
            if "hash" not in (record.payload or {}):
                continue
            item = _Item.of(record)
            if item.modality not in kinds:
                if speech and item.modality is Modality.VIDEO:
                    others[item.path].append(item)
                continue
            strong = any(
                not c.is_weak and c.source is not CaptionSource.GENERATED for c in item.captions
            )
            seen = self.name in item.payload.get(MADE_BY, ())
            if seen or (strong and not self.every and not speech) or left == 0:
                self.report.skipped += 1
                continue
            left = None if left is None else left - 1
            due[item.path].append(item)
        return due, others

    def _label(self, items: Sequence[_Item]) -> None:
        lexicon = self.library.lexicon()
        if lexicon is None or not len(lexicon.texts):
            raise UsageError(
                f"The embedder {self.library.manifest.embedder.name} knows no texts to label with.",
                "Take a model: --captioner hf:MODEL",
            )
        for item in items:
            space = self.library.space(item.modality)
            names = lexicon.name(np.asarray([item.vector], np.float32), str(space))
            found = [Caption(names[0], CaptionSource.LABEL, by=LABELS)] if names else []
            self._put(item, found)

    def _describe(self, due: Mapping[str, list[_Item]]) -> None:
        assert self.captioner is not None and hasattr(self.captioner, "caption")
        pictures = (
            (item, clip) for path, items in due.items() for item, clip in self._decoded(path, items)
        )
        while block := list(islice(pictures, TOGETHER)):
            frames = [clip.frames[len(clip.frames) // 2] for _, clip in block]
            try:
                texts = self.captioner.caption(frames)
            except CaptionError as error:
                # One picture may be at fault; if none goes through, it is the model.
                texts = self._one_by_one([item for item, _ in block], frames, error)
            for (item, _), text in zip(block, texts, strict=True):
                if text is None:
                    continue
                whole = item.modality is Modality.IMAGE
                made = Caption(
                    text, CaptionSource.GENERATED, by=self.name,
                    start=None if whole else item.start, end=None if whole else item.end,
                )  # fmt: skip
                self._put(item, [made] if text else [])

    def _one_by_one(
        self, items: Sequence[_Item], frames: Sequence[Any], first: CaptionError
    ) -> list[str | None]:
        assert self.captioner is not None and hasattr(self.captioner, "caption")
        out: list[str | None] = []
        for item, frame in zip(items, frames, strict=True):
            try:
                out += self.captioner.caption([frame])
            except CaptionError as error:
                self.report.failed.append(Failure(item.path, error.what))
                out.append(None)
        if all(text is None for text in out):
            raise first
        return out

    def _transcribe(self, path: str, items: list[_Item], others: list[_Item]) -> None:
        assert self.captioner is not None and hasattr(self.captioner, "transcribe")
        said: list[Caption] = []
        try:
            for start, samples, rate in _stretches(self._decoded(path, items)):
                spoken: list[Spoken] = self.captioner.transcribe(samples, rate)
                said += [
                    Caption(
                        one.text, CaptionSource.SPEECH, round(start + one.start, 2),
                        round(start + one.end, 2), by=self.name,
                    )
                    for one in spoken
                ]  # fmt: skip
        except CaptionError as error:
            self.report.failed.append(Failure(path, error.what))
            return
        for item in (*items, *others):
            self._put(item, [c for c in said if c.covers(item.start, item.end)])

    def _decoded(self, path: str, items: Sequence[_Item]) -> Iterator[tuple[_Item, Clip]]:
        """The content of a file's items, in time order."""
        wanted = {item.id: item for item in items}
        try:
            for segment, clip in decode(
                self.library.folder.base / path, path, SegmentConfig(), _ignore
            ):
                item = wanted.pop(segment.id, None)
                if item is not None:
                    yield item, clip
        except MediaError as error:
            self.report.failed.append(Failure(path, error.what))
            return
        if wanted:
            reason = f"{len(wanted)} of its segments are cut otherwise now; ingest it again"
            self.report.failed.append(Failure(path, reason))

    def _put(self, item: _Item, made: list[Caption]) -> None:
        self.report.items += 1
        self.report.captions += len(made)
        self.reporter.advance()
        self.waiting.append((item, made))
        if len(self.waiting) >= WRITE:
            self._flush()

    def _flush(self) -> None:
        if not self.waiting:
            return
        judged = self.fits.judge(self.waiting)
        updates: list[tuple[str, dict[str, Any]]] = []
        captions: list[list[Caption]] = []
        ids: list[str] = []
        for (item, _), made in zip(self.waiting, judged, strict=True):
            for one in made:
                if one.confidence is not None and one.confidence < DOUBTFUL:
                    self.report.doubtful.append(
                        Doubt(item.path, item.start, one.text, round(one.confidence, 3))
                    )
            merged = segment_captions((*item.captions, *made), item.start, item.end)
            payload: dict[str, Any] = {
                "captions": [c.to_payload() for c in merged],
                MADE_BY: sorted({*item.payload.get(MADE_BY, ()), self.name}),
            }
            if made:
                payload |= identifier_payload(item.payload)
                ids.append(item.id)
                captions.append(merged)
            updates.append((item.id, payload))
        if ids:
            self.writer.mark_changed()
        self.library.store.set_payload(updates)
        vectors = caption_means(self.library.text_encoder(), captions)
        self.library.store.update_vectors(
            CAPTION,
            [(one, x.tolist()) for one, x in zip(ids, vectors, strict=True) if x is not None],
        )
        self.waiting = []


def _stretches(
    windows: Iterator[tuple[_Item, Clip]],
) -> Iterator[tuple[float, FloatArray, int]]:
    """Windows of sound that follow each other, joined: where it begins, samples, rate."""
    joined: list[FloatArray] = []
    begin = end = 0.0
    rate = 0
    for item, clip in windows:
        assert clip.samples is not None
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


class _Fits:
    """Tells how well captions fit: the share of other items that they fit worse than their own.

    Text reaches media vectors by the trained query tower, else as the embedder knows it; where it
    does not, nothing is told.
    """

    def __init__(self, library: Library) -> None:
        self._library = library
        self._others: dict[str, FloatArray] = {}
        self._read: Callable[[list[str], str], FloatArray | None] | None = None

    def judge(self, waiting: Sequence[tuple[_Item, list[Caption]]]) -> list[list[Caption]]:
        """The captions with their confidence."""
        by_space: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for n, (item, made) in enumerate(waiting):
            space = self._library.space(item.modality)
            # What is said need not be seen.
            judged = [k for k, c in enumerate(made) if c.source is not CaptionSource.SPEECH]
            by_space[str(space)] += [(n, k) for k in judged] if item.vector else []
        out = [list(made) for _, made in waiting]
        for space, places in by_space.items():
            if not places:
                continue
            texts = [out[n][k].text for n, k in places]
            q_BD = self._vectors(texts, space)
            others_ND = self._sample(space)
            if q_BD is None or len(others_ND) < 2:
                continue
            own_BD = np.asarray([waiting[n][0].vector for n, _ in places], np.float32)
            own_B = (q_BD * own_BD).sum(axis=1)
            worse_B = (q_BD @ others_ND.T < own_B[:, None]).mean(axis=1)
            for (n, k), share in zip(places, worse_B, strict=True):
                out[n][k] = replace(out[n][k], confidence=float(share))
        return out

    def _sample(self, space: str) -> FloatArray:
        if space not in self._others:
            kinds = [m for m, s in self._library.manifest.embedder.spaces.items() if s == space]
            match = models.FieldCondition(key="modality", match=models.MatchAny(any=kinds))
            records = self._library.store.scroll(
                models.Filter(must=[match]), with_payload=False, with_vectors=[MEDIA]
            )
            rows = [x for r in islice(records, COMPARED) if (x := vector_of(r)) is not None]
            self._others[space] = np.asarray(rows, dtype=np.float32)
        return self._others[space]

    def _vectors(self, texts: list[str], space: str) -> FloatArray | None:
        if self._read is None:
            self._read = self._reader()
        return self._read(texts, space)

    def _reader(self) -> Callable[[list[str], str], FloatArray | None]:
        library = self._library
        generator = library.manifest.generator
        if generator is not None:
            model = Model.load(library.folder.path(generator.folder), library.text_encoder())

            def tower(texts: list[str], space: str) -> FloatArray | None:
                if space not in model.encoder.heads:
                    return None
                out: FloatArray | None = None
                for places, found in model.encoder.batches(texts):
                    x = found.media[space].float().numpy()
                    out = np.empty((len(texts), x.shape[1]), np.float32) if out is None else out
                    out[places] = x
                return out

            return tower
        lexicon = library.lexicon()
        if lexicon is not None:
            return lambda texts, space: lexicon.embed(library.text_encoder().embed(texts), space)
        try:
            embedder = library.embedder()
        except CartError:
            return lambda _texts, _space: None
        return embedder.embed_text


def _ignore(_note: str) -> None:
    return
