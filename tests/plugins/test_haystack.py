"""The Haystack component in real pipelines."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from cart_qdrant.errors import UsageError
from cart_qdrant.search.retriever import Retriever
from cart_qdrant.storage.requests import to_client

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # before the import
pytest.importorskip("haystack", reason='not installed: pip install "cart-qdrant[haystack]"')

from haystack import Pipeline
from haystack.components.builders import PromptBuilder

from cart_qdrant_haystack import CartQdrantRetriever
from cart_qdrant_haystack.filters import to_filter

QUERY = "a dog on a surfboard"


def field(name: str, operator: str, value: Any) -> dict[str, Any]:
    return {"field": f"meta.{name}", "operator": operator, "value": value}


def test_a_pipeline_finds_and_prompts(small_index: Path) -> None:
    template = "{% for d in documents %}{{ d.meta.path }}: {{ d.content }};{% endfor %}"
    with Retriever.open(small_index) as engine:
        expected = engine.search(QUERY, k=3).hits
        pipeline = Pipeline()
        pipeline.add_component("media", CartQdrantRetriever(retriever=engine, top_k=3))
        builder = PromptBuilder(template, required_variables=["documents"])
        pipeline.add_component("prompt", builder)
        pipeline.connect("media.documents", "prompt.documents")
        wanted = {"media": {"query": QUERY}}
        found = pipeline.run(wanted, include_outputs_from={"media"})
    documents = found["media"]["documents"]
    assert [one.id for one in documents] == [hit.id for hit in expected]
    assert [one.score for one in documents] == [hit.score for hit in expected]
    assert documents[0].meta["path"] == "media/picture-0.png" and documents[0].meta["end"] == 0
    assert found["prompt"]["prompt"].startswith(f"media/picture-0.png: {QUERY};")


def test_it_is_written_and_read_with_its_pipeline(small_index: Path) -> None:
    only = field("modality", "==", "video")
    pipeline = Pipeline()
    made = CartQdrantRetriever(str(small_index), top_k=2, lane="fused", filters=only)
    pipeline.add_component("media", made)
    trusted = [CartQdrantRetriever.__module__]
    again = Pipeline.loads(pipeline.dumps(), allowed_modules=trusted)
    component = again.get_component("media")
    assert component.to_dict() == made.to_dict()
    found = again.run({"media": {"query": "a beach"}})["media"]["documents"]
    assert found and {one.meta["modality"] for one in found} == {"video"}
    component.close()
    assert component.run("a beach")["documents"]
    component.close()


def test_a_run_has_its_own_filters_and_count(small_index: Path) -> None:
    with Retriever.open(small_index) as engine:
        component = CartQdrantRetriever(retriever=engine, lane="fused")
        picture = field("path", "==", "media/picture-0.png")
        (one,) = component.run(QUERY, filters=picture)["documents"]
        assert one.content == QUERY
        assert len(component.run(QUERY, top_k=1)["documents"]) == 1
        asynchronous = asyncio.run(component.run_async(QUERY, top_k=1))["documents"]
        assert [d.id for d in asynchronous] == [one.id]
        with pytest.raises(UsageError, match="k is 0"):
            component.run(QUERY, top_k=0)


CONDITIONS: list[tuple[dict[str, Any], set[int]]] = [
    (field("n", "==", 3), {3}),
    (field("n", "!=", 3), {0, 1, 2, 4}),
    (field("n", ">=", 2), {2, 3, 4}),
    (field("n", "<", 1), {0}),
    (field("n", "in", [1, 4, 9]), {1, 4}),
    (field("n", "not in", [1, 4]), {0, 2, 3}),
    (field("t", "==", "odd"), {1, 3}),
    ({"operator": "AND", "conditions": [field("n", ">", 1), field("t", "==", "odd")]}, {3}),
    ({"operator": "OR", "conditions": [field("n", "==", 0), field("t", "==", "odd")]}, {0, 1, 3}),
    ({"operator": "NOT", "conditions": [field("n", ">", 1), field("t", "==", "odd")]},
     {0, 1, 2, 4}),
]  # fmt: skip


@pytest.mark.parametrize(("given", "right"), CONDITIONS)
def test_filters_mean_what_haystack_means(given: dict[str, Any], right: set[int]) -> None:
    """Beside Haystack's own judgement of each document, and on Qdrant."""
    from haystack import Document
    from haystack.utils.filters import document_matches_filter
    from qdrant_client import QdrantClient, models

    payloads = [{"n": n, "t": "odd" if n % 2 else "even"} for n in range(5)]
    told = {n for n, p in enumerate(payloads) if document_matches_filter(given, Document(meta=p))}
    assert told == right
    client = QdrantClient(":memory:")
    client.create_collection("c", models.VectorParams(size=1, distance=models.Distance.DOT))
    points = [models.PointStruct(id=n, vector=[1.0], payload=p) for n, p in enumerate(payloads)]
    client.upsert("c", points)
    found, _ = client.scroll("c", scroll_filter=to_client(to_filter(given)))
    assert {record.id for record in found} == right


@pytest.mark.parametrize(
    "given", [field("n", "like", 3), field("n", ">", "x"), field("n", "in", 3), {"operator": "XOR"}]
)
def test_what_is_no_filter_is_told(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        to_filter(given)
    assert to_filter(None) is None
