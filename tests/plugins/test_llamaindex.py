"""The LlamaIndex retriever over a real index."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("llama_index.core", reason='pip install "cart-qdrant[llamaindex]"')

from llama_index.core.schema import ImageNode, QueryBundle, TextNode
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from cart_qdrant.errors import UsageError
from cart_qdrant.search.retriever import Retriever
from cart_qdrant_llamaindex import CartQdrantRetriever
from cart_qdrant_llamaindex.filters import to_filter


@pytest.fixture(scope="module")
def engine(small_index: Path) -> Iterator[Retriever]:
    with Retriever.open(small_index) as found:
        yield found


def test_nodes_carry_the_hit(engine: Retriever) -> None:
    nodes = CartQdrantRetriever(engine, k=3).retrieve("a dog on a surfboard")
    hits = engine.search("a dog on a surfboard", k=3).hits
    assert [n.node.node_id for n in nodes] == [h.id for h in hits]
    assert [n.score for n in nodes] == [h.score for h in hits]
    first = nodes[0].node
    assert isinstance(first, ImageNode) and Path(first.image_path).is_file()
    assert first.metadata["path"].endswith("picture-0.png")
    again = asyncio.run(CartQdrantRetriever(engine, k=3).aretrieve("a dog on a surfboard"))
    assert [n.node.node_id for n in again] == [n.node.node_id for n in nodes]


def test_a_picture_is_asked_with(engine: Retriever, small_media: Path) -> None:
    picture = str(small_media / "picture-2.png")
    found = CartQdrantRetriever(engine, k=1).retrieve(QueryBundle("", image_path=picture))
    assert found[0].node.metadata["path"].endswith("picture-2.png")


def test_texts_to_embed_take_the_place_of_the_query(engine: Retriever) -> None:
    retriever = CartQdrantRetriever(engine, k=3)
    one = retriever.retrieve(
        QueryBundle("what is this?", custom_embedding_strs=["a dog on a surfboard"])
    )
    same = retriever.retrieve("a dog on a surfboard")
    assert [n.node.node_id for n in one] == [n.node.node_id for n in same]
    both = retriever.retrieve(QueryBundle("?", custom_embedding_strs=["a dog", "a square"]))
    assert len(both) == 3


def test_a_vector_is_searched_as_it_is(engine: Retriever) -> None:
    hit = engine.search("a dog on a surfboard", k=1).hits[0]
    (record,) = engine._index.store.retrieve([hit.id], with_vectors=["media"])
    vector = [3.0 * float(x) for x in record.vector["media"]]
    found = CartQdrantRetriever(engine, k=1).retrieve(QueryBundle("", embedding=vector))
    assert found[0].node.node_id == hit.id and found[0].score == pytest.approx(1, abs=1e-3)
    with pytest.raises(UsageError, match="3 dimensions, but the index has"):
        CartQdrantRetriever(engine).retrieve(QueryBundle("", embedding=[1.0, 2.0, 3.0]))


def ids(engine: Retriever, filters: MetadataFilters) -> set[str]:
    return {str(record.id) for record in engine._index.store.scroll(to_filter(filters))}


def test_filters_choose_the_same_points(engine: Retriever) -> None:
    everything = {str(r.id): r.payload for r in engine._index.store.scroll()}

    def those(keep) -> set[str]:
        return {one for one, payload in everything.items() if keep(payload)}

    def one(key: str, operator: FilterOperator, value: object = None) -> MetadataFilter:
        return MetadataFilter(key=key, operator=operator, value=value)

    op = FilterOperator
    cases = [
        (one("modality", op.EQ, "image"), lambda p: p["modality"] == "image"),
        (one("modality", op.NE, "image"), lambda p: p["modality"] != "image"),
        (one("modality", op.IN, ["image", "audio"]), lambda p: p["modality"] != "video"),
        (one("modality", op.NIN, ["image", "video"]), lambda p: p["modality"] == "audio"),
        (one("start", op.EQ, 0.0), lambda p: p["start"] == 0.0),
        (one("start", op.EQ, 0), lambda p: p["start"] == 0),
        (one("start", op.IN, [0, 5]), lambda p: p["start"] in (0, 5)),
        (one("start", op.GTE, 1.0), lambda p: p["start"] >= 1.0),
        (one("start", op.LT, 1), lambda p: p["start"] < 1),
        (one("captions", op.IS_EMPTY), lambda p: not p.get("captions")),
    ]
    for condition, keep in cases:
        found = ids(engine, MetadataFilters(filters=[condition]))
        assert found == those(keep), condition
    either = MetadataFilters(
        filters=[one("modality", op.EQ, "audio"), one("modality", op.EQ, "video")],
        condition=FilterCondition.OR,
    )
    assert ids(engine, either) == those(lambda p: p["modality"] != "image")
    neither = MetadataFilters(filters=[either], condition=FilterCondition.NOT)
    assert ids(engine, neither) == those(lambda p: p["modality"] == "image")
    nodes = CartQdrantRetriever(engine, k=50, filter=either).retrieve("a dog")
    assert nodes and all(type(n.node) is TextNode for n in nodes)
    with pytest.raises(UsageError, match="needs a number"):
        to_filter(MetadataFilters(filters=[one("start", op.GT, "soon")]))
