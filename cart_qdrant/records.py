"""Plain typed records that the parts of the package hand to each other.

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
    """What a segment is made of."""

    IMAGE = "image"
    VIDEO = "video"
    AUDIO = "audio"


class CaptionSource(StrEnum):
    """Where a caption came from, best first. See `Caption.is_weak`."""

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
MADE_SOURCES = frozenset({CaptionSource.SPEECH, CaptionSource.GENERATED, CaptionSource.LABEL})
"""Made by `cartq caption`: no file beside the media holds them."""

TRUST = {
    source: 0.3 if source in WEAK_SOURCES else 0.7 if source in MADE_SOURCES else 1.0
    for source in CaptionSource
}
"""Weight of a text in training, by its source."""


@dataclass(frozen=True, slots=True)
class Caption:
    """A text about a file, or about a stretch of it when it has times (seconds)."""

    text: str
    source: CaptionSource
    start: float | None = None
    end: float | None = None
    by: str | None = None
    """The model that made it."""
    confidence: float | None = None
    """Share of other items that it fits worse than its own; None where it was not compared."""

    @property
    def is_weak(self) -> bool:
        """Whether the text is a guess: used only where nothing better is known."""
        return self.source in WEAK_SOURCES

    @property
    def trust(self) -> float:
        """Weight in training, in (0, 1]."""
        sure = 1.0 if self.confidence is None else max(self.confidence, 0.05)
        return TRUST[self.source] * sure

    def covers(self, start: float, end: float) -> bool:
        """Whether the caption speaks about the stretch from `start` to `end` (seconds)."""
        if self.start is None or self.end is None:
            return True
        return self.start < end and self.end > start

    def to_payload(self) -> dict[str, Any]:
        """The form stored in Qdrant."""
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
        """Inverse of `to_payload`."""
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
    """A stretch of a file that is embedded and found as one item.

    `path` is POSIX, relative to the folder that holds the index. `start` and `end` are seconds;
    both are 0 for an image.
    """

    path: str
    modality: Modality
    start: float = 0.0
    end: float = 0.0

    @property
    def id(self) -> str:
        """Deterministic UUIDv5 of path, modality and times, so ingesting twice changes nothing."""
        name = "\n".join((self.path, self.modality, f"{self.start:.3f}", f"{self.end:.3f}"))
        # A name that is not UTF-8 reaches us with surrogate escapes.
        return str(uuid.uuid5(NAMESPACE, name.encode("utf-8", "backslashreplace").decode()))


@dataclass(frozen=True, slots=True)
class Failure:
    """An input that could not be used, and why."""

    path: str
    reason: str

    def to_json(self) -> dict[str, str]:
        """The object of the `--json` contracts."""
        return {"path": self.path, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Identifier:
    """`(k, v1 .. vM, u)`: coarse cluster, residual codes, and a counter that makes it unique."""

    codes: tuple[int, ...]
    """The semantic part: coarse cluster, then one residual code per level."""
    u: int
    """Counter among items with the same semantic part."""

    @property
    def id(self) -> str:
        """The whole identifier as stored and shown: `17-203-44-9-0`."""
        return "-".join(map(str, (*self.codes, self.u)))

    def to_payload(self) -> dict[str, Any]:
        """The `cart` payload field; `p1` is the coarse cluster, as a text."""
        return {
            "id": self.id,
            "p1": str(self.codes[0]),
            "codes": list(self.codes),
            "disambiguation": self.u,
        }

    @classmethod
    def from_payload(cls, payload: dict[str, Any]) -> Identifier:
        """Inverse of `to_payload`."""
        return cls(tuple(int(c) for c in payload["codes"]), int(payload["disambiguation"]))


@dataclass(frozen=True, slots=True)
class Item:
    """One stored segment, with all that is known of it."""

    id: str
    path: str
    modality: Modality
    start: float
    end: float
    identifier: Identifier | None
    captions: tuple[Caption, ...]
    payload: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Hit:
    """One answer of a search."""

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
    """Of its captions the one that shares most words with the query, else the best source's."""
    payload: dict[str, Any] = field(repr=False)
    confidence: float | None = None
    """Probability that this is what was meant; None where nothing was held out to tell it by."""
    why: dict[str, Any] | None = field(default=None, repr=False)
    """Why it is a hit (the object of `search.explain`); None unless the search was to explain."""
    moment: tuple[float, float] | None = None
    """Seconds that the caption speaks about; None unless it shares a word with the query."""
    similarity: float | None = None
    """Cosine of the query's and the media vector where the lane compared them, else that of the
    caption's vector; None where the lane compared neither."""

    def metadata(self) -> dict[str, Any]:
        """Metadata of the hit as a document of another framework; caption, id and score have fields
        of their own there."""
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
        """The object of the `--json` contract."""
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


def clock(seconds: float) -> str:
    """A position in a file as `m:ss`, or as `h:mm:ss` from one hour on; rounded down."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def text_key(text: str) -> str:
    """What two captions share when they say the same: case and spaces do not count."""
    return " ".join(text.casefold().split())
