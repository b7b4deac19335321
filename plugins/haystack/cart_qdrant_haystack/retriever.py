"""`CartQdrantRetriever`: a component of Haystack that searches an index."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from haystack import Document, component, default_from_dict, default_to_dict

from cart_qdrant.records import Hit
from cart_qdrant.search.filters import merge_filters
from cart_qdrant.search.lanes import Lane
from cart_qdrant.search.options import SearchOptions
from cart_qdrant.search.retriever import Retriever
from cart_qdrant_haystack.filters import to_filter


def to_document(hit: Hit) -> Document:
    """Convert a hit to a document; its content is the caption, or the path where there is none."""
    return Document(id=hit.id, content=hit.text, meta=hit.metadata(), score=hit.score)


@component
class CartQdrantRetriever:
    """Finds segments of media by text.

    What a search remarks on its answer is logged under `cart_qdrant`: as a warning where nothing is
    found.

    Args:
        index: Folder of the index, which `warm_up` or the first run opens.
        top_k: Number of documents that a query returns.
        lane: Lane that answers, as in `cart_qdrant.Retriever.search`.
        filters: Filter of Haystack on the payload; the filters of a run must hold beside it.
        retriever: An open `Retriever` to use instead; the caller closes it. It is not serialised.
    """

    def __init__(
        self,
        index: str = ".cartq",
        top_k: int = 10,
        lane: Lane = "auto",
        filters: dict[str, Any] | None = None,
        retriever: Retriever | None = None,
    ) -> None:
        self.index, self.top_k, self.lane, self.filters = index, top_k, lane, filters
        self._only = to_filter(filters)
        self._given, self._retriever = retriever, retriever
        self._opening = threading.Lock()

    def warm_up(self) -> None:
        """Open the index before the first run."""
        self._opened()

    def close(self) -> None:
        """Close the index if this component opened it; the next run opens it again."""
        if self._retriever is not None and self._retriever is not self._given:
            self._retriever.close()
            self._retriever = None

    def to_dict(self) -> dict[str, Any]:
        """The component as a dictionary, which the file of a pipeline holds."""
        found: dict[str, Any] = default_to_dict(
            self, index=self.index, top_k=self.top_k, lane=self.lane, filters=self.filters
        )
        return found

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CartQdrantRetriever:
        """The component of such a dictionary, the inverse of `to_dict`."""
        made: CartQdrantRetriever = default_from_dict(cls, data)
        return made

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """Documents of a query, best first."""
        found = self._opened().search(query, **self._options(filters, top_k))
        found.log_remarks()
        return {"documents": [to_document(hit) for hit in found.hits]}

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """Documents of a query, best first, without blocking the event loop."""
        retriever = await asyncio.to_thread(self._opened)
        found = await retriever.asearch(query, **self._options(filters, top_k))
        found.log_remarks()
        return {"documents": [to_document(hit) for hit in found.hits]}

    def _opened(self) -> Retriever:
        with self._opening:
            if self._retriever is None:
                self._retriever = Retriever.open(self.index)
            return self._retriever

    def _options(self, filters: dict[str, Any] | None, top_k: int | None) -> SearchOptions:
        only = merge_filters(self._only, to_filter(filters))
        return {"k": self.top_k if top_k is None else top_k, "lane": self.lane, "filter": only}
