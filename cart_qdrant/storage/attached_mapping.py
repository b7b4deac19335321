"""Between our payload fields, vectors and filters, and those of a collection that others fill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qdrant_client import models

from cart_qdrant.arrays.point_ids import as_id, wire_id
from cart_qdrant.errors import StoreError
from cart_qdrant.records import CaptionSource
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.attachment import Attachment
from cart_qdrant.storage.payloads import json_path
from cart_qdrant.storage.protocol import CAPTION, CAPTION_TEXTS, MEDIA

_NOTHING = models.HasIdCondition(has_id=[])
"""Holds for no point."""
_EVERYTHING = models.Filter(must_not=[_NOTHING])
_POINT = "point:"
"""Begins the path of a point whose payload names no file; the point's id follows."""
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
            self.vectors[CAPTION] = how.caption_vector
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
        if given is None:
            return None

        def each(conditions: Any) -> list[models.Condition] | None:
            if conditions is None:
                return None
            return [self._condition(one) for one in qdrant.as_list(conditions)]

        least = given.min_should
        if least is not None:
            least = models.MinShould(
                conditions=each(least.conditions) or [], min_count=least.min_count
            )
        return models.Filter(
            must=each(given.must),
            should=each(given.should),
            must_not=each(given.must_not),
            min_should=least,
        )

    def _condition(self, one: models.Condition) -> models.Condition:
        match one:
            case models.Filter():
                return self.filter(one) or _EVERYTHING
            case models.HasIdCondition():
                return models.HasIdCondition(has_id=[wire_id(as_id(i)) for i in one.has_id])
            case models.HasVectorCondition():
                if one.has_vector == CAPTION and CAPTION not in self.vectors:
                    return _NOTHING
                name = self.vectors.get(one.has_vector, one.has_vector)
                return models.HasVectorCondition(has_vector=name)
            case models.IsEmptyCondition():
                # In a collection of ours, points of others are those without a hash.
                if one.is_empty.key == "hash":
                    return models.Filter(must_not=[self._usable_points()])
                key = self.fields.get(one.is_empty.key, one.is_empty.key)
                return models.IsEmptyCondition(is_empty=models.PayloadField(key=key))
            case models.FieldCondition():
                return self._field_condition(one)
        return one

    def _field_condition(self, one: models.FieldCondition) -> models.Condition:
        values = _values(one.match)
        if one.key == "path" and values is not None:
            return self._has_path([str(value) for value in values])
        if one.key in self.fields:
            return one.model_copy(update={"key": self.fields[one.key]})
        if one.key == "modality" and values is not None:
            return _EVERYTHING if self._how.modality in values else _NOTHING
        return one

    def _has_path(self, values: Sequence[str]) -> models.Condition:
        """Points whose path is one of the values: by its field, or by the id that a path stands
        for where the field is empty."""
        ids = [point for value in values if (point := _point_of(value)) is not None]
        named: list[models.Condition] = [models.HasIdCondition(has_id=ids)]
        theirs = self.fields.get("path")
        if theirs is None:
            return named[0]
        named.append(models.IsEmptyCondition(is_empty=models.PayloadField(key=theirs)))
        match = models.MatchAny(any=list(values))
        return models.Filter(
            should=[models.FieldCondition(key=theirs, match=match), models.Filter(must=named)]
        )

    def _usable_points(self) -> models.Filter:
        """Points that have the media vector, and whose modality the embedder knows."""
        must: list[models.Condition] = [models.HasVectorCondition(has_vector=self._how.vector)]
        if "modality" in self.fields:
            match = models.MatchAny(any=self._how.modalities)
            must.append(models.FieldCondition(key=self.fields["modality"], match=match))
        return models.Filter(must=must)

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
            "path": f"{_POINT}{point}" if path is None else str(path),
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


def _values(match: models.Match | None) -> list[object] | None:
    """The values that a match lists; None where it lists none."""
    if isinstance(match, models.MatchValue):
        return [match.value]
    return list(match.any) if isinstance(match, models.MatchAny) else None


def _point_of(path: str) -> models.ExtendedPointId | None:
    """The id in the path of a point whose payload names no file; None for another path."""
    if not path.startswith(_POINT):
        return None
    try:
        return wire_id(as_id(path.removeprefix(_POINT)))
    except StoreError:
        return None


def _seconds(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


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
