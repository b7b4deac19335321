"""The retriever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qdrant_client import models

from cart_qdrant.errors import MissingExtraError
from cart_qdrant.records import Hit, Modality
from cart_qdrant.search.lanes import Lane
from cart_qdrant.search.query import Part, Query
from cart_qdrant.search.result import SearchResult
from cart_qdrant.search.retriever import Retriever

try:
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import ImageNode, NodeWithScore, QueryBundle, TextNode
    from llama_index.core.vector_stores.types import MetadataFilters

    from cart_qdrant_llamaindex.filters import to_filter
except ImportError as error:
    raise MissingExtraError(
        "llama-index-core is not installed.", 'pip install "cart-qdrant[llamaindex]"'
    ) from error


def to_node(hit: Hit, base: Path | None = None) -> NodeWithScore:
    """A hit as a scored node; its id is the segment's.

    Args:
        base: Folder that paths of the index are relative to.
    """
    given: dict[str, Any] = {
        "id_": hit.id,
        "text": hit.caption or hit.path,
        "metadata": hit.metadata(),
    }
    node: TextNode
    if hit.modality is Modality.IMAGE:
        node = ImageNode(**given, image_path=str(base / hit.path if base else hit.path))
    else:
        node = TextNode(**given)
    return NodeWithScore(node=node, score=hit.score)


class CartQdrantRetriever(BaseRetriever):
    """Finds segments of media by text, picture, or vector.

    Of a `QueryBundle`, `embedding` is searched as it is; else `custom_embedding_strs` (or the query
    itself) and the picture at `image_path` are searched together.

    Args:
        retriever: An open engine; the caller closes it.
        k: Nodes returned.
        lane: Who answers, see `cart_qdrant.Retriever.search`; queries that are more than a text
            have `auto`, `dense` and `generative`.
        filter: Condition on the payload, of Qdrant or of LlamaIndex; all lanes obey it.
        min_confidence: Nodes that are less likely to be meant are left out (`auto`, `fused`).
    """

    def __init__(
        self,
        retriever: Retriever,
        *,
        k: int = 10,
        lane: Lane = "auto",
        filter: models.Filter | MetadataFilters | None = None,
        min_confidence: float = 0.0,
    ) -> None:
        super().__init__()
        self._engine = retriever
        condition = to_filter(filter) if isinstance(filter, MetadataFilters) else filter
        self._wanted: dict[str, Any] = {
            "k": k, "lane": lane, "filter": condition, "min_confidence": min_confidence
        }  # fmt: skip

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self._nodes(self._engine.search(to_query(query_bundle), **self._wanted))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self._nodes(await self._engine.asearch(to_query(query_bundle), **self._wanted))

    def _nodes(self, found: SearchResult) -> list[NodeWithScore]:
        return [to_node(hit, self._engine.base) for hit in found.hits]


def to_query(bundle: QueryBundle) -> str | Query:
    """What a bundle asks for."""
    if bundle.embedding is not None:
        return Query((Part("vector", bundle.query_str or "vector", 1.0, tuple(bundle.embedding)),))
    texts = [text for text in bundle.embedding_strs if text.strip()]
    if not bundle.image_path and len(texts) < 2:
        return texts[0] if texts else bundle.query_str
    parts = [Part("text", text, 1 / len(texts)) for text in texts]
    if bundle.image_path:
        parts.append(Part("image", bundle.image_path))
    return Query(tuple(parts))
