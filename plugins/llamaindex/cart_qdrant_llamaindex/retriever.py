"""`CartQdrantRetriever`: a retriever of LlamaIndex that searches an index."""

from __future__ import annotations

import logging
from typing import Any

from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import ImageNode, NodeWithScore, QueryBundle, TextNode
from llama_index.core.vector_stores.types import MetadataFilters
from qdrant_client import models

from cart_qdrant.errors import MediaError
from cart_qdrant.media.folder import MediaFolder
from cart_qdrant.records import Hit, Modality
from cart_qdrant.search.lanes import Lane
from cart_qdrant.search.query import Part, Query
from cart_qdrant.search.result import SearchResult
from cart_qdrant.search.retriever import Retriever
from cart_qdrant_llamaindex.filters import to_filter

log = logging.getLogger(__name__)


def to_node(hit: Hit, media: MediaFolder | None = None) -> NodeWithScore:
    """Convert a hit to a node with a score; its id is the id of the segment.

    Args:
        media: Folder that the path of the hit is relative to. Hosts open the `image_path` of a
            node, so that it is set only for a file that may be opened.
    """
    given: dict[str, Any] = {
        "id_": hit.id,
        "text": hit.text,
        "metadata": hit.metadata(),
    }
    node: TextNode
    if hit.modality is Modality.IMAGE:
        node = ImageNode(**given, image_path=_image_path(hit, media))
    else:
        node = TextNode(**given)
    return NodeWithScore(node=node, score=hit.score)


def _image_path(hit: Hit, media: MediaFolder | None) -> str | None:
    if media is None:
        return None
    try:
        return str(media.file(hit.path))
    except MediaError as error:
        log.warning("The image of the item %s is left out: %s", hit.id, error)
        return None


class CartQdrantRetriever(BaseRetriever):
    """Finds segments of media by text, image or vector.

    The `embedding` of a `QueryBundle` is searched as it is. Without one,
    `custom_embedding_strs` (or the query string) and the image at `image_path` are searched
    together. What a search remarks on its answer is logged under `cart_qdrant`: as a warning where
    nothing is found.

    Args:
        retriever: An open `Retriever`, which the caller closes.
        k: Number of nodes that a query returns.
        lane: Lane that answers, as in `cart_qdrant.Retriever.search`; queries that are more
            than a text can use `auto`, `dense` and `generative`.
        filter: Filter of Qdrant or of LlamaIndex on the payload, which every lane obeys.
        min_confidence: Nodes of a lower confidence are left out (lanes `auto` and `fused`).
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
        self._retriever = retriever
        condition = to_filter(filter) if isinstance(filter, MetadataFilters) else filter
        self._options: dict[str, Any] = {
            "k": k, "lane": lane, "filter": condition, "min_confidence": min_confidence
        }  # fmt: skip

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self._nodes(self._retriever.search(to_query(query_bundle), **self._options))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self._nodes(await self._retriever.asearch(to_query(query_bundle), **self._options))

    def _nodes(self, found: SearchResult) -> list[NodeWithScore]:
        found.log_remarks()
        media = self._retriever.media_folder()
        return [to_node(hit, media) for hit in found.hits]


def to_query(bundle: QueryBundle) -> str | Query:
    """Convert a query bundle to a query of an index."""
    if bundle.embedding is not None:
        return Query((Part("vector", bundle.query_str or "vector", 1.0, tuple(bundle.embedding)),))
    texts = [text for text in bundle.embedding_strs if text.strip()]
    if not bundle.image_path and len(texts) < 2:
        return texts[0] if texts else bundle.query_str
    parts = [Part("text", text, 1 / len(texts)) for text in texts]
    if bundle.image_path:
        parts.append(Part("image", bundle.image_path))
    return Query(tuple(parts))
