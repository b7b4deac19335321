"""`qdrant_client.models` requests as those of the embedded engine (`qdrant_edge`)."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
from qdrant_client import models

from cart_qdrant.errors import StoreError
from cart_qdrant.index.store_common import DEFAULT_LIMIT, as_id, as_list, wire_id


def unsupported(thing: object) -> StoreError:
    """The error for what the embedded engine cannot be asked."""
    name = thing if isinstance(thing, str) else type(thing).__name__
    return StoreError(f"The embedded store does not support {name}.", "Use a Qdrant server.")


def edge_filter(filter: models.Filter | None) -> Any:
    """A `models.Filter` as the `qdrant_edge` one.

    Raises:
        StoreError: A condition that the engine lacks; it is named.
    """
    import qdrant_edge as edge

    if filter is None:
        return None
    least = filter.min_should
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


def _condition(condition: models.Condition) -> Any:
    import qdrant_edge as edge

    match condition:
        case models.FieldCondition():
            return _field_condition(condition)
        case models.Filter():
            return edge_filter(condition)
        case models.HasIdCondition():
            return edge.HasIdCondition({wire_id(as_id(i)) for i in condition.has_id})
        case models.HasVectorCondition():
            return edge.HasVectorCondition(condition.has_vector)
        case models.IsEmptyCondition():
            return edge.IsEmptyCondition(condition.is_empty.key)
        case models.IsNullCondition():
            return edge.IsNullCondition(condition.is_null.key)
        case models.NestedCondition():
            nested = condition.nested
            return edge.NestedCondition(nested.key, edge_filter(nested.filter))
    raise unsupported(condition)


def _field_condition(condition: models.FieldCondition) -> Any:
    import qdrant_edge as edge

    given = condition.model_dump(exclude_none=True, exclude={"key"})
    if len(given) != 1:
        raise StoreError(
            f"A condition on {condition.key!r} has {sorted(given) or 'nothing'}; one is needed.",
            "Write one FieldCondition for each.",
        )
    (kind,) = given
    value = getattr(condition, kind)
    match value:
        case models.Range():
            value = edge.RangeFloat(**given[kind])
        case models.DatetimeRange():
            value = edge.RangeDateTime(**{side: t.isoformat() for side, t in given[kind].items()})
        case models.ValuesCount():
            value = edge.ValuesCount(**given[kind])
        case models.MatchValue(value=bool(truth)):
            # A Python bool becomes the integer 0 or 1 on its way into the engine.
            value = edge.MatchValue(np.bool_(truth))  # type: ignore[arg-type]
        case bool():
            pass
        case _ if kind == "match":
            (operand,) = given[kind].values()
            value = getattr(edge, type(value).__name__)(operand)
        case _:
            raise unsupported(kind)
    return edge.FieldCondition(condition.key, **{kind: value})


Tune = Callable[[str, models.Filter | None, int], models.SearchParams]


def edge_query(request: models.QueryRequest, tune: Tune) -> Any:
    """A `models.QueryRequest` as the `qdrant_edge` one.

    Args:
        request: The search.
        tune: Gives the parameters of a nearest-vector search without any, from the name of its
            vector, its filter and its limit.

    Raises:
        StoreError: Something that the engine lacks; it is named.
    """
    import qdrant_edge as edge

    if request.shard_key is not None:
        raise unsupported("shard_key")
    return edge.QueryRequest(
        offset=request.offset,
        with_vector=request.with_vector or False,
        with_payload=_payload_selector(request.with_payload),
        **_search(request, request.filter, tune),
    )


def _search(
    request: models.QueryRequest | models.Prefetch, scope: models.Filter | None, tune: Tune
) -> dict[str, Any]:
    """What a request and a prefetch have in common; `scope` holds for all prefetches too."""
    import qdrant_edge as edge

    if request.lookup_from is not None:
        raise unsupported("lookup_from")
    limit = DEFAULT_LIMIT if request.limit is None else request.limit
    prefetches = []
    for prefetch in as_list(request.prefetch):
        inner = prefetch.filter or scope
        if prefetch.filter and scope:
            inner = models.Filter(must=[scope, prefetch.filter])
        prefetches.append(edge.Prefetch(**_search(prefetch, inner, tune)))
    params = request.params
    if params is None and not prefetches and isinstance(request.query, list | models.NearestQuery):
        params = tune(request.using or "", scope, limit)
    return {
        "limit": limit,
        "query": _query(request.query, request.using),
        "prefetches": prefetches or None,
        "filter": edge_filter(request.filter),
        "score_threshold": request.score_threshold,
        "params": _search_params(params),
    }


def _query(query: models.QueryInterface | None, using: str | None) -> Any:
    import qdrant_edge as edge

    match query:
        case None:
            return None
        case models.NearestQuery(mmr=None):
            return _query(query.nearest, using)
        case [*values] if all(isinstance(v, int | float) for v in values):
            return edge.Query.Nearest([float(v) for v in values], using)  # type: ignore[arg-type]
        case models.FusionQuery(fusion=models.Fusion.RRF):
            return edge.Fusion.Rrf(2)
        case models.FusionQuery(fusion=models.Fusion.DBSF):
            return edge.Fusion.Dbsf()
        case models.RrfQuery():
            return edge.Fusion.Rrf(query.rrf.k or 2, query.rrf.weights)
        case models.TextQuery(text=str(text)):
            return edge.TextQuery(using or "", text)
    by_id = isinstance(query, str | int | uuid.UUID)
    raise unsupported("a query by point id" if by_id else query)


def _search_params(params: models.SearchParams | None) -> Any:
    import qdrant_edge as edge

    if params is None:
        return None
    for name in ("quantization", "idf"):
        if getattr(params, name, None) is not None:
            raise unsupported(f"SearchParams.{name}")
    acorn = None
    if params.acorn is not None:
        acorn = edge.AcornSearchParams(bool(params.acorn.enable), params.acorn.max_selectivity)
    return edge.SearchParams(
        hnsw_ef=params.hnsw_ef,
        exact=bool(params.exact),
        indexed_only=bool(params.indexed_only),
        acorn=acorn,
    )


def _payload_selector(selector: Any) -> Any:
    import qdrant_edge as edge

    match selector:
        case None | bool():
            return bool(selector)
        case list():
            return selector
        case models.PayloadSelectorInclude():
            return edge.PayloadSelector.Include(selector.include)
        case models.PayloadSelectorExclude():
            return edge.PayloadSelector.Exclude(selector.exclude)
    raise unsupported(selector)
