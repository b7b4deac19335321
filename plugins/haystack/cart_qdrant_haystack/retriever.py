"""The component."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from cart_qdrant.errors import MissingExtraError
from cart_qdrant.records import Hit
from cart_qdrant.search.filters import merge_filters
from cart_qdrant.search.lanes import Lane
from cart_qdrant.search.options import SearchOptions
from cart_qdrant.search.retriever import Retriever
from cart_qdrant_haystack.filters import to_filter

try:
    from haystack import Document, component, default_from_dict, default_to_dict
except ImportError as error:
    raise MissingExtraError(
        "Haystack is not installed.", 'pip install "cart-qdrant[haystack]"'
    ) from error


def to_document(hit: Hit) -> Document:
    """A hit as a document: its best caption, or its path where it has none."""
    return Document(
        id=hit.id, content=hit.caption or hit.path, meta=hit.metadata(), score=hit.score
    )


@component
class CartQdrantRetriever:
    """Finds segments of media by text.

    Args:
        index: Folder of the index; it is opened by the first run, or `warm_up`.
        top_k: Documents returned.
        lane: Who answers, see `cart_qdrant.Retriever.search`.
        filters: Condition on the payload, in Haystack's form; those of a run join it.
        retriever: An open engine to use instead; it is not serialised, and the caller closes it.
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
        self._given, self._engine = retriever, retriever
        self._opening = threading.Lock()

    def warm_up(self) -> None:
        """Open the index."""
        self._opened()

    def close(self) -> None:
        """Close the index that this component has opened; the next run opens it again."""
        if self._engine is not None and self._engine is not self._given:
            self._engine.close()
            self._engine = None

    def to_dict(self) -> dict[str, Any]:
        """The component for a pipeline's file."""
        found: dict[str, Any] = default_to_dict(
            self, index=self.index, top_k=self.top_k, lane=self.lane, filters=self.filters
        )
        return found

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CartQdrantRetriever:
        """Inverse of `to_dict`."""
        made: CartQdrantRetriever = default_from_dict(cls, data)
        return made

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """Documents of a query, best first."""
        found = self._opened().search(query, **self._wanted(filters, top_k))
        return {"documents": [to_document(hit) for hit in found.hits]}

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """`run`, without blocking the event loop."""
        engine = await asyncio.to_thread(self._opened)
        found = await engine.asearch(query, **self._wanted(filters, top_k))
        return {"documents": [to_document(hit) for hit in found.hits]}

    def _opened(self) -> Retriever:
        with self._opening:
            if self._engine is None:
                self._engine = Retriever.open(self.index)
            return self._engine

    def _wanted(self, filters: dict[str, Any] | None, top_k: int | None) -> SearchOptions:
        only = merge_filters(self._only, to_filter(filters))
        return {"k": self.top_k if top_k is None else top_k, "lane": self.lane, "filter": only}
