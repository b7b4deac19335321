"""The LlamaIndex retriever over a real index."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("llama_index.core", reason='pip install "cart-qdrant[llamaindex]"')

from cart_qdrant.search.engine import Retriever
from cart_qdrant_llamaindex import CartQdrantRetriever


def test_nodes_carry_the_hit(small_index: Path) -> None:
    with Retriever.open(small_index) as engine:
        nodes = CartQdrantRetriever(engine, k=3).retrieve("a dog on a surfboard")
        hits = engine.search("a dog on a surfboard", k=3).hits
    assert [n.node.node_id for n in nodes] == [h.id for h in hits]
    assert [n.score for n in nodes] == [h.score for h in hits]
    assert nodes[0].node.metadata["path"].endswith("picture-0.png")
