"""The retriever."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict

from cart_qdrant.errors import MissingExtraError
from cart_qdrant.records import Hit
from cart_qdrant.search.engine import Lane, Retriever

try:
    from langchain_core.callbacks import CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever
except ImportError as error:
    raise MissingExtraError(
        "langchain-core is not installed.", 'pip install "cart-qdrant[langchain]"'
    ) from error


def to_document(hit: Hit) -> Document:
    """A hit as a document: its best caption, or its path where it has none."""
    return Document(
        id=hit.id,
        page_content=hit.caption or hit.path,
        metadata={
            "path": hit.path,
            "modality": str(hit.modality),
            "start": hit.start,
            "end": hit.end,
            "score": hit.score,
            "identifier": hit.identifier,
            "lane": hit.lane,
        },
    )


class CartQdrantRetriever(BaseRetriever):
    """Finds segments of media by text.

    Attributes:
        retriever: An open engine; the caller closes it.
        k: Documents returned.
        lane: `auto`, `generative`, `dense` or `fused`.
        filter: A `qdrant_client.models.Filter`; both lanes obey it.
    """

    retriever: Retriever
    k: int = 10
    lane: Lane = "auto"
    filter: Any = None

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,  # noqa: ARG002 - of the interface
        **kwargs: Any,
    ) -> list[Document]:
        k = int(kwargs.get("k", self.k))
        found = self.retriever.search(query, k=k, lane=self.lane, filter=self.filter)
        return [to_document(hit) for hit in found.hits]
