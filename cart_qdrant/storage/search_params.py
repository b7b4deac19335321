"""How a nearest-vector search is run, the same in both stores."""

from __future__ import annotations

from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.validation import OVERSAMPLING

EXACT_MULTIPLICATIONS = 10_000_000
"""Points are compared one by one while their number times the width stays under this (about 1
ms)."""
HNSW_EF = 256
"""Least beam width of a search by the graph. A server's own default is 100, and loses hits of deep
searches."""


def graph_params(limit: int, *, filtered: bool, ef: int = HNSW_EF) -> qdrant.SearchParams:
    """Parameters of a search by the graph.

    Args:
        limit: Hits that are asked for.
        filtered: Whether there is a filter: ACORN then steps through points that it excludes,
            where a plain search of the graph loses recall.
        ef: Least beam width.
    """
    return qdrant.SearchParams(
        hnsw_ef=max(ef, 2 * limit),
        acorn=qdrant.AcornSearchParams(enable=filtered, max_selectivity=1.0),
        quantization=qdrant.QuantizationSearchParams(rescore=True, oversampling=OVERSAMPLING),
    )
