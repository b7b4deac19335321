"""Queries that are more than a text: image and audio files, items, vectors, and weighted mixes.

A mix is one vector in each media space, the normalised sum of the unit vectors of its parts;
unwanted parts have a negative weight. It is searched as a text is: by beams and by dense vectors.
Shape legend: D vector width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.arrays.vectors import unit
from cart_qdrant.embedders.external import EXTERNAL
from cart_qdrant.errors import MediaError, UsageError
from cart_qdrant.index.index import Index
from cart_qdrant.index.points import vector_of
from cart_qdrant.media.segments import decode
from cart_qdrant.records import Modality
from cart_qdrant.search.lookup import find_record

TOGETHER = 16
"""Segments of a file that are embedded together."""
Kind = Literal["text", "image", "audio", "like", "vector"]


def check_text(text: str) -> None:
    """Refuse a text that no encoder reads.

    Raises:
        UsageError: It is empty, or holds bytes that are not UTF-8, as a terminal of another
            encoding sends them.
    """
    if not text.strip():
        raise UsageError("The query is empty.", 'Say what to find: cartq search "a dog".')
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"The query is not UTF-8: its character {error.start + 1} is {text[error.start]!r}.",
            "Set the terminal to UTF-8.",
        ) from None


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a query.

    Attributes:
        kind: `text`; `image` or `audio`, a file (the vectors of a video's shots or of an audio
            file's windows are averaged); `like`, an item of the index by its id, its path, or
            PATH@SECONDS; `vector`, made elsewhere by the embedder of the index.
        value: The text, the path or the item; the name of a vector.
        weight: Not 0; negative for an unwanted part.
        vector: The vector (D,) of a part of the kind `vector`; it is normalised.
    """

    kind: Kind
    value: str
    weight: float = 1.0
    vector: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.value.strip():
            raise UsageError(f"A part of the query is empty ({self.kind}).")
        if self.kind == "text":
            check_text(self.value)
        if not math.isfinite(self.weight) or self.weight == 0:
            raise UsageError(
                f"The weight of {self.value!r} is {self.weight}, but must be a number other than 0."
            )
        if (self.vector is None) == (self.kind == "vector"):
            found = "no vector" if self.vector is None else "a vector"
            raise UsageError(f"A part of the kind {self.kind} has {found}.")

    def __str__(self) -> str:
        """The part without its sign, such as `0.3 [image beach.jpg]`."""
        size = abs(self.weight)
        weight = "" if size == 1 else f"{size:g} "
        return weight + (self.value if self.kind == "text" else f"[{self.kind} {self.value}]")


@dataclass(frozen=True, slots=True)
class Query:
    """A query of several parts.

    Raises:
        UsageError: There is no part, or all parts are unwanted.
    """

    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if not any(part.weight > 0 for part in self.parts):
            raise UsageError("The query names nothing that is wanted.", "Give a text, or --image.")

    @property
    def is_text(self) -> bool:
        """Whether the query is one text and nothing else."""
        return len(self.parts) == 1 and self.parts[0].kind == "text"

    @property
    def words(self) -> str:
        """All wanted texts, joined."""
        wanted = [part.value for part in self.parts if part.kind == "text" and part.weight > 0]
        return " ".join(wanted)

    def __str__(self) -> str:
        """The query as a text, such as `0.7 a dog + [image beach.jpg] - snow`."""
        out = ""
        for part in self.parts:
            sign = ("+" if part.weight > 0 else "-") if out else "-" * (part.weight < 0)
            out += f" {sign} {part}" if out else f"{sign}{part}"
        return out


@dataclass(frozen=True, slots=True)
class Mixed:
    """A query as vectors.

    Attributes:
        media: Unit vector (D,) in each media space that all parts reach.
        exclude: Ids of the items that the query names, which are no answers to it.
    """

    media: Mapping[str, FloatArray]
    exclude: tuple[str, ...]


class TextVectors(Protocol):
    """Embeds a text for a mix."""

    def __call__(self, text: str) -> Mapping[str, FloatArray]:
        """Unit vector (D,) of the text in each media space that it reaches."""


class Mixer:
    """Makes vectors of queries for one index.

    Args:
        index: The index; its embedder is loaded when a part is a file.
        text: Embeds texts.
    """

    def __init__(self, index: Index, text: TextVectors) -> None:
        self._index, self._text = index, text

    def mix(self, query: Query) -> Mixed:
        """Vectors of a query.

        Raises:
            UsageError: A file or an item is not there, parts reach no space together, or they
                cancel each other out.
            MediaError: A file cannot be decoded.
        """
        found: list[Mapping[str, FloatArray]] = []
        exclude: list[str] = []
        for part in query.parts:
            if part.kind == "text":
                found.append(self._text(part.value))
            elif part.kind == "like":
                vectors, one = self._item(part.value)
                found.append(vectors)
                exclude.append(one)
            elif part.vector is not None:
                found.append(self._vector(part.vector))
            else:
                found.append(self._file(Path(part.value), part.kind))
        spaces = [s for s in found[0] if all(s in vectors for vectors in found)]
        if not spaces:
            reached = "; ".join(
                f"{part} reaches {', '.join(vectors) or 'none'}"
                for part, vectors in zip(query.parts, found, strict=True)
            )
            raise UsageError(
                f"No space of vectors is reached by all parts of the query: {reached}.",
                "Ask for them apart, or train the index on captions: cartq train",
            )
        media: dict[str, FloatArray] = {}
        for space in spaces:
            weights = [part.weight for part in query.parts]
            sum_D = sum(
                (w * v[space] for w, v in zip(weights, found, strict=True)),
                start=np.zeros_like(found[0][space]),
            )
            norm = float(np.linalg.norm(sum_D))
            if norm < 1e-6:
                raise UsageError("The parts of the query cancel each other out.")
            media[space] = (sum_D / norm).astype(np.float32)
        return Mixed(media, tuple(exclude))

    def _file(self, path: Path, kind: Kind) -> dict[str, FloatArray]:
        """The mean vector of a file's segments: of its audio, or of its images and shots."""
        if not path.exists():
            raise UsageError(f"There is no file {path}.")
        info = self._index.manifest.embedder
        if info.name in ("precomputed", EXTERNAL):
            raise UsageError(
                "The vectors of this index were made elsewhere: no file can be embedded here.",
                "Ask with an item of the index: --like PATH",
            )
        wanted = (Modality.AUDIO,) if kind == "audio" else (Modality.IMAGE, Modality.VIDEO)
        found = decode(path, path.name, self._index.manifest.segments, wanted=wanted)
        embedder = self._index.embedder()
        sum_D = np.zeros(embedder.dim, dtype=np.float32)
        space: str | None = None
        try:
            # A long video is never held in memory as a whole.
            while clips := [clip for _, clip in islice(found, TOGETHER)]:
                space = embedder.spaces.get(clips[0].modality)
                if space is None:
                    raise UsageError(
                        f"The index was made with {info.name}, which embeds no {clips[0].modality}."
                    )
                sum_D += embedder.embed_media(clips).sum(axis=0)
        except MediaError as error:
            raise MediaError(f"{path}: {error.what}", error.remedy) from error
        assert space is not None
        return {space: unit(sum_D)}

    def _vector(self, vector: tuple[float, ...]) -> dict[str, FloatArray]:
        """The unit vector in every media space, since its own is not known."""
        info = self._index.manifest.embedder
        x_D = np.asarray(vector, dtype=np.float32)
        norm = float(np.linalg.norm(x_D)) if len(x_D) else 0.0
        if len(x_D) != info.dim:
            raise UsageError(
                f"The query vector has {len(x_D)} dimensions, but the index has {info.dim}.",
                f"Make it with the embedder of the index: {info.name}",
            )
        if not math.isfinite(norm) or norm == 0:
            raise UsageError("The query vector is zero or not finite.")
        return dict.fromkeys(sorted(set(info.spaces.values())), x_D / norm)

    def _item(self, name: str) -> tuple[dict[str, FloatArray], str]:
        """The vector of a stored item in its media space, and its id."""
        record = find_record(self._index, name)
        vector = vector_of(record)
        space = self._index.space((record.payload or {}).get("modality", ""))
        if vector is None or space is None:
            raise UsageError(f"The item {name!r} has no vector.", "Repair it: cartq ingest")
        return {space: np.asarray(vector, dtype=np.float32)}, str(record.id)
