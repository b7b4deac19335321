"""`AttachedStore`: a collection that others fill, read as one of ours.

Everything above speaks of our payload fields and vectors; here they are those of the collection.
Only identifiers are written, and caption vectors where the collection was given room for them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qdrant_client import models

from cart_qdrant.errors import StoreError
from cart_qdrant.records import CaptionSource
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage import validation as common
from cart_qdrant.storage.attachment import Attachment
from cart_qdrant.storage.protocol import (
    CAPTION,
    CAPTION_TEXTS,
    MEDIA,
    CollectionInfo,
    CollectionSpec,
    Store,
)

NOTHING = models.HasIdCondition(has_id=[])
"""Holds for no point."""
_EVERYTHING = models.Filter(must_not=[NOTHING])
_POINT = "point:"
"""Begins the path of a point whose payload names no file; its id follows."""
_OURS = ("path", "modality", "start", "end", "captions", "hash")


class AttachedStore:
    """See `Store`.

    Args:
        inner: The collection as it is.
        how: Where in it is what.
    """

    def __init__(self, inner: Store, how: Attachment) -> None:
        self._inner, self._how = inner, how
        self._names = {MEDIA: how.vector}
        if how.caption_vector is not None:
            self._names[CAPTION] = how.caption_vector
        self._mine = re.compile(rf"{re.escape(how.key)}(_\d+)?")
        self._fields = {
            ours: common.json_path(theirs)
            for ours, theirs in (
                ("path", how.path), ("modality", how.kind), ("start", how.start), ("end", how.end),
            )
            if theirs is not None
        }  # fmt: skip
        if how.words is not None:
            base = how.words.removesuffix("[].text")
            self._fields[CAPTION_TEXTS] = common.json_path(base) + how.words[len(base) :]

    @property
    def location(self) -> str:
        """See `Store.location`."""
        return self._inner.location

    def exists(self) -> bool:
        """See `Store.exists`."""
        return self._inner.exists()

    def info(self) -> CollectionInfo:
        """See `Store.info`: of the collection as it is."""
        return self._inner.info()

    def create(self, spec: CollectionSpec) -> None:
        """Make the payload indexes that searches need and the collection lacks."""
        indexed = self.info().indexed
        mine = [key for key in spec.keywords if self._mine.fullmatch(key.split(".")[0])]
        theirs = [self._fields[key] for key in ("path", "modality") if key in self._fields]
        for field in (*mine, *theirs):
            if field not in indexed:
                self._inner.create_keyword_index(field)
        words = self._fields.get(CAPTION_TEXTS)
        if words is not None and words not in indexed:
            self._inner.create_text_index(words)

    def create_keyword_index(self, field: str) -> None:
        """See `Store.create_keyword_index`."""
        if field not in self.info().indexed:
            self._inner.create_keyword_index(field)

    def drop_index(self, field: str) -> None:
        """See `Store.drop_index`; refused for other fields than those of identifiers."""
        self._check_mine(field.split(".")[0])
        self._inner.drop_index(field)

    def create_text_index(self, field: str) -> None:
        """See `Store.create_text_index`."""
        if field not in self.info().indexed:
            self._inner.create_text_index(field)

    def add_vector(self, name: str, size: int) -> None:
        """See `Store.add_vector`."""
        self._inner.add_vector(name, size)

    def set_metadata(self, key: str, value: Mapping[str, Any]) -> None:
        """See `Store.set_metadata`."""
        self._inner.set_metadata(key, value)

    # Writing: identifiers and caption vectors alone

    def upsert(self, points: Sequence[models.PointStruct]) -> None:  # noqa: ARG002
        """Refused."""
        raise self._refusal("write points")

    def delete(self, ids: Sequence[str]) -> None:  # noqa: ARG002
        """Refused."""
        raise self._refusal("delete points")

    def set_payload(self, updates: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """See `Store.set_payload`; refused for other fields than those of identifiers."""
        for _, payload in updates:
            for key in payload:
                self._check_mine(key)
        self._inner.set_payload(updates)

    def delete_payload_key(self, key: str) -> None:
        """See `Store.delete_payload_key`; refused for other fields than those of identifiers."""
        self._check_mine(key)
        self._inner.delete_payload_key(key)

    def update_vectors(self, name: str, updates: Sequence[tuple[str, Sequence[float]]]) -> None:
        """See `Store.update_vectors`; refused for other vectors than those of captions."""
        if name != CAPTION or CAPTION not in self._names:
            raise self._refusal(f"write vectors {name!r}")
        self._inner.update_vectors(self._names[CAPTION], updates)

    def delete_vectors(self, name: str, ids: Sequence[str]) -> None:
        """See `Store.delete_vectors`; refused for other vectors than those of captions."""
        if name != CAPTION or CAPTION not in self._names:
            raise self._refusal(f"delete vectors {name!r}")
        self._inner.delete_vectors(self._names[CAPTION], ids)

    def _check_mine(self, key: str) -> None:
        if not self._mine.fullmatch(key):
            raise self._refusal(f"write the payload field {key!r}")

    def _refusal(self, what: str) -> StoreError:
        return StoreError(
            f"The collection at {self.location} is filled by others: this index may not {what}.",
            "Change the points where they come from, then `cartq sync`.",
        )

    # Reading

    def retrieve(
        self, ids: Sequence[str], *, with_payload: bool = True, with_vectors: Sequence[str] = ()
    ) -> list[qdrant.AnyRecord]:
        """See `Store.retrieve`."""
        rows = self._inner.retrieve(
            ids, with_payload=with_payload, with_vectors=self._theirs(with_vectors)
        )
        return [self._record(row, payload=with_payload) for row in rows]

    def scroll(
        self,
        filter: qdrant.AnyFilter | None = None,
        *,
        with_payload: bool | Sequence[str] = True,
        with_vectors: Sequence[str] = (),
        batch: int = 1000,
    ) -> Iterator[qdrant.AnyRecord]:
        """See `Store.scroll`."""
        wanted = self._wanted(with_payload)
        names = self._theirs(with_vectors)
        payload = with_payload is not False
        for row in self._inner.scroll(
            self._filter(qdrant.to_client(filter)),
            with_payload=wanted,
            with_vectors=names,
            batch=batch,
        ):
            yield self._record(row, payload=payload)

    def query_batch(self, requests: Sequence[qdrant.AnyQuery]) -> Sequence[Sequence[qdrant.AnyHit]]:
        """See `Store.query_batch`. What the collection has no room for answers nothing."""
        asked = [self._request(qdrant.to_client(request)) for request in requests]
        answers = iter(self._inner.query_batch([one for one in asked if one is not None]))
        out: list[Sequence[qdrant.AnyHit]] = []
        for request, one in zip(requests, asked, strict=True):
            points = [] if one is None else next(answers)
            if request.with_payload:
                points = [
                    qdrant.ScoredPoint(
                        id=str(point.id),
                        score=point.score,
                        payload=self._payload(point.id, point.payload),
                        vector=point.vector,
                    )
                    for point in points
                ]
            out.append(points)
        return out

    def query_ids(self, requests: Sequence[qdrant.AnyQuery]) -> list[qdrant.FoundIds]:
        """See `Store.query_ids`."""
        return common.ids_alone(self.query_batch(requests))

    def count(self, filter: qdrant.AnyFilter | None = None) -> int:
        """See `Store.count`."""
        return self._inner.count(self._filter(qdrant.to_client(filter)))

    def optimize(self) -> None:
        """Nothing: that is for those who fill it."""

    def flush(self) -> None:
        """See `Store.flush`."""
        self._inner.flush()

    def close(self) -> None:
        """See `Store.close`."""
        self._inner.close()

    # Theirs and ours

    def _theirs(self, names: Sequence[str]) -> list[str]:
        return [self._names[name] for name in names if name in self._names]

    def _wanted(self, with_payload: bool | Sequence[str]) -> bool | list[str]:
        """Fields of theirs that hold what is asked for."""
        if isinstance(with_payload, bool):
            return with_payload
        wanted: list[str] = []
        for key in with_payload:
            if key == "captions":
                wanted += map(common.json_path, self._how.captions)
            elif key in self._fields:
                wanted.append(self._fields[key])
            elif key not in _OURS:
                wanted.append(key)
        return wanted or False

    def _record(self, row: qdrant.AnyRecord, *, payload: bool) -> qdrant.Record:
        vector = row.vector
        if isinstance(vector, Mapping):
            vector = {
                ours: vector[theirs] for ours, theirs in self._names.items() if theirs in vector
            }
        return qdrant.Record(
            id=str(row.id),
            payload=self._payload(row.id, row.payload) if payload else None,
            vector=vector,
        )

    def _payload(self, point: object, found: Mapping[str, Any] | None) -> dict[str, Any]:
        """A payload of theirs with our fields laid over it."""
        how, theirs = self._how, found or {}
        path = value_at(theirs, how.path)
        return {
            **theirs,
            "path": f"{_POINT}{point}" if path is None else str(path),
            "modality": how.modality if how.kind is None else str(value_at(theirs, how.kind)),
            "start": _seconds(value_at(theirs, how.start)),
            "end": _seconds(value_at(theirs, how.end)),
            "captions": [
                {"text": text, "source": str(CaptionSource.METADATA)}
                for text in texts_of(theirs, how.captions)
            ],
        }

    def _request(self, request: models.QueryRequest) -> models.QueryRequest | None:
        using = request.using
        if using == CAPTION_TEXTS:
            name = self._fields.get(CAPTION_TEXTS)
        elif using is None:
            name = None
        else:
            name = self._names.get(using)
        if using is not None and name is None:
            return None
        payload = request.with_payload
        return request.model_copy(
            update={
                "using": name or None,
                "filter": self._filter(request.filter),
                "with_payload": self._wanted(payload) if isinstance(payload, list) else payload,
            }
        )

    def _filter(self, given: models.Filter | None) -> models.Filter | None:
        if given is None:
            return None

        def each(conditions: Any) -> list[models.Condition] | None:
            if conditions is None:
                return None
            return [self._condition(one) for one in common.as_list(conditions)]

        least = given.min_should
        if least is not None:
            least = models.MinShould(
                conditions=each(least.conditions) or [], min_count=least.min_count
            )
        return models.Filter(
            must=each(given.must), should=each(given.should), must_not=each(given.must_not),
            min_should=least,
        )  # fmt: skip

    def _condition(self, one: models.Condition) -> models.Condition:
        match one:
            case models.Filter():
                return self._filter(one) or _EVERYTHING
            case models.HasIdCondition():
                ids = [common.wire_id(common.as_id(i)) for i in one.has_id]
                return models.HasIdCondition(has_id=ids)
            case models.HasVectorCondition():
                if one.has_vector == CAPTION and CAPTION not in self._names:
                    return NOTHING
                name = self._names.get(one.has_vector, one.has_vector)
                return models.HasVectorCondition(has_vector=name)
            case models.IsEmptyCondition():
                if one.is_empty.key == "hash":  # what tells ours from others' in our collections
                    return models.Filter(must_not=[self._ours()])
                key = self._fields.get(one.is_empty.key, one.is_empty.key)
                return models.IsEmptyCondition(is_empty=models.PayloadField(key=key))
            case models.FieldCondition():
                return self._field(one)
        return one

    def _field(self, one: models.FieldCondition) -> models.Condition:
        values = _values(one.match)
        if one.key == "path" and values is not None:
            return self._paths([str(value) for value in values])
        if one.key in self._fields:
            return one.model_copy(update={"key": self._fields[one.key]})
        if one.key == "modality" and values is not None:
            return _EVERYTHING if self._how.modality in values else NOTHING
        return one

    def _paths(self, values: Sequence[str]) -> models.Condition:
        """Points of these files, and those without one whose id stands for it."""
        ids = [point for value in values if (point := _point_of(value)) is not None]
        named: list[models.Condition] = [models.HasIdCondition(has_id=ids)]
        theirs = self._fields.get("path")
        if theirs is None:
            return named[0]
        named.append(models.IsEmptyCondition(is_empty=models.PayloadField(key=theirs)))
        match = models.MatchAny(any=list(values))
        return models.Filter(
            should=[models.FieldCondition(key=theirs, match=match), models.Filter(must=named)]
        )

    def _ours(self) -> models.Filter:
        """Points that have the vector, and are of a kind that is known."""
        must: list[models.Condition] = [models.HasVectorCondition(has_vector=self._how.vector)]
        if "modality" in self._fields:
            match = models.MatchAny(any=self._how.kinds)
            must.append(models.FieldCondition(key=self._fields["modality"], match=match))
        return models.Filter(must=must)


def _values(match: models.Match | None) -> list[object] | None:
    """The values that a match lists."""
    if isinstance(match, models.MatchValue):
        return [match.value]
    return list(match.any) if isinstance(match, models.MatchAny) else None


def _point_of(path: str) -> models.ExtendedPointId | None:
    """The id in the path of a point whose payload names no file."""
    if not path.startswith(_POINT):
        return None
    try:
        return common.wire_id(common.as_id(path.removeprefix(_POINT)))
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
    """Texts at some paths of a payload, each once: of a text, of a list of texts, or of a list of
    objects with a `text`."""
    found: dict[str, None] = {}
    for path in paths:
        for one in common.as_list(value_at(payload, path)):
            text = one.get("text") if isinstance(one, Mapping) else one
            if isinstance(text, str) and (clean := " ".join(text.split())):
                found.setdefault(clean)
    return list(found)
