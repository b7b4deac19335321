"""One film of hundreds of segments hides no other file, and hits do not depend on how many are
asked for: in each lane and each kind of store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cart_qdrant.index.index import Index
from cart_qdrant.records import Hit
from cart_qdrant.search.background import Background
from cart_qdrant.search.filters import parse_filter
from cart_qdrant.search.lanes import LANES, MIXED_LANES
from cart_qdrant.search.query import Part, Query
from tests.many_points import (
    FILM,
    PHOTOS,
    SOUNDS,
    STORES,
    GivenEmbedder,
    GivenTexts,
    make_index,
    open_retriever,
)

Place = Callable[[Hit], tuple[str, float, float | None]]


@pytest.fixture(scope="module", params=STORES)
def index(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Index]:
    """The film and the others, in each kind of store."""
    client = None
    if request.param == "server":
        server = request.getfixturevalue("started")
        server.empty()
        client = server.client()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Index, "text_encoder", lambda self: GivenTexts())
        patch.setattr(Index, "query_text_encoder", lambda self: GivenTexts())
        patch.setattr(Index, "text_anchors", lambda self: None)
        patch.setattr(Index, "embedder", lambda self: GivenEmbedder())
        root = tmp_path_factory.mktemp(request.param) / ".cartq"
        with make_index(root, request.param, client=client) as one:
            yield one


def files_with_captions(lane: str) -> int:
    return 1 + PHOTOS // 2 + SOUNDS if lane in ("caption", "bm25") else 1 + PHOTOS + SOUNDS


def place(hit: Hit) -> tuple[int, str, float, float | None]:
    return hit.rank, hit.id, hit.score, hit.confidence


@pytest.mark.parametrize("lane", LANES)
def test_as_many_files_are_found_as_are_asked_for(index: Index, lane: Any) -> None:
    with_captions = files_with_captions(lane)
    retriever = open_retriever(index, confidence=[1.0, 0.0])
    for k in (1, 10, 40, 200):
        paths = [hit.path for hit in retriever.search("waves", k=k, lane=lane).hits]
        assert len(paths) == len(set(paths)) == min(k, with_captions)
        assert FILM in paths or lane == "bm25"  # which prefers short texts


@pytest.mark.parametrize("lane", LANES)
def test_filters_hide_no_file_either(index: Index, lane: Any) -> None:
    wanted = parse_filter(["parity=1"])
    retriever = open_retriever(index)
    hits = retriever.search("waves", k=10, lane=lane, filter=wanted).hits
    assert len({hit.path for hit in hits}) == 10
    assert {hit.payload["parity"] for hit in hits} == {1}
    photos = parse_filter(["parity=1"], "image")  # type: ignore[arg-type]
    hits = retriever.search("waves", k=30, lane=lane, filter=photos).hits
    assert len({hit.path for hit in hits}) == PHOTOS // 2


@pytest.mark.parametrize("lane", LANES)
def test_a_filter_that_lets_nothing_through_is_told(index: Index, lane: Any) -> None:
    found = open_retriever(index).search("waves", lane=lane, filter=parse_filter(["parity=7"]))
    assert found.hits == [] and found.remarks[-1] == "no item meets the filter"


@pytest.mark.parametrize("lane", MIXED_LANES)
def test_a_query_by_an_item_finds_as_many(index: Index, lane: Any) -> None:
    retriever = open_retriever(index)
    query = Query((Part("text", "waves", 2.0), Part("like", "photo-00.jpg", 0.2)))
    paths = [hit.path for hit in retriever.search(query, k=10, lane=lane).hits]
    assert len(set(paths)) == 10
    assert paths[0] == FILM and "photo-00.jpg" not in paths


@pytest.mark.parametrize("group_by", ["file", "none"])
@pytest.mark.parametrize("lane", LANES)
def test_a_hit_is_the_same_however_many_are_asked_for(
    index: Index, lane: Any, group_by: Any
) -> None:
    retriever = open_retriever(index, confidence=[1.0, 0.0])
    whole = retriever.search("waves", k=400, lane=lane, group_by=group_by).hits
    assert [hit.rank for hit in whole] == list(range(1, len(whole) + 1))
    assert len({hit.id for hit in whole}) == len(whole)
    assert [hit.score for hit in whole] == sorted((h.score for h in whole), reverse=True)
    known = [hit.confidence is not None for hit in whole]
    assert all(known) if lane in ("auto", "fused") else not any(known)
    for k, offset in [(1, 0), (5, 0), (10, 0), (50, 0), (10, 10), (7, 33), (50, 50), (9, 395)]:
        page = retriever.search("waves", k=k, offset=offset, lane=lane, group_by=group_by).hits
        assert [*map(place, page)] == [*map(place, whole[offset : offset + k])]


def test_a_page_of_a_mixed_query_goes_on(index: Index) -> None:
    retriever = open_retriever(index)
    query = Query((Part("like", "photo-03.jpg"),))
    pages = [retriever.search(query, k=8, offset=at).hits for at in (0, 8)]
    both = retriever.search(query, k=16).hits
    assert [*map(place, [*pages[0], *pages[1]])] == [*map(place, both)]


def test_no_list_is_asked_twice_where_its_first_page_has_many_files(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    retriever = open_retriever(index)
    store, asked = index.store, []
    original = store.query_ids

    def count(requests: Any) -> Any:
        asked.append(len(requests))
        return original(requests)

    monkeypatch.setattr(store, "query_ids", count)
    monkeypatch.setattr(Background, "remark", lambda self, candidates: None)
    photos = parse_filter([], "image")  # type: ignore[arg-type]
    retriever.search("waves", lane="dense", filter=photos)
    assert asked == [1]
    retriever.search("waves", lane="dense")
    assert asked == [1, 1, 1]  # the film alone is on the first page


def test_too_little_similarity_is_cut(index: Index) -> None:
    retriever = open_retriever(index)
    hits = retriever.search("waves", k=100, lane="dense", min_similarity=0.5).hits
    assert len(hits) == 1 + PHOTOS
    assert all(hit.similarity is not None and hit.similarity >= 0.5 for hit in hits)
