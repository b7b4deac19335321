"""`CartQdrantRetriever`: a retriever of LangChain that searches an index."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig
from pydantic import ConfigDict, Field, ValidationError, field_validator
from qdrant_client import models

from cart_qdrant.errors import CartError, UsageError
from cart_qdrant.records import Hit
from cart_qdrant.search.lanes import Lane
from cart_qdrant.search.result import SearchResult
from cart_qdrant.search.retriever import Retriever

_batch_results: ContextVar[tuple[int, Mapping[str, SearchResult]]] = ContextVar(
    "_batch_results", default=(0, {})
)
"""`id` of the retriever that searches a batch, and the results of the batch by query."""


def to_document(hit: Hit) -> Document:
    """Convert a hit to a document; its content is the caption, or the path where there is none."""
    return Document(
        id=hit.id,
        page_content=hit.text,
        metadata={**hit.metadata(), "score": hit.score},
    )


class CartQdrantRetriever(BaseRetriever):
    """Finds segments of media by text.

    What a search remarks on its answer is logged under `cart_qdrant`: as a warning where nothing is
    found.

    Attributes:
        retriever: An open `Retriever`, which the caller closes.
        k: Number of documents that a query returns; `invoke(query, k=3)` overrides it once, and
            `invoke(query, offset=10)` passes over the best ten.
        lane: Lane that answers, as in `cart_qdrant.Retriever.search`.
        filter: A `qdrant_client.models.Filter`, or its dictionary, which every lane obeys.
        score_threshold: Documents of a lower score are left out. Scores of different lanes are not
            comparable: those of `auto` are log-probabilities.
        min_confidence: Documents of a lower confidence are left out (lanes `auto` and `fused`).
    """

    retriever: Retriever
    k: int = Field(default=10, ge=1)
    lane: Lane = "auto"
    filter: models.Filter | None = None
    score_threshold: float | None = None
    min_confidence: float = 0.0

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    @field_validator("filter", mode="before")
    @classmethod
    def _as_filter(cls, given: object) -> object:
        """Convert a dictionary to a filter, so that an invalid one fails before a search."""
        if not isinstance(given, dict):
            return given
        try:
            return models.Filter.model_validate(given)
        except ValidationError as error:
            raise ValueError(f"filter is no Qdrant filter: {error}") from error

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,  # noqa: ARG002 - of the interface
        **kwargs: Any,
    ) -> list[Document]:
        found = self._batch_result(query)
        if found is None:
            found = self.retriever.search(query, **self._options(kwargs))
        return self._documents(found)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,  # noqa: ARG002 - of the interface
        **kwargs: Any,
    ) -> list[Document]:
        found = self._batch_result(query)
        if found is None:
            found = await self.retriever.asearch(query, **self._options(kwargs))
        return self._documents(found)

    def batch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[Document]]:
        """Documents of many queries, searched together; callbacks see one run for each query."""
        try:
            found = self.retriever.search_many(inputs, **self._options(kwargs))
        except CartError:
            found = []  # each run then searches by itself, and raises its own error
        with self._sharing(found):
            return super().batch(inputs, config, return_exceptions=return_exceptions, **kwargs)

    async def abatch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[Document]]:
        """Documents of many queries like `batch`, without blocking the event loop."""
        try:
            found = await self.retriever.asearch_many(inputs, **self._options(kwargs))
        except CartError:
            found = []
        with self._sharing(found):
            return await super().abatch(
                inputs, config, return_exceptions=return_exceptions, **kwargs
            )

    @contextmanager
    def _sharing(self, found: Sequence[SearchResult]) -> Iterator[None]:
        """Give these results to the runs inside, which search only for other queries."""
        token = _batch_results.set((id(self), {result.query: result for result in found}))
        try:
            yield
        finally:
            _batch_results.reset(token)

    def _batch_result(self, query: str) -> SearchResult | None:
        owner, found = _batch_results.get()
        return found.get(query) if owner == id(self) else None

    def _options(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments of a search.

        Raises:
            UsageError: The caller gives an argument other than `k` and `offset`.
        """
        unknown = sorted(set(kwargs) - {"k", "offset"})
        if unknown:
            raise UsageError(
                f"CartQdrantRetriever is called with {', '.join(unknown)}, but takes only k and "
                "offset.",
                "Set other options when the retriever is made.",
            )
        return {
            "k": kwargs.get("k", self.k), "lane": self.lane, "filter": self.filter,
            "min_confidence": self.min_confidence, "offset": kwargs.get("offset", 0),
        }  # fmt: skip

    def _documents(self, found: SearchResult) -> list[Document]:
        found.log_remarks()
        lowest = self.score_threshold
        return [to_document(hit) for hit in found.hits if lowest is None or hit.score >= lowest]
