"""The LangChain retriever over a real index."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langchain_core", reason='pip install "cart-qdrant[langchain]"')
pytest.importorskip("langchain_tests", reason="not installed: langchain-tests")

from langchain_core.callbacks import BaseCallbackHandler
from langchain_tests.integration_tests import RetrieversIntegrationTests
from qdrant_client import models

from cart_qdrant.errors import UsageError
from cart_qdrant.search.retriever import Retriever
from cart_qdrant_langchain import CartQdrantRetriever

IMAGES = models.Filter(
    must=[models.FieldCondition(key="modality", match=models.MatchValue(value="image"))]
)


@pytest.fixture(scope="module")
def engine(small_index: Path) -> Iterator[Retriever]:
    with Retriever.open(small_index) as found:
        yield found


class TestStandard(RetrieversIntegrationTests):
    """LangChain's own tests of a retriever."""

    @pytest.fixture(autouse=True)
    def _open(self, engine: Retriever) -> None:
        type(self)._engine = engine

    @property
    def retriever_constructor(self) -> type[CartQdrantRetriever]:
        return CartQdrantRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"retriever": self._engine}

    @property
    def retriever_query_example(self) -> str:
        return "a dog on a surfboard"


def test_documents_carry_the_hit(engine: Retriever) -> None:
    documents = CartQdrantRetriever(retriever=engine, k=3).invoke("a dog on a surfboard")
    hits = engine.search("a dog on a surfboard", k=3).hits
    assert [d.id for d in documents] == [h.id for h in hits]
    assert documents[0].page_content == "a dog on a surfboard"
    assert documents[0].metadata["path"].endswith("picture-0.png")
    assert {"start", "end", "score", "identifier", "lane", "modality"} <= set(documents[0].metadata)


def test_unknown_fields_and_arguments_are_refused(engine: Retriever) -> None:
    with pytest.raises(ValueError, match="lanes"):
        CartQdrantRetriever(retriever=engine, lanes="dense")
    with pytest.raises(UsageError, match="search_type"):
        CartQdrantRetriever(retriever=engine).invoke("a dog", search_type="mmr")
    with pytest.raises(ValueError, match="no Qdrant filter"):
        CartQdrantRetriever(retriever=engine, filter={"musty": []})


def test_a_call_may_page_on(engine: Retriever) -> None:
    retriever = CartQdrantRetriever(retriever=engine, k=3)
    both = [d.id for d in retriever.invoke("a dog", k=6)]
    assert [d.id for d in retriever.invoke("a dog", offset=3)] == both[3:]


@pytest.mark.parametrize("form", [IMAGES, IMAGES.model_dump(exclude_none=True)])
def test_a_filter_may_be_a_dict(engine: Retriever, form: object) -> None:
    found = CartQdrantRetriever(retriever=engine, k=50, filter=form).invoke("a dog")
    assert found and {d.metadata["modality"] for d in found} == {"image"}
    assert "audio" in {
        d.metadata["modality"] for d in CartQdrantRetriever(retriever=engine, k=50).invoke("a dog")
    }


def test_low_scores_are_left_out(engine: Retriever) -> None:
    every = CartQdrantRetriever(retriever=engine, lane="dense").invoke("a dog on a surfboard")
    edge = every[2].metadata["score"]
    some = CartQdrantRetriever(retriever=engine, lane="dense", score_threshold=edge)
    assert [d.id for d in some.invoke("a dog on a surfboard")] == [
        d.id for d in every if d.metadata["score"] >= edge
    ]


class Runs(BaseCallbackHandler):
    """Counts runs of retrievers, and those that failed."""

    def __init__(self) -> None:
        self.queries: list[str] = []
        self.failed = 0

    def on_retriever_start(self, serialized: Any, query: str, **kwargs: Any) -> None:
        self.queries.append(query)

    def on_retriever_error(self, error: BaseException, **kwargs: Any) -> None:
        self.failed += 1


def test_a_batch_is_searched_together_and_each_is_a_run(
    engine: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    retriever = CartQdrantRetriever(retriever=engine, k=3)
    queries = ["a dog on a surfboard", "a red square", "night"]
    alone = [[d.id for d in retriever.invoke(query)] for query in queries]
    asked: list[int] = []
    search = engine.search_many

    def count(queries: list[str], **kwargs: Any) -> Any:
        asked.append(len(queries))
        return search(queries, **kwargs)

    monkeypatch.setattr(engine, "search_many", count)
    runs = Runs()
    found = retriever.batch(queries, {"callbacks": [runs]})
    assert [[d.id for d in documents] for documents in found] == alone
    assert asked == [3] and sorted(runs.queries) == sorted(queries)
    again = asyncio.run(retriever.abatch(queries))
    assert [[d.id for d in documents] for documents in again] == alone
    assert asked == [3, 3]


def test_one_bad_query_fails_alone(engine: Retriever) -> None:
    runs = Runs()
    found = CartQdrantRetriever(retriever=engine, k=1).batch(
        ["a dog on a surfboard", " "], {"callbacks": [runs]}, return_exceptions=True
    )
    assert found[0][0].page_content == "a dog on a surfboard"
    assert isinstance(found[1], UsageError) and runs.failed == 1
