"""The retriever."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from pydantic import ConfigDict, Field, ValidationError, field_validator
from qdrant_client import models

from cart_qdrant.errors import CartError, MissingExtraError, UsageError
from cart_qdrant.records import Hit
from cart_qdrant.search.lanes import Lane
from cart_qdrant.search.result import SearchResult
from cart_qdrant.search.retriever import Retriever

try:
    from langchain_core.callbacks import (
        AsyncCallbackManagerForRetrieverRun,
        CallbackManagerForRetrieverRun,
    )
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever
    from langchain_core.runnables import RunnableConfig
except ImportError as error:
    raise MissingExtraError(
        "langchain-core is not installed.", 'pip install "cart-qdrant[langchain]"'
    ) from error

_answered: ContextVar[tuple[int, Mapping[str, SearchResult]]] = ContextVar(
    "_answered", default=(0, {})
)
"""A retriever's id, and the answers of its batch for the runs of the queries."""


def to_document(hit: Hit) -> Document:
    """A hit as a document: its best caption, or its path where it has none."""
    return Document(
        id=hit.id,
        page_content=hit.caption or hit.path,
        metadata={**hit.metadata(), "score": hit.score},
    )


class CartQdrantRetriever(BaseRetriever):
    """Finds segments of media by text.

    Attributes:
        retriever: An open engine; the caller closes it.
        k: Documents returned; `invoke(query, k=3)` asks for another number once.
        lane: Who answers, see `cart_qdrant.Retriever.search`.
        filter: A `qdrant_client.models.Filter`, or the same as a dict; all lanes obey it.
        score_threshold: Documents of a lower score are left out. Scores of different lanes do not
            compare: those of `auto` are log-probabilities.
        min_confidence: Documents that are less likely to be meant are left out (`auto`, `fused`).
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
        """A filter of a dict; what is no condition is told here, not by the store."""
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
        found = self._answered_already(query)
        if found is None:
            found = self.retriever.search(query, **self._wanted(kwargs))
        return self._documents(found)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,  # noqa: ARG002 - of the interface
        **kwargs: Any,
    ) -> list[Document]:
        found = self._answered_already(query)
        if found is None:
            found = await self.retriever.asearch(query, **self._wanted(kwargs))
        return self._documents(found)

    def batch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[Document]]:
        """Documents of many queries, searched together; each is a run of its own to callbacks."""
        try:
            found = self.retriever.search_many(inputs, **self._wanted(kwargs))
        except CartError:
            found = []  # each run tells its own error
        with self._answering(found):
            return super().batch(inputs, config, return_exceptions=return_exceptions, **kwargs)

    async def abatch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[Document]]:
        """`batch`, without blocking the event loop."""
        try:
            found = await self.retriever.asearch_many(inputs, **self._wanted(kwargs))
        except CartError:
            found = []
        with self._answering(found):
            return await super().abatch(
                inputs, config, return_exceptions=return_exceptions, **kwargs
            )

    @contextmanager
    def _answering(self, found: Sequence[SearchResult]) -> Iterator[None]:
        """Runs inside take what was found, and search for the rest."""
        token = _answered.set((id(self), {result.query: result for result in found}))
        try:
            yield
        finally:
            _answered.reset(token)

    def _answered_already(self, query: str) -> SearchResult | None:
        owner, found = _answered.get()
        return found.get(query) if owner == id(self) else None

    def _wanted(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of a search.

        Raises:
            UsageError: One that is not known.
        """
        unknown = sorted(set(kwargs) - {"k"})
        if unknown:
            raise UsageError(
                f"CartQdrantRetriever is asked with {', '.join(unknown)}, but knows k.",
                "Set it when the retriever is made.",
            )
        return {
            "k": kwargs.get("k", self.k), "lane": self.lane, "filter": self.filter,
            "min_confidence": self.min_confidence,
        }  # fmt: skip

    def _documents(self, found: SearchResult) -> list[Document]:
        least = self.score_threshold
        return [to_document(hit) for hit in found.hits if least is None or hit.score >= least]
