"""Typed records that the rooms of the package pass to each other.

Shape suffixes used everywhere: B batch, N items, D vector width, K beams or coarse clusters,
L levels of an identifier, V codes per level, S sequence length, C channels, H height, W width,
T time.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://github.com/cart-qdrant/segment")


class Modality(StrEnum):
    """The kind of media of a segment."""

    IMAGE = "image"
    VIDEO = "video"
    AUDIO = "audio"


class CaptionSource(StrEnum):
    """Where a caption came from, most trusted first (`Caption.is_weak`, `Caption.trust`)."""

    EXPLICIT = "explicit"  # --captions FILE
    METADATA = "metadata"  # metadata.jsonl / metadata.csv beside the media
    TXT = "txt"  # NAME.txt
    JSON = "json"  # NAME.json
    SUBTITLE = "subtitle"  # NAME.srt / NAME.vtt
    CONTAINER = "container"  # title and comment tags of the file
    SPEECH = "speech"  # a transcript
    GENERATED = "generated"  # a captioning model
    FILENAME = "filename"  # words of the file name
    LABEL = "label"  # labels of the embedder's classifier


WEAK_SOURCES = frozenset({CaptionSource.FILENAME, CaptionSource.LABEL})
"""Sources of guesses, which are used only where an item has no other caption."""
MADE_SOURCES = frozenset({CaptionSource.SPEECH, CaptionSource.GENERATED, CaptionSource.LABEL})
"""Sources of captions that `cartq caption` makes; no file beside the media holds them."""

ITEM_FIELDS = frozenset({"path", "modality", "start", "end", "captions"})
"""Payload fields of every item, also in a collection that others fill."""
OWN_FIELDS = ITEM_FIELDS | frozenset(
    {"hash", "size", "mtime", "ctime", "inode", "segments", "caption_digest", "captioned_by"}
)
"""Payload fields that an index writes to points of its own, besides identifiers."""

TRUST = {
    source: 0.3 if source in WEAK_SOURCES else 0.7 if source in MADE_SOURCES else 1.0
    for source in CaptionSource
}
"""Weight of a caption in training, by its source."""


@dataclass(frozen=True, slots=True)
class Caption:
    """A text about a file, or about the part of it from `start` to `end` (seconds) where given."""

    text: str
    source: CaptionSource
    start: float | None = None
    end: float | None = None
    by: str | None = None
    """Name of the model that made the caption; None where no model did."""
    confidence: float | None = None
    """Share of the other items that the caption fits worse than its own; None where it was not
    compared with them."""

    @property
    def is_weak(self) -> bool:
        """Whether the caption is a guess, used only where the item has no other."""
        return self.source in WEAK_SOURCES

    @property
    def trust(self) -> float:
        """Weight of the caption in training, in (0, 1]."""
        confidence = 1.0 if self.confidence is None else max(self.confidence, 0.05)
        return TRUST[self.source] * confidence

    def covers(self, start: float, end: float) -> bool:
        """Whether the caption describes some of the time from `start` to `end` (seconds)."""
        if self.start is None or self.end is None:
            return True
        return self.start < end and self.end > start

    def to_payload(self) -> dict[str, Any]:
        """The JSON object that is stored in Qdrant."""
        out: dict[str, Any] = {"text": self.text, "source": str(self.source)}
        if self.start is not None and self.end is not None:
            out["start"], out["end"] = self.start, self.end
        if self.by is not None:
            out["by"] = self.by
        if self.confidence is not None:
            out["confidence"] = round(self.confidence, 3)
        return out

    @classmethod
    def from_payload(cls, payload: dict[str, Any]) -> Caption:
        """The caption of such an object, the inverse of `to_payload`."""
        return cls(
            text=payload["text"],
            source=CaptionSource(payload["source"]),
            start=payload.get("start"),
            end=payload.get("end"),
            by=payload.get("by"),
            confidence=payload.get("confidence"),
        )


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a file, or a whole one, that is embedded and found as one item.

    `path` is POSIX, relative to the folder that holds the index. `start` and `end` are seconds;
    both are 0 for an image.
    """

    path: str
    modality: Modality
    start: float = 0.0
    end: float = 0.0

    @property
    def id(self) -> str:
        """UUIDv5 of path, modality and times, so that a second ingest changes nothing."""
        name = "\n".join((self.path, self.modality, f"{self.start:.3f}", f"{self.end:.3f}"))
        # Python reads a file name that is not UTF-8 with surrogate escapes.
        return str(uuid.uuid5(NAMESPACE, name.encode("utf-8", "backslashreplace").decode()))


@dataclass(frozen=True, slots=True)
class Failure:
    """An input that could not be used, and why."""

    path: str
    reason: str

    def to_json(self) -> dict[str, str]:
        """The object of a failure in the output of `--json`."""
        return {"path": self.path, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Identifier:
    """Semantic codes of an item, and a disambiguation token that makes them unique."""

    codes: tuple[int, ...]
    """Coarse cluster, then one residual code a level."""
    u: int
    """Disambiguation token: number of the item among those with the same codes."""

    @property
    def id(self) -> str:
        """The whole identifier as stored and shown: `17-203-44-9-0`."""
        return "-".join(map(str, (*self.codes, self.u)))

    def to_payload(self) -> dict[str, Any]:
        """The value of the payload field `cart`; `p1` is the coarse cluster as a string."""
        return {
            "id": self.id,
            "p1": str(self.codes[0]),
            "codes": list(self.codes),
            "disambiguation": self.u,
        }

    @classmethod
    def from_payload(cls, payload: dict[str, Any]) -> Identifier:
        """The identifier of such a field, the inverse of `to_payload`."""
        return cls(tuple(int(c) for c in payload["codes"]), int(payload["disambiguation"]))


@dataclass(frozen=True, slots=True)
class Item:
    """One stored segment with its identifier, its captions and its payload."""

    id: str
    path: str
    modality: Modality
    start: float
    end: float
    identifier: Identifier | None
    captions: tuple[Caption, ...]
    payload: dict[str, Any] = field(repr=False)
    fields: dict[str, list[Any]] = field(default_factory=dict, repr=False)
    """Values of the payload fields that the index did not write, by dotted path."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One segment that a search found, with its scores."""

    rank: int
    id: str
    path: str
    modality: Modality
    start: float
    end: float
    score: float
    lane: str
    identifier: str | None
    caption: str | None
    """The caption that shares most words with the query, else that of the most trusted source."""
    payload: dict[str, Any] = field(repr=False)
    confidence: float | None = None
    """Calibrated probability that the hit is relevant; None where the index has no calibration."""
    why: dict[str, Any] | None = field(default=None, repr=False)
    """The explanation of `search.explain`; None unless the search was asked to explain."""
    moment: tuple[float, float] | None = None
    """Start and end (seconds) of the caption; None unless it has times and shares a word with the
    query."""
    similarity: float | None = None
    """Cosine of the query with the media vector, else with the caption vector; None where the lane
    compared it with neither."""

    @property
    def text(self) -> str:
        """Text of a document of another framework: the caption, or the path where there is none."""
        return self.caption or self.path

    def metadata(self) -> dict[str, Any]:
        """Metadata of a document of another framework, which has fields of its own for caption, id
        and score."""
        return {
            "path": self.path,
            "modality": str(self.modality),
            "start": self.start,
            "end": self.end,
            "moment": self.moment,
            "confidence": self.confidence,
            "similarity": self.similarity,
            "identifier": self.identifier,
            "lane": self.lane,
        }

    def to_json(self) -> dict[str, Any]:
        """The object of a hit in the output of `search --json`."""
        why = {} if self.why is None else {"why": self.why}
        return {
            "rank": self.rank,
            "id": self.id,
            "path": self.path,
            "modality": str(self.modality),
            "start": self.start,
            "end": self.end,
            "score": self.score,
            "similarity": self.similarity,
            "confidence": self.confidence,
            "lane": self.lane,
            "identifier": self.identifier,
            "caption": self.caption,
            "moment": None if self.moment is None else list(self.moment),
            "payload": self.payload,
            **why,
        }


def fixed(value: float, digits: int = 3) -> str:
    """A number with so many digits after the point, for people; no minus before nothing."""
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


def clock(seconds: float) -> str:
    """A position in a file as `m:ss`, or as `h:mm:ss` from one hour on; rounded down."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def text_key(text: str) -> str:
    """Key under which captions count as the same text: case and spaces do not matter."""
    return " ".join(text.casefold().split())
