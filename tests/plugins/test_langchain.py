"""The LangChain retriever over a real index."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("langchain_core", reason='pip install "cart-qdrant[langchain]"')

from cart_qdrant.search.engine import Retriever
from cart_qdrant_langchain import CartQdrantRetriever


def test_documents_carry_the_hit(small_index: Path) -> None:
    with Retriever.open(small_index) as engine:
        documents = CartQdrantRetriever(retriever=engine, k=3).invoke("a dog on a surfboard")
        hits = engine.search("a dog on a surfboard", k=3).hits
    assert [d.id for d in documents] == [h.id for h in hits]
    assert documents[0].page_content == "a dog on a surfboard"
    assert documents[0].metadata["path"].endswith("picture-0.png")
    assert {"start", "end", "score", "identifier", "lane", "modality"} <= set(documents[0].metadata)


def test_unknown_fields_are_refused(small_index: Path) -> None:
    with Retriever.open(small_index) as engine, pytest.raises(ValueError, match="lanes"):
        CartQdrantRetriever(retriever=engine, lanes="dense")
