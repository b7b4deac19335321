"""Parameters of searches on a server: those of the embedded store, within the server's limits."""

from __future__ import annotations

from dataclasses import dataclass

from qdrant_client import models

from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.requests import DEFAULT_LIMIT
from cart_qdrant.storage.search_params import EXACT_MULTIPLICATIONS, graph_params


@dataclass(frozen=True, slots=True)
class SearchLimits:
    """What a collection is searched with.

    Attributes:
        points: Points that it has, about.
        exact: Whether its strict mode lets points be compared one by one.
        ef: Largest beam width that its strict mode allows; None for any.
        oversampling: Largest oversampling that it allows; None for any.
    """

    points: int
    exact: bool = True
    ef: int | None = None
    oversampling: float | None = None

    @classmethod
    def of(cls, found: models.CollectionInfo) -> SearchLimits:
        """The limits that a server tells of a collection."""
        points = found.points_count or 0
        strict = found.config.strict_mode_config
        if strict is None or not strict.enabled:
            return cls(points)
        return cls(
            points, strict.search_allow_exact is not False, strict.search_max_hnsw_ef,
            strict.search_max_oversampling,
        )  # fmt: skip


_EXACT = models.SearchParams(exact=True, quantization=models.QuantizationSearchParams(ignore=True))


def tuned(
    request: models.QueryRequest, width: int | None, limits: SearchLimits
) -> models.QueryRequest:
    """A nearest-vector search with its parameters: exact in a small collection, else by the graph.

    Its hits are scored by the vectors themselves, where the collection has int8, too. A search that
    is not by a vector stays as it is, and so does one with parameters that the server allows.

    Args:
        request: The search.
        width: Width of its vector; None where it is by none.
        limits: Of the collection.
    """
    asked = request.params
    if not isinstance(request.query, list) or width is None:
        return request
    if asked is not None and (limits.exact or not asked.exact):
        return request
    if limits.exact and limits.points * width <= EXACT_MULTIPLICATIONS:
        return request.model_copy(update={"params": _EXACT})
    made = graph_params(request.limit or DEFAULT_LIMIT, filtered=request.filter is not None)
    params: models.SearchParams = qdrant.to_client(made)
    if limits.ef is not None and params.hnsw_ef is not None:
        params.hnsw_ef = min(params.hnsw_ef, limits.ef)
    if limits.oversampling is not None and params.quantization is not None:
        params.quantization.oversampling = limits.oversampling
    return request.model_copy(update={"params": params})
