"""Translates requests, ours or of `qdrant_client.models`, into those of the embedded engine.

Our classes and the client's have the same names and attributes, so that a class is recognised by
its name, and the client need not be imported, which takes half a second.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import qdrant_edge as edge

from cart_qdrant.arrays.point_ids import as_id, wire_id
from cart_qdrant.errors import StoreError, UsageError, first_line
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.requests import DEFAULT_LIMIT, as_list

if TYPE_CHECKING:
    from qdrant_client import models


def unsupported(thing: object) -> StoreError:
    """The error for a part of a request that the embedded engine lacks."""
    name = thing if isinstance(thing, str) else type(thing).__name__
    return StoreError(f"The embedded store does not support {name}.", "Use a Qdrant server.")


def edge_filter(filter: qdrant.AnyFilter | None) -> Any:
    """A filter in the classes of `qdrant_edge`.

    Raises:
        StoreError: The engine lacks a condition; it is named.
    """
    if filter is None:
        return None
    least: models.MinShould | None = filter.min_should
    return edge.Filter(
        must=_conditions(filter.must) or None,
        should=_conditions(filter.should) or None,  # nested, [] matches nothing
        must_not=_conditions(filter.must_not) or None,
        min_should=edge.MinShould(_conditions(least.conditions), least.min_count)
        if least
        else None,
    )


def _conditions(given: Any) -> list[Any]:
    return [_condition(c) for c in as_list(given)]


def _condition(condition: Any) -> Any:
    match type(condition).__name__:
        case "FieldCondition":
            return _field_condition(condition)
        case "Filter":
            return edge_filter(condition)
        case "HasIdCondition":
            # The engine's own answers hold UUIDs, which it takes as they are.
            return edge.HasIdCondition(
                {i if isinstance(i, uuid.UUID) else wire_id(as_id(i)) for i in condition.has_id}
            )
        case "HasVectorCondition":
            return edge.HasVectorCondition(condition.has_vector)
        case "IsEmptyCondition":
            with _readable(condition.is_empty.key) as key:
                return edge.IsEmptyCondition(key)
        case "IsNullCondition":
            with _readable(condition.is_null.key) as key:
                return edge.IsNullCondition(key)
        case "NestedCondition":
            nested = condition.nested
            inner = edge_filter(nested.filter)
            with _readable(nested.key) as key:
                return edge.NestedCondition(key, inner)
    raise unsupported(condition)


@contextmanager
def _readable(key: str) -> Iterator[str]:
    """Map the engine's error about a key, which it reads as a JSON path.

    Raises:
        UsageError: It cannot.
    """
    try:
        yield key
    except ValueError as error:
        raise UsageError(
            f"A condition on {key!r} cannot be read: {first_line(error)}.",
            "Name a payload field: year, camera.maker, tags[].",
        ) from error


def _given(thing: Any) -> dict[str, Any]:
    """The attributes that are not None, by name."""
    return {name: value for name, value in vars(thing).items() if value is not None}


def _field_condition(condition: Any) -> Any:
    given = _given(condition)
    key = given.pop("key")
    if len(given) != 1:
        raise StoreError(
            f"A condition on {key!r} has {sorted(given) or 'nothing'}; one is needed.",
            "Write one FieldCondition for each.",
        )
    ((kind, value),) = given.items()
    match type(value).__name__:
        case "Range":
            value = edge.RangeFloat(**_given(value))
        case "DatetimeRange":
            value = edge.RangeDateTime(**{side: t.isoformat() for side, t in _given(value).items()})
        case "ValuesCount":
            value = edge.ValuesCount(**_given(value))
        case "MatchValue" if isinstance(value.value, bool):
            # A Python bool becomes the integer 0 or 1 on its way into the engine.
            value = edge.MatchValue(np.bool_(value.value))  # type: ignore[arg-type]
        case "bool":
            pass
        case name if kind == "match":
            (operand,) = _given(value).values()
            value = getattr(edge, name)(operand)
        case _:
            raise unsupported(kind)
    with _readable(key):
        return edge.FieldCondition(key, **{kind: value})


Tune = Callable[[str, "qdrant.AnyFilter | None", int], qdrant.SearchParams]


def edge_query(request: qdrant.AnyQuery, tune: Tune) -> Any:
    """A search in the classes of `qdrant_edge`.

    Args:
        request: The search.
        tune: Gives parameters to a nearest-vector search that has none, from the name of its
            vector, its filter and its limit.

    Raises:
        StoreError: The engine lacks a part of the request; it is named.
    """
    given = _given(request)
    if "shard_key" in given:
        raise unsupported("shard_key")
    return edge.QueryRequest(
        offset=given.get("offset"),
        with_vector=given.get("with_vector", False),
        with_payload=_payload_selector(request.with_payload),
        **_search(given, request.filter, tune),
    )


def _search(given: dict[str, Any], scope: qdrant.AnyFilter | None, tune: Tune) -> dict[str, Any]:
    """Arguments that a request and a prefetch share; prefetches are filtered by `scope`, too."""
    if "lookup_from" in given:
        raise unsupported("lookup_from")
    limit = given.get("limit", DEFAULT_LIMIT)
    prefetches = []
    for prefetch in as_list(given.get("prefetch")):
        inner = prefetch.filter or scope
        if prefetch.filter and scope:
            inner = qdrant.Filter(must=[scope, prefetch.filter])
        prefetches.append(edge.Prefetch(**_search(_given(prefetch), inner, tune)))
    params, query, using = given.get("params"), given.get("query"), given.get("using")
    near = isinstance(query, list | np.ndarray) or type(query).__name__ == "NearestQuery"
    if params is None and not prefetches and near:
        params = tune(using or "", scope, limit)
    return {
        "limit": limit,
        "query": _query(query, using),
        "prefetches": prefetches or None,
        "filter": edge_filter(given.get("filter")),
        "score_threshold": given.get("score_threshold"),
        "params": _search_params(params),
    }


def _query(query: Any, using: str | None) -> Any:
    match type(query).__name__:
        case "NoneType":
            return None
        case "NearestQuery" if query.mmr is None:
            return _query(query.nearest, using)
        case "ndarray":
            return edge.Query.Nearest(query.tolist(), using)
        case "list" if all(map(_is_number, query)):
            return edge.Query.Nearest(list(map(float, query)), using)
        case "FusionQuery" if query.fusion == "rrf":
            return edge.Fusion.Rrf(2)
        case "FusionQuery" if query.fusion == "dbsf":
            return edge.Fusion.Dbsf()
        case "RrfQuery":
            return edge.Fusion.Rrf(query.rrf.k or 2, query.rrf.weights)
        case "TextQuery" if isinstance(query.text, str):
            return edge.TextQuery(using or "", query.text)
    by_id = isinstance(query, str | int | uuid.UUID)
    raise unsupported("a query by point id" if by_id else query)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _search_params(params: Any) -> Any:
    if params is None:
        return None
    if getattr(params, "idf", None) is not None:
        raise unsupported("SearchParams.idf")
    quantization = None
    if (given := params.quantization) is not None:
        quantization = edge.QuantizationSearchParams(
            bool(given.ignore), given.rescore, given.oversampling
        )
    acorn = None
    if params.acorn is not None:
        acorn = edge.AcornSearchParams(bool(params.acorn.enable), params.acorn.max_selectivity)
    return edge.SearchParams(
        hnsw_ef=params.hnsw_ef,
        exact=bool(params.exact),
        indexed_only=bool(params.indexed_only),
        acorn=acorn,
        quantization=quantization,
    )


def _payload_selector(selector: Any) -> Any:
    match type(selector).__name__:
        case "NoneType" | "bool":
            return bool(selector)
        case "list":
            return selector
        case "PayloadSelectorInclude":
            return edge.PayloadSelector.Include(selector.include)
        case "PayloadSelectorExclude":
            return edge.PayloadSelector.Exclude(selector.exclude)
    raise unsupported(selector)
