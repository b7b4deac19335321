"""One search from queries to results: encode, collect candidates, rank, read the hits."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Protocol

from cart_qdrant.index.identifier_files import load_table
from cart_qdrant.records import Hit
from cart_qdrant.search.background import Background
from cart_qdrant.search.candidate_pool import CandidatePool
from cart_qdrant.search.candidates import Candidates
from cart_qdrant.search.collector import Collector
from cart_qdrant.search.encoding import EncodedQueries, EncodeTimes, QueryEncoding
from cart_qdrant.search.explain import Explainer
from cart_qdrant.search.filters import merge_filters
from cart_qdrant.search.hits import HitReader
from cart_qdrant.search.item_features import ItemFeatureReader
from cart_qdrant.search.loaded_index import LoadedIndex
from cart_qdrant.search.options import SearchRequest
from cart_qdrant.search.query import Mixed, Mixer, Query
from cart_qdrant.search.ranking import Ranking, rank, rank_by_media
from cart_qdrant.search.remarks import Remarks
from cart_qdrant.search.result import SearchResult
from cart_qdrant.storage import requests as qdrant

BLOCK = 64
"""Texts that are answered together."""
FIRST = 10
"""Files (or segments) that each list gives before the first hits are ranked."""


class Rank(Protocol):
    """Ranks the candidates of one query."""

    def __call__(self, candidates: Candidates, *, lane: str | None) -> Ranking:
        """The ranking in a lane; None lets the request or the router choose."""


class Searcher:
    """Answers queries from one loaded index."""

    def __init__(self, loaded: LoadedIndex) -> None:
        index = loaded.index
        self._loaded, self._index = loaded, index
        self._version = index.manifest.version
        groups, spaces = loaded.modality_prior.group_of, loaded.calibration.spaces
        items = ItemFeatureReader(index, loaded.trie, load_table(index), groups, spaces)
        self._encoding = QueryEncoding(loaded)
        self._collector = Collector(index, groups, spaces, items, self._encoding.decode_again)
        self._hits = HitReader(index)
        self._explainer = Explainer(loaded)
        self._remarks = Remarks(loaded, Background(self._collector.layout, self._encoding))

    def texts(self, texts: Sequence[str], request: SearchRequest) -> list[SearchResult]:
        """Results for texts, block by block; while one is answered, the next is encoded."""
        blocks = [texts[begin : begin + BLOCK] for begin in range(0, len(texts), BLOCK)]
        if len(blocks) == 1:
            return self._block(request, *self._encoding.texts(texts, request))
        found: list[SearchResult] = []
        with ThreadPoolExecutor(1) as ahead:
            coming = [ahead.submit(self._encoding.texts, block, request) for block in blocks]
            for encoded in coming:
                found += self._block(request, *encoded.result())
        return found

    def _block(
        self, request: SearchRequest, encoded: EncodedQueries, times: EncodeTimes
    ) -> list[SearchResult]:
        begin = time.perf_counter()
        calibration, count = self._loaded.calibration, len(encoded.texts)
        lanes: set[str] = {request.lane}
        if request.lane == "auto":
            lanes = {calibration.high_match_lane, calibration.low_match_lane}
            if calibration.confidence:
                lanes.add("fused")
        pool = self._collector.collect(
            encoded, lanes=sorted(lanes), filter=request.filter, by_file=request.ranks_files
        )
        whole = _ranked(pool, request, partial(rank, calibration=calibration, request=request))
        rankings = [one.cut(request) for one in whole]
        hits = self._hits.read(encoded.texts, rankings, request.k, request.offset)
        if request.explain:
            hits = [
                self._explained(own, ranking.candidates, encoded.one(b))
                for b, (own, ranking) in enumerate(zip(hits, rankings, strict=True))
            ]
        resolve = (time.perf_counter() - begin) * 1e3
        took = _took(times, resolve, count)
        reached = bool(encoded.vectors.media)
        remarks = self._remarks.on_texts(request, reached=reached)
        own_remarks = [
            self._remarks.on_answer(request, one, kept, reached=reached)
            for one, kept in zip(whole, rankings, strict=True)
        ]
        return [
            SearchResult(text, ranking.lane, self._version, dict(took), own, [*remarks, *more])
            for text, ranking, own, more in zip(
                encoded.texts, rankings, hits, own_remarks, strict=True
            )
        ]

    def mixed(self, query: Query, request: SearchRequest) -> SearchResult:
        """The result for a query that is more than a text, by its vectors.

        Raises:
            UsageError: The request is for texts alone, or a part of the query is not there.
            MediaError: A file of the query cannot be decoded.
        """
        request.check_mixed(query)
        begin = time.perf_counter()
        mixed = Mixer(self._index, self._encoding.text_vectors).mix(query)
        media = {space: q_D[None] for space, q_D in mixed.media.items()}
        middle = time.perf_counter()
        encoded = self._encoding.mixed(str(query), media, request)
        times = EncodeTimes((middle - begin) * 1e3, (time.perf_counter() - middle) * 1e3)
        resolve = time.perf_counter()
        lane = "generative" if request.lane == "generative" else "dense"
        pool = self._collector.collect(
            encoded, lanes=[lane], by_file=request.ranks_files,
            filter=merge_filters(request.filter, self._without(mixed, request)),
        )  # fmt: skip
        (whole,) = _ranked(pool, request, partial(rank_by_media, request=request), lane)
        ranking = whole.cut(request)
        (hits,) = self._hits.read([query.words], [ranking], request.k, request.offset)
        if request.explain:
            hits = self._explained(hits, ranking.candidates, encoded)
        took = _took(times, (time.perf_counter() - resolve) * 1e3, 1)
        remarks = self._remarks.on_answer(request, whole, ranking, reached=True, text=False)
        return SearchResult(str(query), lane, self._version, took, hits, remarks)

    def _without(self, mixed: Mixed, request: SearchRequest) -> qdrant.AnyFilter | None:
        """A filter that excludes the items that a query was made of, or their files if files are
        ranked."""
        if not mixed.exclude:
            return None
        if not request.ranks_files:
            return qdrant.Filter(must_not=[qdrant.HasIdCondition(has_id=list(mixed.exclude))])
        made_of = self._index.store.retrieve(mixed.exclude)
        paths = [(record.payload or {})["path"] for record in made_of]
        match = qdrant.FieldCondition(key="path", match=qdrant.MatchAny(any=paths))
        return qdrant.Filter(must_not=[match])

    def _explained(
        self, hits: list[Hit], candidates: Candidates, encoded: EncodedQueries
    ) -> list[Hit]:
        """The hits of one query, each with why it is one."""
        whys = self._explainer.explain(hits, candidates, encoded)
        return [replace(hit, why=why) for hit, why in zip(hits, whys, strict=True)]


def _ranked(
    pool: CandidatePool, request: SearchRequest, rank: Rank, lane: str | None = None
) -> list[Ranking]:
    """The rankings of a pool's queries, long enough for what is asked.

    The first hits are ranked among a fixed number of candidates, and those behind them among twice
    as many files each time. So the same hit has the same place and confidence however many are
    asked for.
    """
    need = FIRST
    pool.fill(need)
    rankings = [rank(candidates, lane=lane) for candidates in pool.candidates()]
    while need < request.offset + request.k:
        ranked, need = need, 2 * need
        if pool.fill(need):
            rankings = [
                one.continued(rank(candidates, lane=one.lane), ranked, request)
                for one, candidates in zip(rankings, pool.candidates(), strict=True)
            ]
    return rankings


def _took(times: EncodeTimes, resolve: float, count: int) -> dict[str, float]:
    """Milliseconds of each stage for one of the queries that were answered together."""
    total = times.encode + times.decode + resolve
    stages = {"encode": times.encode, "decode": times.decode, "resolve": resolve, "total": total}
    return {stage: ms / count for stage, ms in stages.items()}
