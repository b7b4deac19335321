"""Between our payload fields, vectors and filters, and those of a collection that others fill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qdrant_client import models

from cart_qdrant.records import CaptionSource
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.attached_filters import POINT, AttachedFilters
from cart_qdrant.storage.attachment import Attachment
from cart_qdrant.storage.payloads import json_path
from cart_qdrant.storage.protocol import CAPTION, CAPTION_2, CAPTION_TEXTS, MEDIA

_OUR_FIELDS = ("path", "modality", "start", "end", "captions", "hash")


class AttachedMapping:
    """Translates requests into the names of the collection, and its answers into ours.

    Args:
        how: Which field and vector of the collection holds what.
    """

    def __init__(self, how: Attachment) -> None:
        self._how = how
        self.vectors = {MEDIA: how.vector}
        """Name of the collection's vector for each of ours."""
        if how.caption_vector is not None:
            self.vectors |= {CAPTION: how.caption_vector, CAPTION_2: f"{how.caption_vector}_2"}
        fields = {
            "path": how.path,
            "modality": how.modality_field,
            "start": how.start,
            "end": how.end,
        }
        self.fields = {
            ours: json_path(theirs) for ours, theirs in fields.items() if theirs is not None
        }
        """JSON path in the collection for each of our payload fields."""
        if how.words is not None:
            base = how.words.removesuffix("[].text")
            self.fields[CAPTION_TEXTS] = json_path(base) + how.words[len(base) :]
        self._filters = AttachedFilters(how, self.fields, self.vectors)

    # Requests: from our names to theirs

    def vector_names(self, names: Sequence[str]) -> list[str]:
        """The collection's names of those of our vectors that it has."""
        return [self.vectors[name] for name in names if name in self.vectors]

    def payload_fields(self, with_payload: bool | Sequence[str]) -> bool | list[str]:
        """The collection's fields that hold what is asked for."""
        if isinstance(with_payload, bool):
            return with_payload
        wanted: list[str] = []
        for key in with_payload:
            if key == "captions":
                wanted += map(json_path, self._how.captions)
            elif key in self.fields:
                wanted.append(self.fields[key])
            elif key not in _OUR_FIELDS:
                wanted.append(key)
        return wanted or False

    def request(self, request: models.QueryRequest) -> models.QueryRequest | None:
        """A search; None where the collection has not what it searches in."""
        using = request.using
        if using == CAPTION_TEXTS:
            name = self.fields.get(CAPTION_TEXTS)
        elif using is None:
            name = None
        else:
            name = self.vectors.get(using)
        if using is not None and name is None:
            return None
        payload = request.with_payload
        if isinstance(payload, list):
            payload = self.payload_fields(payload)
        changes = {"using": name or None, "filter": self.filter(request.filter)}
        return request.model_copy(update={**changes, "with_payload": payload})

    def filter(self, given: models.Filter | None) -> models.Filter | None:
        """A filter, each of its conditions translated."""
        return self._filters.filter(given)

    # Answers: from their names to ours

    def record(self, row: qdrant.AnyRecord, *, with_payload: bool) -> qdrant.Record:
        """A point with our names of vectors and, if wanted, our payload fields."""
        vector = row.vector
        if isinstance(vector, Mapping):
            vector = {
                ours: vector[theirs] for ours, theirs in self.vectors.items() if theirs in vector
            }
        payload = self.payload(row.id, row.payload) if with_payload else None
        return qdrant.Record(id=str(row.id), payload=payload, vector=vector)

    def payload(self, point: object, found: Mapping[str, Any] | None) -> dict[str, Any]:
        """The payload of a point, with our fields laid over it."""
        how, theirs = self._how, found or {}
        path = value_at(theirs, how.path)
        return {
            **theirs,
            "path": f"{POINT}{point}" if path is None else str(path),
            "modality": self._modality(theirs),
            "start": _seconds(value_at(theirs, how.start)),
            "end": _seconds(value_at(theirs, how.end)),
            "captions": [
                {"text": text, "source": str(CaptionSource.METADATA)}
                for text in texts_of(theirs, how.captions)
            ],
        }

    def _modality(self, theirs: Mapping[str, Any]) -> str:
        field = self._how.modality_field
        return self._how.modality if field is None else str(value_at(theirs, field))


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):  # for Qdrant no number
        return 0.0
    return float(value)


def value_at(payload: Mapping[str, Any], path: str | None) -> Any:
    """The value at a dotted path of a payload; None where there is none."""
    found: Any = payload if path is not None else None
    for part in (path or "").split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def texts_of(payload: Mapping[str, Any], paths: Sequence[str]) -> list[str]:
    """Texts at some dotted paths of a payload, each once.

    The value at a path may be a text, a list of texts, or a list of objects with a `text`.
    """
    found: dict[str, None] = {}
    for path in paths:
        for one in qdrant.as_list(value_at(payload, path)):
            text = one.get("text") if isinstance(one, Mapping) else one
            if isinstance(text, str) and (clean := " ".join(text.split())):
                found.setdefault(clean)
    return list(found)
