"""Filters on our payload fields as filters on a collection that others fill.

A filter finds the points that it would find in a collection of ours: those whose payload, as
`AttachedMapping.payload` gives it, fulfils it. Two things have no form in Qdrant: part of the id of
a point whose payload names no file, and two conditions on one text of a list of captions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from qdrant_client import models

from cart_qdrant.arrays.point_ids import as_id, wire_id
from cart_qdrant.errors import StoreError
from cart_qdrant.records import CaptionSource
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.attachment import Attachment
from cart_qdrant.storage.payloads import json_path
from cart_qdrant.storage.protocol import CAPTION_SLOTS

POINT = "point:"
"""Begins the path of a point whose payload names no file; the point's id follows."""
CAPTIONS = "captions"
_NOTHING = models.HasIdCondition(has_id=[])
"""Holds for no point."""
_EVERYTHING = models.Filter(must_not=[_NOTHING])
_ANY_NUMBER = models.Range(gte=-1e300, lte=1e300)
_CAPTION_KEY = re.compile(r"captions(\[\d*\])?(\.(?P<field>.+))?")


class AttachedFilters:
    """Translates filters.

    Args:
        how: Which field and vector of the collection holds what.
        fields: JSON path in the collection for each of our payload fields that it has.
        vectors: The collection's name for each of our vectors that it has.
    """

    def __init__(self, how: Attachment, fields: dict[str, str], vectors: dict[str, str]) -> None:
        self._how, self._fields, self._vectors = how, fields, vectors
        self._texts = [path for one in how.captions for path in _text_paths(one, how.words)]
        """JSON paths of the texts of captions."""

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

    def usable_points(self) -> models.Filter:
        """Points that have the media vector, and whose modality the embedder knows."""
        must: list[models.Condition] = [models.HasVectorCondition(has_vector=self._how.vector)]
        if "modality" in self._fields:
            match = models.MatchAny(any=self._how.modalities)
            must.append(models.FieldCondition(key=self._fields["modality"], match=match))
        return models.Filter(must=must)

    def _condition(self, one: models.Condition) -> models.Condition:
        match one:
            case models.Filter():
                return self.filter(one) or _EVERYTHING
            case models.HasIdCondition():
                return models.HasIdCondition(has_id=[wire_id(as_id(i)) for i in one.has_id])
            case models.HasVectorCondition():
                if one.has_vector in CAPTION_SLOTS and one.has_vector not in self._vectors:
                    return _NOTHING
                name = self._vectors.get(one.has_vector, one.has_vector)
                return models.HasVectorCondition(has_vector=name)
            case models.IsEmptyCondition():
                return self._is_empty(one)
            case models.IsNullCondition():
                # None of our fields holds a null.
                return _NOTHING if self._is_ours(one.is_null.key) else one
            case models.NestedCondition():
                return self._nested(one)
            case models.FieldCondition():
                return self._field_condition(one)
        return one

    def _is_ours(self, key: str) -> bool:
        """Whether `AttachedMapping.payload` lays a value of ours over a field."""
        return key in ("path", "modality", "start", "end") or bool(_CAPTION_KEY.fullmatch(key))

    def _is_empty(self, one: models.IsEmptyCondition) -> models.Condition:
        key = one.is_empty.key
        if key == "hash":  # in a collection of ours, points of others are those without a hash
            return models.Filter(must_not=[self.usable_points()])
        caption = _CAPTION_KEY.fullmatch(key)
        if caption and caption["field"] in (None, "text", "source"):
            return self._without_captions()
        if caption:
            return _EVERYTHING
        return _NOTHING if self._is_ours(key) else one

    def _without_captions(self) -> models.Filter:
        """Points without a caption; an empty text is none."""
        some = models.MatchExcept(**{"except": [""]})
        texts: list[models.Condition] = [
            models.FieldCondition(key=path, match=some) for path in self._texts
        ]
        return models.Filter(must_not=texts)

    def _field_condition(self, one: models.FieldCondition) -> models.Condition:
        if not self._is_ours(one.key):
            return one
        if one.is_empty is not None or one.is_null is not None:
            return self._presence(one)
        if one.key == "path":
            return self._path(one)
        if one.key == "modality":
            if "modality" in self._fields:
                return one.model_copy(update={"key": self._fields["modality"]})
            return _always(_holds(one, self._how.modality))
        if one.key in ("start", "end"):
            return self._seconds(one)
        return self._caption(one)

    def _presence(self, one: models.FieldCondition) -> models.Condition:
        """A condition that tells in itself whether the field is empty, or null."""
        parts: list[models.Condition] = []
        if one.is_null is not None:
            parts.append(_always(not one.is_null))
        if one.is_empty is not None:
            empty = self._is_empty(
                models.IsEmptyCondition(is_empty=models.PayloadField(key=one.key))
            )
            parts.append(empty if one.is_empty else models.Filter(must_not=[empty]))
        return models.Filter(must=parts)

    def _path(self, one: models.FieldCondition) -> models.Condition:
        """By the field, or by the id that a path stands for where the field is empty."""
        theirs, match = self._fields.get("path"), one.match
        if isinstance(match, models.MatchExcept):
            same = models.MatchAny(any=match.except_)
            other = self._path(models.FieldCondition(key="path", match=same))
            return models.Filter(must_not=[other])
        unnamed = _unnamed_points(one)
        if theirs is None:
            return unnamed
        by_field = one.model_copy(update={"key": theirs})
        by_id = models.Filter(must=[unnamed, _empty(theirs)])
        return models.Filter(should=[by_field, by_id])

    def _seconds(self, one: models.FieldCondition) -> models.Condition:
        """By the field, or as zero where it holds no number."""
        theirs, is_zero = self._fields.get(one.key), _holds(one, 0.0)
        if theirs is None:
            return _always(is_zero)
        by_field = one.model_copy(update={"key": theirs})
        if not is_zero:
            return by_field
        number = models.FieldCondition(key=theirs, range=_ANY_NUMBER)
        return models.Filter(should=[by_field, models.Filter(must_not=[number])])

    def _caption(self, one: models.FieldCondition) -> models.Condition:
        found = _CAPTION_KEY.fullmatch(one.key)
        field = found["field"] if found else None
        if field == "text":
            by_text: list[models.Condition] = [
                one.model_copy(update={"key": path}) for path in self._texts
            ]
            return models.Filter(should=by_text) if by_text else _NOTHING
        if field == "source" and _holds(one, str(CaptionSource.METADATA)):
            return models.Filter(must_not=[self._without_captions()])
        return _NOTHING

    def _nested(self, one: models.NestedCondition) -> models.Condition:
        """Conditions on one caption; those on a list of the collection's own stay as they are."""
        if not self._is_ours(one.nested.key):
            return one
        inner = self._below_captions(one.nested.filter)
        return models.Filter(must=[inner, models.Filter(must_not=[self._without_captions()])])

    def _below_captions(self, given: models.Filter) -> models.Filter:
        """A filter on fields of a caption as one on the texts of the collection."""

        def each(conditions: Any) -> list[models.Condition] | None:
            if conditions is None:
                return None
            return [below(condition) for condition in qdrant.as_list(conditions)]

        def below(one: Any) -> models.Condition:
            if isinstance(one, models.Filter):
                return self._below_captions(one)
            if isinstance(one, models.FieldCondition):
                return self._caption(one.model_copy(update={"key": f"{CAPTIONS}[].{one.key}"}))
            if isinstance(one, models.IsEmptyCondition):
                return _always(one.is_empty.key not in ("text", "source"))
            return _NOTHING

        return models.Filter(
            must=each(given.must), should=each(given.should), must_not=each(given.must_not)
        )


def _text_paths(path: str, words: str | None) -> list[str]:
    """JSON paths under which the texts of a caption field may be: a text or a list of texts, or
    a list of objects with a text."""
    if words is not None and words.removesuffix("[].text") == path:
        return [json_path(path) + words[len(path) :]]
    return [json_path(path), f"{json_path(path)}[].text"]


def _empty(path: str) -> models.IsEmptyCondition:
    return models.IsEmptyCondition(is_empty=models.PayloadField(key=path))


def _always(holds: bool) -> models.Condition:
    return _EVERYTHING if holds else _NOTHING


def _unnamed_points(one: models.FieldCondition) -> models.Condition:
    """Those points whose path would be made of their id, which fulfil a condition on it."""
    if _holds(one, POINT):
        return _EVERYTHING
    match = one.match
    values: Sequence[object] = ()
    if isinstance(match, models.MatchAny):
        values = match.any
    elif isinstance(match, models.MatchValue):
        values = [match.value]
    elif isinstance(match, models.MatchText | models.MatchPhrase):
        values = [match.text if isinstance(match, models.MatchText) else match.phrase]
    ids = [point for value in values if (point := _point_of(str(value))) is not None]
    return models.HasIdCondition(has_id=ids)


def _point_of(path: str) -> models.ExtendedPointId | None:
    """The id in the path of a point whose payload names no file; None for another path."""
    if not path.startswith(POINT):
        return None
    try:
        return wire_id(as_id(path.removeprefix(POINT)))
    except StoreError:
        return None


def _holds(one: models.FieldCondition, value: str | float) -> bool:
    """Whether a value that all points have fulfils a condition; no value is a place."""
    if one.match is not None:
        return isinstance(value, str) and _matches(one.match, value)
    if isinstance(one.range, models.Range):
        return not isinstance(value, str) and _within(one.range, value)
    return one.values_count is not None and _within(one.values_count, 1)


def _within(bounds: models.Range | models.ValuesCount, value: float) -> bool:
    return (
        (bounds.lt is None or value < bounds.lt)
        and (bounds.lte is None or value <= bounds.lte)
        and (bounds.gt is None or value > bounds.gt)
        and (bounds.gte is None or value >= bounds.gte)
    )


def _matches(match: models.Match, value: str) -> bool:
    match match:
        case models.MatchValue():
            return bool(match.value == value)
        case models.MatchAny():
            return value in match.any
        case models.MatchExcept():
            return value not in match.except_
        case models.MatchText():
            return bool(wanted := _tokens(match.text)) and set(wanted) <= set(_tokens(value))
        case models.MatchTextAny():
            return bool(set(_tokens(match.text_any)) & set(_tokens(value)))
        case models.MatchPhrase():
            return bool(wanted := _tokens(match.phrase)) and wanted == _tokens(value)
        case models.MatchPrefix():
            return value.startswith(match.prefix)
        case models.MatchSubstring():
            return match.substring in value
    return False


def _tokens(text: str) -> list[str]:
    """The words of a text, as Qdrant divides it."""
    return [token.lower() for token in re.findall(r"[^\W_]+", text)]
