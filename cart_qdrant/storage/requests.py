"""Requests to Qdrant and its answers, as plain classes with the names of `qdrant_client.models`.

Importing the client takes half a second, and its classes check each value that they are given: a
search through the embedded engine needs neither. Stores take these classes and the client's;
`to_client` turns one into the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from datetime import datetime

    from qdrant_client import models

    AnyFilter: TypeAlias = "Filter | models.Filter"
    AnyCondition: TypeAlias = "Condition | models.Condition"
    AnyQuery: TypeAlias = "QueryRequest | models.QueryRequest"
    AnyRecord: TypeAlias = "Record | models.Record"
    AnyHit: TypeAlias = "ScoredPoint | models.ScoredPoint"


T = TypeVar("T")


@dataclass(kw_only=True)
class MatchValue:
    """A field has this value, alone or among others."""

    value: str | int | bool


@dataclass(kw_only=True)
class MatchAny:
    """A field has one of these values."""

    any: Sequence[str] | Sequence[int]


@dataclass(kw_only=True)
class MatchText:
    """A text field has all of these words."""

    text: str


@dataclass(kw_only=True)
class Range:
    """A number lies within bounds; a bound that is None does not limit it."""

    lt: float | None = None
    gt: float | None = None
    gte: float | None = None
    lte: float | None = None


@dataclass(kw_only=True)
class DatetimeRange:
    """An instant lies within bounds; a bound that is None does not limit it."""

    lt: datetime | None = None
    gt: datetime | None = None
    gte: datetime | None = None
    lte: datetime | None = None


@dataclass(kw_only=True)
class FieldCondition:
    """One payload field has a value, or lies within bounds."""

    key: str
    match: MatchValue | MatchAny | MatchText | None = None
    range: Range | DatetimeRange | None = None


@dataclass(kw_only=True)
class HasIdCondition:
    """A point has one of these ids."""

    has_id: Sequence[str | int]


@dataclass(kw_only=True)
class HasVectorCondition:
    """A point has this vector."""

    has_vector: str


@dataclass(kw_only=True)
class PayloadField:
    """The name of a payload field."""

    key: str


@dataclass(kw_only=True)
class IsEmptyCondition:
    """A point lacks this field, or has nothing in it."""

    is_empty: PayloadField


@dataclass(kw_only=True)
class Filter:
    """Conditions of which all (`must`), at least one (`should`), or none (`must_not`) hold."""

    must: Sequence[AnyCondition] | None = None
    should: Sequence[AnyCondition] | None = None
    must_not: Sequence[AnyCondition] | None = None
    min_should: None = None


Condition: TypeAlias = (
    FieldCondition | HasIdCondition | HasVectorCondition | IsEmptyCondition | Filter
)


@dataclass(kw_only=True)
class TextQuery:
    """A text by whose words a text index ranks points."""

    text: str


@dataclass(kw_only=True)
class AcornSearchParams:
    """Graph search that steps through points which the filter excludes."""

    enable: bool = False
    max_selectivity: float | None = None


@dataclass(kw_only=True)
class QuantizationSearchParams:
    """Whether a search uses quantised vectors, and scores its hits by the vectors themselves."""

    ignore: bool = False
    rescore: bool | None = None
    oversampling: float | None = None


@dataclass(kw_only=True)
class SearchParams:
    """How a nearest-vector search is run."""

    hnsw_ef: int | None = None
    exact: bool = False
    indexed_only: bool = False
    acorn: AcornSearchParams | None = None
    quantization: QuantizationSearchParams | None = None


@dataclass(kw_only=True)
class QueryRequest:
    """A search. Without a query, it finds all points that the filter lets through."""

    query: list[float] | npt.NDArray[np.float32] | TextQuery | None = None
    using: str | None = None
    filter: AnyFilter | None = None
    limit: int | None = None
    params: SearchParams | None = None
    with_payload: bool | Sequence[str] | None = None


@dataclass(kw_only=True, slots=True)
class PointStruct:
    """A point to write: its id, vectors by name, and payload."""

    id: str
    vector: Any
    payload: dict[str, Any] | None = None


@dataclass(kw_only=True, slots=True)
class Record:
    """A point that was read by its id or by scrolling."""

    id: str
    payload: dict[str, Any] | None = None
    vector: Any = None


@dataclass(kw_only=True, slots=True)
class ScoredPoint:
    """A point that a search found."""

    id: str
    score: float
    payload: dict[str, Any] | None = None
    vector: Any = None


@dataclass(kw_only=True, slots=True)
class FoundIds:
    """Points that a search found, without payloads, best first.

    Attributes:
        ids: Ids as the store gives them: UUIDs, texts or numbers.
        scores: The score of each.
    """

    ids: list[Any]
    scores: list[float]


DEFAULT_LIMIT = 10
"""Number of hits of a request that has no limit, as Qdrant has it."""


def as_list(value: T | list[T] | None) -> list[T]:
    """What a request holds in a place where Qdrant takes nothing, one thing or a list of them."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def ids_alone(answers: Sequence[Sequence[AnyHit]]) -> list[FoundIds]:
    """Ids and scores of the answers of several searches."""
    return [
        FoundIds(ids=[hit.id for hit in hits], scores=[hit.score for hit in hits])
        for hits in answers
    ]


def to_client(thing: Any) -> Any:
    """A request in the client's classes; an object of the client stays as it is."""
    if isinstance(thing, list | tuple):
        return [to_client(one) for one in thing]
    if isinstance(thing, np.ndarray):
        return thing.tolist()
    if not dataclasses.is_dataclass(thing):
        return thing
    from qdrant_client import models

    return getattr(models, type(thing).__name__)(
        **{name: to_client(value) for name, value in vars(thing).items() if value is not None}
    )
