"""`Retriever`: queries to hits. Query -> vectors and beams -> payload filter, dense lanes -> hits.

The embedder is loaded only before training, and only where it embeds texts itself; afterwards the
query encoder stands in for it.
Shape legend: B queries, C candidates, D vector width.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict, Unpack

import numpy as np

from cart_qdrant.arrays.types import FloatArray, IndexArray
from cart_qdrant.errors import MismatchError, UsageError
from cart_qdrant.generator.beam_search import Beams
from cart_qdrant.generator.decode import beams_for, decode
from cart_qdrant.generator.prior import HUB, NodeGains
from cart_qdrant.index.identifier_files import load_codec, load_table, load_trie
from cart_qdrant.index.index import TEXT_DIM, Index
from cart_qdrant.index.remote import local_folder, media_folder
from cart_qdrant.records import Hit, Item, Modality
from cart_qdrant.search.candidates import DESCRIBED, POOL, Collector, Encoded, Pool
from cart_qdrant.search.caption_match import best_caption, moment_of, words_of
from cart_qdrant.search.explain import Explainer
from cart_qdrant.search.filters import merge_filters
from cart_qdrant.search.fusion import MEANINGFUL, SINGLE, Calibration, blend, untrained
from cart_qdrant.search.item_features import FactFinder
from cart_qdrant.search.lookup import find_item
from cart_qdrant.search.modality_prior import ModalityPrior
from cart_qdrant.search.query import Mixed, Mixer, Query
from cart_qdrant.search.result import SearchResult
from cart_qdrant.search.trained import Trained
from cart_qdrant.storage import requests as qdrant

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

    from cart_qdrant.generator.network import Generator
    from cart_qdrant.search.describe import Description

Lane = Literal["auto", "generative", "dense", "fused", "caption", "bm25", "rrf"]

LANES: tuple[Lane, ...] = ("auto", "generative", "dense", "fused", "caption", "bm25", "rrf")
CONFIDENT: tuple[Lane, ...] = ("auto", "fused")
"""Lanes that collect all that the confidence of a hit is calibrated on."""
MIXED: tuple[Lane, ...] = ("auto", "dense", "generative")
"""Lanes of a query that is more than a text: captions are likened to texts alone."""
BLOCK = 64
"""Queries answered together."""
THREADS = 4
"""Asynchronous searches that run at once; torch and the store use more cores each."""


class SearchOptions(TypedDict, total=False):
    """Keyword arguments of `Retriever.search`, with its defaults."""

    k: int
    lane: Lane
    filter: qdrant.AnyFilter | None
    group_by: Literal["file", "none"]
    min_confidence: float
    explain: bool


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a search is to give."""

    k: int
    lane: Lane
    filter: qdrant.AnyFilter | None
    group_by: str
    min_confidence: float
    explain: bool


@dataclass(frozen=True, slots=True)
class _Ranked:
    """Candidates that may be hits, best first.

    Attributes:
        pool: All candidates.
        order: Places of these among them; of each file the best, where files answer.
        score_C: Scores of all.
        sure_C: Confidence of all, where it is known.
    """

    pool: Pool
    order: IndexArray
    score_C: FloatArray
    sure_C: FloatArray | None

    def ids(self, places: IndexArray) -> list[str]:
        """Point ids."""
        return [str(self.pool.ids[c]) for c in places.tolist()]


class Retriever:
    """Searches one index. Use `open`; it is a context manager, and safe to use from threads."""

    def __init__(self, index: Index) -> None:
        self._index = index
        # No thread is started before the first asynchronous search.
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="cart-qdrant")
        manifest = index.manifest
        self._version = manifest.version
        self._trie, self._codec = load_trie(index), load_codec(index, mapped=True)
        self._model: Trained | None = None
        self._gains: NodeGains | None = None
        self._spaces = sorted(set(manifest.embedder.spaces.values()))
        if manifest.generator is not None:
            if (
                manifest.identifiers is None
                or manifest.generator.identifiers != manifest.identifiers.version
            ):
                found = manifest.identifiers.version if manifest.identifiers else None
                raise MismatchError(
                    f"The generator writes identifiers {manifest.generator.identifiers}, but the "
                    f"index has {found}.",
                    "Train again: `cartq train`.",
                )
            folder = index.folder.path(manifest.generator.folder)
            self._model = Trained(folder)
            self._calibration = self._model.calibration
            if self._trie is not None:
                self._gains = NodeGains(self._trie, self._calibration.scale * HUB)
        else:
            levels = manifest.identifiers.levels if manifest.identifiers else 0
            self._calibration = untrained(
                self._spaces, levels,
                captions=index.store.count(qdrant.Filter(must=[DESCRIBED])) > 0,
            )  # fmt: skip
        self._modality_prior = (
            self._model.modality_prior
            if self._model is not None
            else ModalityPrior.single(list(manifest.embedder.spaces), TEXT_DIM)
        )
        of, spaces = self._modality_prior.of, self._calibration.spaces
        facts = FactFinder(index, self._trie, load_table(index), of, spaces)
        self._collector = Collector(index, of, spaces, facts)
        items = 0 if self._trie is None else len(self._trie)
        self._width = beams_for(self._calibration.beams, items)
        self._explainer = Explainer(
            index, self._trie, self._codec, self._model, self._calibration, self._gains
        )

    @classmethod
    def open(
        cls,
        root: Path | str = ".cartq",
        *,
        url: str | None = None,
        api_key: str | None = None,
        collection: str | None = None,
        client: QdrantClient | None = None,
    ) -> Retriever:
        """Open an index for searching.

        Args:
            root: The `.cartq` folder, or a URL of one that fsspec opens (`s3://bucket/.cartq`): a
                copy of it is kept in the user's cache.
            url: Server it must be on, if given.
            api_key: Key of the server.
            collection: Collection it must be in, if given.
            client: Client of your own to reach its server by; you close it.

        Raises:
            IndexMissingError: There is none.
            MismatchError: Its parts are of different versions.
            StoreError: The store cannot be opened, or another process has it.
        """
        index = Index.open(
            local_folder(str(root)), url=url, api_key=api_key, collection=collection, client=client
        )
        try:
            return cls(index)
        except BaseException:
            index.close()
            raise

    @property
    def base(self) -> Path:
        """Folder that hits' paths are relative to."""
        return self._index.folder.base

    def media_base(self, hits: Iterable[Hit | Item]) -> Path:
        """Folder in which the files of hits lie, under their paths: `base`, or a cache to which
        they are brought, where the index is behind a URL."""
        return media_folder(self._index.folder, [hit.path for hit in hits])

    @property
    def calibration(self) -> Calibration:
        """Weights and router in force."""
        return self._calibration

    def describe(self) -> Description:
        """What the collection holds: kinds, fields to filter on, examples."""
        from cart_qdrant.search.describe import describe

        return describe(self._index)

    def item(self, name: str) -> Item:
        """A stored item by its id, its path, or PATH@SECONDS.

        Raises:
            UsageError: There is none.
        """
        return find_item(self._index, name)

    def search(
        self,
        query: str | Query,
        *,
        k: int = 10,
        lane: Lane = "auto",
        filter: qdrant.AnyFilter | None = None,
        group_by: Literal["file", "none"] = "file",
        min_confidence: float = 0.0,
        explain: bool = False,
    ) -> SearchResult:
        """The best `k` hits for a text, a picture, a sound, an item, or a mix of them.

        Args:
            query: What to find; of several parts see `cart_qdrant.search.query`.
            k: Hits (files when grouped by file, each by its best segment).
            lane: Who answers; `auto` lets the router choose.
            filter: Condition on the payload; both lanes obey it.
            group_by: `file` gives each file once.
            min_confidence: Leave out hits that are less likely to be meant.
            explain: Say why each hit is one (`Hit.why`).

        Raises:
            UsageError: An empty query, k under 1, an unknown lane or grouping, a confidence
                outside [0, 1] or where none is known, a part that is not there.
            MediaError: A file of the query cannot be decoded.
        """
        return self.search_many(
            [query], k=k, lane=lane, filter=filter, group_by=group_by,
            min_confidence=min_confidence, explain=explain,
        )[0]  # fmt: skip

    async def asearch(self, query: str | Query, **options: Unpack[SearchOptions]) -> SearchResult:
        """`search` in a bounded pool of threads: the event loop goes on meanwhile."""
        return (await self.asearch_many([query], **options))[0]

    async def asearch_many(
        self, queries: Sequence[str | Query], **options: Unpack[SearchOptions]
    ) -> list[SearchResult]:
        """`search_many` in a bounded pool of threads: the event loop goes on meanwhile."""
        import asyncio  # it takes a tenth of a command's start

        work = partial(self.search_many, queries, **options)
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def search_many(
        self,
        queries: Sequence[str | Query],
        *,
        k: int = 10,
        lane: Lane = "auto",
        filter: qdrant.AnyFilter | None = None,
        group_by: Literal["file", "none"] = "file",
        min_confidence: float = 0.0,
        explain: bool = False,
    ) -> list[SearchResult]:
        """`search` for many queries at once; texts are answered in blocks."""
        if k < 1:
            raise UsageError(f"k is {k}, but must be at least 1.")
        if lane not in LANES:
            raise UsageError(f"--lane is {lane!r}, but must be one of {', '.join(LANES)}.")
        if group_by not in ("file", "none"):
            raise UsageError(f"--group-by is {group_by!r}, but must be file or none.")
        if lane == "caption" and not self._index.keeps_captions:
            raise UsageError(
                "--lane is caption, but the collection has no vectors of captions.",
                "Attach again with --caption-vectors.",
            )
        asked = [
            query.parts[0].value if isinstance(query, Query) and query.is_text else query
            for query in queries
        ]
        if any(isinstance(query, str) and not query.strip() for query in asked):
            raise UsageError("The query is empty.", 'Say what to find: cartq search "a dog".')
        if not 0 <= min_confidence <= 1:
            raise UsageError(f"--min-confidence is {min_confidence}, but must be in 0..1.")
        if min_confidence and lane not in CONFIDENT:
            raise UsageError(
                f"--min-confidence is given, but in the lane {lane} it is not known how sure a hit "
                "is.",
                f"Search in the lane {' or '.join(CONFIDENT)}.",
            )
        if min_confidence and not self._calibration.confidence:
            raise UsageError(
                "--min-confidence is given, but how sure hits of this index are is not known: "
                f"fewer than {MEANINGFUL} captions could be held out in training.",
                "Describe more of the media, then `cartq train`.",
            )
        wanted = _Wanted(k, lane, filter, group_by, min_confidence, explain)
        texts = [query for query in asked if isinstance(query, str)]
        of_texts = iter(self._search_texts(texts, wanted))
        return [
            next(of_texts) if isinstance(query, str) else self._search_mixed(query, wanted)
            for query in asked
        ]

    def _search_mixed(self, query: Query, wanted: _Wanted) -> SearchResult:
        """Hits for a query that is more than a text, by its vector."""
        lane, k = wanted.lane, wanted.k
        if lane not in MIXED or wanted.min_confidence:
            what = "--min-confidence" if lane in MIXED else f"The lane {lane}"
            raise UsageError(
                f"{what} is for texts alone, and the query is {query}.",
                f"Ask without it, or in the lane {', '.join(MIXED)}.",
            )
        begin = time.perf_counter()
        mixed = Mixer(self._index, self._text_vectors).mix(query)
        media = {space: q_D[None] for space, q_D in mixed.media.items()}
        middle = time.perf_counter()
        no_text_BW = np.zeros((1, TEXT_DIM), np.float32)
        encoded = Encoded(
            [str(query)], media, no_text_BW, self._named(media, wanted),
            self._modality_prior.log_priors(no_text_BW),
        )  # fmt: skip
        resolve = time.perf_counter()
        only = merge_filters(wanted.filter, self._without(mixed, wanted.group_by))
        lanes = ["generative" if lane == "generative" else "dense"]
        (pool,) = self._collector.collect(encoded, limit=max(POOL, 5 * k), lanes=lanes, filter=only)
        allowed = ~np.isnan(pool.media_C)
        if lane == "generative":
            allowed &= ~np.isnan(pool.beam_C)
        order = np.argsort(-pool.media_C, kind="stable")
        ranked = _answers(pool, order[allowed[order]], pool.media_C, None, wanted)
        (hits,) = self._hits([query.words], [(lanes[0], ranked)], wanted)
        if wanted.explain:
            hits = self._explained(hits, pool, encoded)
        end = time.perf_counter()
        took = {
            "encode": (middle - begin) * 1e3, "decode": (resolve - middle) * 1e3,
            "resolve": (end - resolve) * 1e3, "total": (end - begin) * 1e3,
        }  # fmt: skip
        return SearchResult(str(query), lanes[0], self._version, took, hits)

    def _explained(self, hits: list[Hit], pool: Pool, encoded: Encoded) -> list[Hit]:
        """The hits of one query, each with why it is one."""
        whys = self._explainer.explain(hits, pool, encoded)
        return [replace(hit, why=why) for hit, why in zip(hits, whys, strict=True)]

    def _text_vectors(self, text: str) -> dict[str, FloatArray]:
        encoded, _, _ = self._encode([text], False, None, media=True)
        return {space: q_BD[0] for space, q_BD in encoded.media.items()}

    def _named(self, media: Mapping[str, FloatArray], wanted: _Wanted) -> list[Beams]:
        """Beams of vectors: the generator reads them as it reads an item's own."""
        empty = [Beams.none()]
        if self._trie is None or self._codec is None:
            return empty
        calibration = self._calibration
        return decode(
            self._trie, self._codec, media, scale=calibration.scale, width=self._width,
            gates=calibration.gates, generator=self._generator, widen=self._rarity(wanted.filter),
        ) or empty  # fmt: skip

    def _without(self, mixed: Mixed, group_by: str) -> qdrant.AnyFilter | None:
        """All but the items that a query was made of; all but their files, where files answer."""
        if not mixed.exclude:
            return None
        if group_by == "none":
            return qdrant.Filter(must_not=[qdrant.HasIdCondition(has_id=list(mixed.exclude))])
        made_of = self._index.store.retrieve(mixed.exclude)
        paths = [(record.payload or {})["path"] for record in made_of]
        match = qdrant.FieldCondition(key="path", match=qdrant.MatchAny(any=paths))
        return qdrant.Filter(must_not=[match])

    def _search_texts(self, texts: list[str], wanted: _Wanted) -> list[SearchResult]:
        """Block by block; while one is answered, the next is encoded."""
        blocks = [texts[begin : begin + BLOCK] for begin in range(0, len(texts), BLOCK)]
        if len(blocks) == 1:
            return self._answer_block(texts, wanted, *self._encode_block(texts, wanted))
        found: list[SearchResult] = []
        with ThreadPoolExecutor(1) as ahead:
            coming = [ahead.submit(self._encode_block, block, wanted) for block in blocks]
            for block, encoded in zip(blocks, coming, strict=True):
                found += self._answer_block(block, wanted, *encoded.result())
        return found

    def _encode_block(self, queries: list[str], wanted: _Wanted) -> tuple[Encoded, float, float]:
        """See `_encode`."""
        lane = wanted.lane
        wants_beams = lane == "generative" or (lane in ("auto", "fused") and self._uses_beams())
        return self._encode(
            queries, wants_beams, wanted.filter, media=lane not in SINGLE, explain=wanted.explain
        )

    def _answer_block(
        self,
        queries: list[str],
        wanted: _Wanted,
        encoded: Encoded,
        encode_ms: float,
        decode_ms: float,
    ) -> list[SearchResult]:
        """Results of encoded queries."""
        lane, k = wanted.lane, wanted.k
        resolve = time.perf_counter()
        calibration = self._calibration
        lanes = {calibration.strong, calibration.weak} if lane == "auto" else {lane}
        if lane == "auto" and calibration.confidence:
            lanes.add("fused")
        pools = self._collector.collect(
            encoded, limit=max(POOL, 5 * k), lanes=sorted(lanes), filter=wanted.filter
        )
        answers = [self._rank(pool, wanted) for pool in pools]
        hits = self._hits(queries, answers, wanted)
        if wanted.explain:
            hits = [
                self._explained(found, pools[b], encoded.one(b)) for b, found in enumerate(hits)
            ]
        end = time.perf_counter()
        took = {
            "encode": encode_ms / len(queries),
            "decode": decode_ms / len(queries),
            "resolve": (end - resolve) * 1e3 / len(queries),
            "total": (encode_ms + decode_ms + (end - resolve) * 1e3) / len(queries),
        }
        remarks = self._remarks(lane, reached=bool(encoded.media))
        return [
            SearchResult(
                query, chosen, self._version, dict(took), found, list(remarks)
            )
            for query, (chosen, _), found in zip(queries, answers, hits, strict=True)
        ]  # fmt: skip

    def _uses_beams(self) -> bool:
        return self._model is not None and self._calibration.reads_beams()

    def _remarks(self, lane: Lane, *, reached: bool) -> list[str]:
        remarks = []
        if self._model is None:
            remarks.append("not trained: `cartq train` makes answers better and quicker")
        if lane in SINGLE:
            return remarks
        if not reached and lane == "dense":
            remarks.append("no text reaches the media vectors before training: nothing is found")
        elif not reached:
            remarks.append("no text reaches the media vectors: captions alone answer")
        return remarks

    def _encode(
        self,
        queries: list[str],
        beams: bool,
        filter: qdrant.AnyFilter | None,
        *,
        media: bool,
        explain: bool = False,
    ) -> tuple[Encoded, float, float]:
        """The queries, and the milliseconds that encoding and decoding took.

        Args:
            beams: Whether to decode identifiers.
            media: Whether query vectors in media spaces are asked for; before training they may
                take the embedder.
            explain: Whether the generator is asked for reasons later.
        """
        begin = time.perf_counter()
        calibration = self._calibration
        if self._model is None:
            caption_BW = self._index.query_text_encoder().embed(queries)
            reached = self._untrained(queries, caption_BW) if media else {}
            hidden_states, mask = None, None
        else:
            corrects = (beams or explain) and any(calibration.gates)
            found = self._model.encode(queries, hidden_states=corrects)
            caption_BW = found.caption_BW
            text_anchors = self._index.distilled_anchors() if calibration.zero_shot else None
            reached = {
                space: blend(
                    x, None if text_anchors is None else text_anchors.embed(found.text_BW, space),
                    calibration.zero_shot,
                )
                for space, x in found.media.items()
            }  # fmt: skip
            hidden_states, mask = found.hidden_states, found.mask_BS
        middle = time.perf_counter()
        decoded = [Beams.none()] * len(queries)
        if beams and self._trie is not None and self._codec is not None and reached:
            decoded = decode(
                self._trie, self._codec, reached, scale=calibration.scale, width=self._width,
                gates=calibration.gates, generator=self._generator,
                hidden_states=hidden_states, mask_BS=mask,
                gains=self._gains, widen=self._rarity(filter),
            ) or decoded  # fmt: skip
        end = time.perf_counter()
        belief_BG = self._modality_prior.log_priors(caption_BW)
        encoded = Encoded(queries, reached, caption_BW, decoded, belief_BG, hidden_states, mask)
        return encoded, (middle - begin) * 1e3, (end - middle) * 1e3

    def _generator(self) -> Generator:
        assert self._model is not None, "gates are open after training alone"
        return self._model.generator

    def _rarity(self, filter: qdrant.AnyFilter | None) -> float:
        """How many items there are for each that a filter lets through."""
        if filter is None or self._trie is None:
            return 1.0
        return len(self._trie) / max(1, self._index.store.count(filter))

    def _untrained(self, queries: list[str], text_BW: FloatArray) -> dict[str, FloatArray]:
        """Query vectors in the spaces that text reaches without training."""
        text_anchors = self._index.text_anchors()
        found: dict[str, FloatArray | None]
        if text_anchors is not None:
            found = {space: text_anchors.embed(text_BW, space) for space in self._spaces}
        else:
            embedder = self._index.embedder()
            found = {space: embedder.embed_text(queries, space) for space in self._spaces}
        return {space: x for space, x in found.items() if x is not None}

    def _rank(self, pool: Pool, wanted: _Wanted) -> tuple[str, _Ranked]:
        """The lane that answers, and its candidates, best first."""
        lane, calibration = wanted.lane, self._calibration
        evidence = pool.evidence()
        chosen = calibration.route(evidence) if lane == "auto" else lane
        if not pool.ids:
            none = np.empty(0, np.float32)
            return chosen, _Ranked(pool, np.empty(0, np.intp), none, none)
        # What no beam names is no answer of the generative lane; `auto` fills up with it.
        order, scores = calibration.order(chosen, evidence, fill=lane == "auto")
        files = None
        if wanted.group_by == "file" and lane in CONFIDENT:
            files = np.unique(pool.facts.file_C, return_inverse=True)[1]
        sure = calibration.confidences(evidence, files) if lane in CONFIDENT else None
        return chosen, _answers(pool, order, scores, sure, wanted)

    def _hits(
        self, texts: Sequence[str], answers: Sequence[tuple[str, _Ranked]], wanted: _Wanted
    ) -> list[list[Hit]]:
        """The best of each lane's answer, with their payloads."""
        k = wanted.k
        best = [rows.ids(rows.order[:k]) for _, rows in answers]
        payloads = self._payloads({one for ids in best for one in ids})
        out: list[list[Hit]] = []
        for text, ids, (lane, rows) in zip(texts, best, answers, strict=True):
            words = words_of(text)
            found = self._take(lane, rows, ids, payloads, k, words)
            if len(found) < min(k, len(rows.order)):  # some were deleted meanwhile
                ids += rows.ids(rows.order[k:])
                payloads |= self._payloads(set(ids[k:]))
                found = self._take(lane, rows, ids, payloads, k, words)
            out.append(found)
        return out

    def _payloads(self, ids: set[str]) -> dict[str, dict[str, Any]]:
        found = self._index.store.retrieve(sorted(ids))
        return {str(r.id): dict(r.payload or {}) for r in found}

    def _take(
        self,
        lane: str,
        rows: _Ranked,
        ids: Sequence[str],
        payloads: Mapping[str, dict[str, Any]],
        k: int,
        words: frozenset[str],
    ) -> list[Hit]:
        """The first `k` of ranked points whose payload is there."""
        info = self._index.manifest.identifiers
        hits: list[Hit] = []
        for id, place in zip(ids, rows.order.tolist(), strict=False):
            payload = payloads.get(id)
            if payload is None:
                continue
            caption = best_caption(payload.get("captions") or [], words)
            cart = payload.get(info.field) if info is not None else None
            hits.append(
                Hit(
                    rank=len(hits) + 1, id=id, path=payload["path"],
                    modality=Modality(payload["modality"]), start=float(payload["start"]),
                    end=float(payload["end"]), score=float(rows.score_C[place]), lane=lane,
                    identifier=cart["id"] if cart else None,
                    caption=caption["text"] if caption else None, payload=payload,
                    confidence=None if rows.sure_C is None else float(rows.sure_C[place]),
                    moment=moment_of(caption, words), similarity=rows.pool.similarity(place),
                )
            )  # fmt: skip
            if len(hits) == k:
                break
        return hits

    def close(self) -> None:
        """Close the store, when running searches are through."""
        self._threads.shutdown()
        self._index.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _answers(
    pool: Pool, order: IndexArray, score_C: FloatArray, sure_C: FloatArray | None, wanted: _Wanted
) -> _Ranked:
    """Candidates that are sure enough; of each file the best, where files answer."""
    if wanted.min_confidence and sure_C is not None:
        order = order[sure_C[order] >= wanted.min_confidence]
    if wanted.group_by == "file":
        _, first = np.unique(pool.facts.file_C[order], return_index=True)
        order = order[np.sort(first)]
    return _Ranked(pool, order, score_C, sure_C)
