"""`CartQdrantRM`: a retrieval model of DSPy that searches an index."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dspy
from qdrant_client import models

from cart_qdrant.records import Hit
from cart_qdrant.search.lanes import Lane
from cart_qdrant.search.options import SearchOptions
from cart_qdrant.search.result import SearchResult
from cart_qdrant.search.retriever import Retriever


class Passages(dspy.Prediction):  # type: ignore[misc]
    """Hits of one query: `passages` (texts for a prompt), `hits`, `scores`, and `remarks` on the
    answer, which are logged under `cart_qdrant`, too: as a warning where nothing is found.

    Iterating gives predictions with `long_text`, which is what `dspy.Retrieve` reads from an `rm`.
    """

    def __iter__(self) -> Iterator[Any]:
        return (dspy.Prediction(long_text=text) for text in self.passages)


def to_passage(hit: Hit) -> str:
    """The text of a hit for a prompt: its path, its seconds and its caption."""
    where = hit.path if hit.end <= hit.start else f"{hit.path} {hit.start:.1f}-{hit.end:.1f} s"
    return f"{where}: {hit.caption}" if hit.caption else where


class CartQdrantRM:
    """Finds segments of media by text; for `dspy.configure(rm=...)`, a module, or a tool.

    Args:
        retriever: An open `Retriever`, which the caller closes.
        k: Number of passages that a query returns.
        lane: Lane that answers, as in `cart_qdrant.Retriever.search`.
        filter: Condition on the payload, which every lane obeys.
    """

    def __init__(
        self,
        retriever: Retriever,
        *,
        k: int = 5,
        lane: Lane = "auto",
        filter: models.Filter | None = None,
    ) -> None:
        self._retriever, self.k, self._lane, self._filter = retriever, k, lane, filter

    def __call__(self, query: str, k: int | None = None) -> Passages:
        """Passages of a query, best first."""
        return self.forward(query, k)

    def forward(self, query: str, k: int | None = None) -> Passages:
        """Passages of a query, best first."""
        return _passages(self._retriever.search(query, **self._options(k)))

    async def aforward(self, query: str, k: int | None = None) -> Passages:
        """Passages of a query, best first, without blocking the event loop."""
        return _passages(await self._retriever.asearch(query, **self._options(k)))

    def _options(self, k: int | None) -> SearchOptions:
        return {"k": self.k if k is None else k, "lane": self._lane, "filter": self._filter}


def _passages(found: SearchResult) -> Passages:
    found.log_remarks()
    return Passages(
        passages=[to_passage(hit) for hit in found.hits],
        hits=[hit.to_json() for hit in found.hits],
        scores=[hit.score for hit in found.hits],
        remarks=list(found.remarks),
    )
