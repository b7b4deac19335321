"""The retriever."""

from __future__ import annotations

from qdrant_client import models

from cart_qdrant.errors import MissingExtraError
from cart_qdrant.records import Hit
from cart_qdrant.search.engine import Lane, Retriever

try:
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
except ImportError as error:
    raise MissingExtraError(
        "llama-index-core is not installed.", 'pip install "cart-qdrant[llamaindex]"'
    ) from error


def to_node(hit: Hit) -> NodeWithScore:
    """A hit as a scored node; its id is the segment's."""
    node = TextNode(
        id_=hit.id,
        text=hit.caption or hit.path,
        metadata={
            "path": hit.path,
            "modality": str(hit.modality),
            "start": hit.start,
            "end": hit.end,
            "identifier": hit.identifier,
            "lane": hit.lane,
        },
    )
    return NodeWithScore(node=node, score=hit.score)


class CartQdrantRetriever(BaseRetriever):
    """Finds segments of media by text.

    Args:
        retriever: An open engine; the caller closes it.
        k: Nodes returned.
        lane: `auto`, `generative`, `dense` or `fused`.
        filter: Condition on the payload; both lanes obey it.
    """

    def __init__(
        self,
        retriever: Retriever,
        *,
        k: int = 10,
        lane: Lane = "auto",
        filter: models.Filter | None = None,
    ) -> None:
        super().__init__()
        self._engine = retriever
        self._k, self._lane, self._filter = k, lane, filter

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        found = self._engine.search(
            query_bundle.query_str, k=self._k, lane=self._lane, filter=self._filter
        )
        return [to_node(hit) for hit in found.hits]
