"""`Retriever`: text to hits. Query -> vectors and beams -> payload filter and dense lanes -> hits.

Two rounds to the store: the lanes' candidates, then the scores that each candidate lacks. The
embedder is loaded only before training; afterwards the query encoder stands in for it.
Shape legend: B queries, C candidates, D vector width.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from qdrant_client import models

from cart_qdrant.errors import MismatchError, UsageError
from cart_qdrant.index.identify import load_codec, load_trie
from cart_qdrant.index.library import Library
from cart_qdrant.index.store import CAPTION, MEDIA
from cart_qdrant.learn.beam import Beams
from cart_qdrant.learn.decode import decode
from cart_qdrant.learn.fusion import Calibration, Evidence, untrained
from cart_qdrant.learn.model import Model
from cart_qdrant.records import Hit, Modality
from cart_qdrant.search.filters import merge_filters

FloatArray = npt.NDArray[np.float32]
Lane = Literal["auto", "generative", "dense", "fused"]

LANES: tuple[Lane, ...] = ("auto", "generative", "dense", "fused")
POOL = 100
"""Candidates of each lane at least; more when more hits are asked for."""
BLOCK = 64
"""Queries answered together."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Answers to one query.

    Attributes:
        lane: The lane that answered; with `auto`, the one the router chose.
        took_ms: Milliseconds for `encode`, `decode`, `resolve` and `total`; of a batch, its share.
        remarks: What the user should know, such as a lane that could not be used.
    """

    query: str
    lane: str
    index_version: str
    took_ms: dict[str, float]
    hits: list[Hit]
    remarks: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The `--json` contract."""
        return {
            "query": self.query,
            "lane": self.lane,
            "index_version": self.index_version,
            "took_ms": {k: round(v, 3) for k, v in self.took_ms.items()},
            "hits": [hit.to_json() for hit in self.hits],
        }


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A block of queries, encoded: media vectors per space, caption-space vectors, beams."""

    media: Mapping[str, FloatArray]
    text_BW: FloatArray
    beams: list[Beams]


@dataclass(slots=True)
class _Pool:
    """Candidates of one query and their evidence so far."""

    media: dict[str, float] = field(default_factory=dict)
    caption: dict[str, float] = field(default_factory=dict)
    beam: dict[str, float] = field(default_factory=dict)
    space: dict[str, int] = field(default_factory=dict)

    def ids(self) -> list[str]:
        return list(self.space)


class Retriever:
    """Searches one index. Use `open`; it is a context manager."""

    def __init__(self, library: Library) -> None:
        self._library = library
        manifest = library.manifest
        self._version = manifest.version
        self._trie, self._codec = load_trie(library), load_codec(library)
        self._model: Model | None = None
        modalities: dict[str, list[str]] = {}
        for modality, space in manifest.embedder.spaces.items():
            modalities.setdefault(space, []).append(modality)
        self._modalities = modalities
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
            folder = library.folder.path(manifest.generator.folder)
            self._model = Model.load(folder, library.text_encoder())
            self._calibration = self._model.calibration
        else:
            levels = manifest.identifiers.levels if manifest.identifiers else 0
            captions = (
                library.store.count(
                    models.Filter(must=[models.HasVectorCondition(has_vector=CAPTION)])
                )
                > 0
            )
            self._calibration = untrained(sorted(modalities), levels, captions)

    @classmethod
    def open(
        cls,
        root: Path | str = ".cartq",
        *,
        url: str | None = None,
        api_key: str | None = None,
        collection: str | None = None,
    ) -> Retriever:
        """Open an index for searching.

        Raises:
            IndexMissingError: There is none.
            MismatchError: Its parts are of different versions.
            StoreError: The store cannot be opened, or another process has it.
        """
        library = Library.open(Path(root), url=url, api_key=api_key, collection=collection)
        try:
            return cls(library)
        except BaseException:
            library.close()
            raise

    @property
    def base(self) -> Path:
        """Folder that hits' paths are relative to."""
        return self._library.folder.base

    @property
    def calibration(self) -> Calibration:
        """Weights and router in force."""
        return self._calibration

    def search(
        self,
        query: str,
        *,
        k: int = 10,
        lane: Lane = "auto",
        filter: models.Filter | None = None,
        group_by: Literal["file", "none"] = "file",
    ) -> SearchResult:
        """The best `k` hits for a text.

        Args:
            query: What to find.
            k: Hits (files when grouped by file, each by its best segment).
            lane: Who answers; `auto` lets the router choose.
            filter: Condition on the payload; both lanes obey it.
            group_by: `file` gives each file once.

        Raises:
            UsageError: An empty query, k under 1, an unknown lane or grouping.
        """
        return self.search_many([query], k=k, lane=lane, filter=filter, group_by=group_by)[0]

    def search_many(
        self,
        queries: Sequence[str],
        *,
        k: int = 10,
        lane: Lane = "auto",
        filter: models.Filter | None = None,
        group_by: Literal["file", "none"] = "file",
    ) -> list[SearchResult]:
        """`search` for many texts at once."""
        if k < 1:
            raise UsageError(f"k is {k}, but must be at least 1.")
        if lane not in LANES:
            raise UsageError(f"--lane is {lane!r}, but must be one of {', '.join(LANES)}.")
        if group_by not in ("file", "none"):
            raise UsageError(f"--group-by is {group_by!r}, but must be file or none.")
        if any(not query.strip() for query in queries):
            raise UsageError("The query is empty.", 'Say what to find: cartq search "a dog".')
        out: list[SearchResult] = []
        for begin in range(0, len(queries), BLOCK):
            block = list(queries[begin : begin + BLOCK])
            out += self._search_block(block, k, lane, filter, group_by)
        return out

    def _search_block(
        self, queries: list[str], k: int, lane: Lane, filter: models.Filter | None, group_by: str
    ) -> list[SearchResult]:
        begin = time.perf_counter()
        wants_beams = lane == "generative" or (lane in ("auto", "fused") and self._uses_beams())
        encoded, encode_ms, decode_ms = self._encode(queries, wants_beams)
        resolve = time.perf_counter()
        pools = self._candidates(encoded, k, lane, filter)
        self._complete(pools, encoded)
        answers = [self._rank(pool, lane) for pool in pools]
        hits = self._hits([a[1] for a in answers], k, group_by)
        end = time.perf_counter()
        took = {
            "encode": encode_ms / len(queries),
            "decode": decode_ms / len(queries),
            "resolve": (end - resolve) * 1e3 / len(queries),
            "total": (end - begin) * 1e3 / len(queries),
        }
        remarks = self._remarks(lane, reached=bool(encoded.media))
        return [
            SearchResult(
                query, chosen, self._version, dict(took),
                [replace(hit, lane=chosen) for hit in found], list(remarks),
            )
            for query, (chosen, _), found in zip(queries, answers, hits, strict=True)
        ]  # fmt: skip

    def _uses_beams(self) -> bool:
        return self._model is not None and self._calibration.reads_beams()

    def _remarks(self, lane: Lane, *, reached: bool) -> list[str]:
        remarks = []
        if self._model is None:
            remarks.append("not trained: `cartq train` makes answers better and quicker")
        if not reached and lane == "dense":
            remarks.append("no text reaches the media vectors before training: nothing is found")
        elif not reached:
            remarks.append("no text reaches the media vectors: captions alone answer")
        return remarks

    def _encode(self, queries: list[str], beams: bool) -> tuple[_Encoded, float, float]:
        begin = time.perf_counter()
        calibration = self._calibration
        if self._model is None:
            text_BW = self._library.text_encoder().embed(queries)
            media = self._untrained(queries, text_BW)
            taps, mask = None, None
        else:
            ids = self._model.encoder.tokenize(queries)
            found = self._model.encoder.encode(ids, bf16=len(queries) > 8)
            text_BW = found.text_BW.float().numpy()
            media = {space: x.float().numpy() for space, x in found.media.items()}
            taps, mask = tuple(t.float() for t in found.taps), found.mask_BS
        middle = time.perf_counter()
        decoded = [Beams(np.empty((0, 1), np.int32), np.empty(0, np.float32))] * len(queries)
        if beams and self._trie is not None and self._codec is not None and media:
            decoded = decode(
                self._trie, self._codec, media, scale=calibration.scale, width=calibration.beams,
                gates=calibration.gates,
                generator=self._model.generator if self._model else None,
                taps=taps, mask_BS=mask,
            ) or decoded  # fmt: skip
        end = time.perf_counter()
        encoded = _Encoded(media, text_BW, decoded)
        return encoded, (middle - begin) * 1e3, (end - middle) * 1e3

    def _untrained(self, queries: list[str], text_BW: FloatArray) -> dict[str, FloatArray]:
        """Query vectors in the spaces that text reaches without training."""
        lexicon = self._library.lexicon()
        found: dict[str, FloatArray | None]
        if lexicon is not None:
            found = {space: lexicon.embed(text_BW, space) for space in self._modalities}
        else:
            embedder = self._library.embedder()
            found = {space: embedder.embed_text(queries, space) for space in self._modalities}
        return {space: x for space, x in found.items() if x is not None}

    def _in_space(self, space: str, filter: models.Filter | None) -> models.Filter | None:
        if len(self._modalities) == 1:
            return filter
        match = models.MatchAny(any=self._modalities[space])
        mine = models.Filter(must=[models.FieldCondition(key="modality", match=match)])
        return merge_filters(mine, filter)

    def _candidates(
        self, encoded: _Encoded, k: int, lane: Lane, filter: models.Filter | None
    ) -> list[_Pool]:
        """One batch to the store: beams resolved by a payload filter, dense lanes beside them."""
        limit = max(POOL, 5 * k)
        info = self._library.manifest.identifiers
        requests: list[models.QueryRequest] = []
        owners: list[tuple[int, str]] = []
        needed = [MEDIA] if lane == "dense" else [MEDIA, CAPTION]
        for b in range(len(encoded.text_BW)):
            beams = encoded.beams[b]
            if info is not None and len(beams.scores_K):
                match = models.MatchAny(any=beams.ids())
                named = models.Filter(
                    must=[models.FieldCondition(key=f"{info.field}.id", match=match)]
                )
                requests.append(
                    models.QueryRequest(
                        filter=merge_filters(named, filter), limit=len(beams.scores_K),
                        with_payload=["modality", f"{info.field}.id"],
                    )
                )  # fmt: skip
                owners.append((b, "beam"))
            if lane == "generative":
                continue
            for space, q_BD in encoded.media.items():
                requests.append(
                    models.QueryRequest(
                        query=q_BD[b].tolist(), using=MEDIA, filter=self._in_space(space, filter),
                        limit=limit, with_payload=["modality"],
                    )
                )  # fmt: skip
                owners.append((b, MEDIA))
            if CAPTION in needed:
                requests.append(
                    models.QueryRequest(
                        query=encoded.text_BW[b].tolist(), using=CAPTION, filter=filter,
                        limit=limit, with_payload=["modality"],
                    )
                )  # fmt: skip
                owners.append((b, CAPTION))
        pools = [_Pool() for _ in encoded.text_BW]
        if not requests:
            return pools
        number = {space: n for n, space in enumerate(self._calibration.spaces)}
        field = info.field if info is not None else "cart"
        log_probs = [
            dict(zip(beams.ids(), beams.log_probs().tolist(), strict=True))
            for beams in encoded.beams
        ]
        answers = self._library.store.query_batch(requests)
        for (b, kind), points in zip(owners, answers, strict=True):
            pool = pools[b]
            for point in points:
                payload = point.payload or {}
                one = str(point.id)
                where = self._library.space(payload.get("modality", ""))
                if where is None:
                    continue
                pool.space[one] = number.get(where, -1)
                if kind == MEDIA:
                    pool.media[one] = point.score
                elif kind == CAPTION:
                    pool.caption[one] = point.score
                else:
                    pool.beam[one] = log_probs[b][payload[field]["id"]]
        return pools

    def _complete(self, pools: list[_Pool], encoded: _Encoded) -> None:
        """A second batch: the scores that a candidate's own lane did not give."""
        requests: list[models.QueryRequest] = []
        owners: list[tuple[_Pool, dict[str, float]]] = []
        names = self._calibration.spaces
        for b, pool in enumerate(pools):
            for space, q_BD in encoded.media.items():
                missing = [
                    one
                    for one, n in pool.space.items()
                    if n >= 0 and names[n] == space and one not in pool.media
                ]
                self._ask(requests, owners, pool, pool.media, missing, MEDIA, q_BD[b])
            missing = [one for one in pool.ids() if one not in pool.caption]
            self._ask(requests, owners, pool, pool.caption, missing, CAPTION, encoded.text_BW[b])
        if not requests:
            return
        answers = self._library.store.query_batch(requests)
        for (_, target), points in zip(owners, answers, strict=True):
            target.update({str(point.id): point.score for point in points})

    @staticmethod
    def _ask(
        requests: list[models.QueryRequest],
        owners: list[tuple[_Pool, dict[str, float]]],
        pool: _Pool,
        target: dict[str, float],
        ids: list[str],
        using: str,
        vector: FloatArray,
    ) -> None:
        if ids:
            requests.append(
                models.QueryRequest(
                    query=vector.tolist(), using=using, limit=len(ids), with_payload=False,
                    filter=models.Filter(must=[models.HasIdCondition(has_id=list(ids))]),
                )
            )  # fmt: skip
            owners.append((pool, target))

    def _rank(self, pool: _Pool, lane: Lane) -> tuple[str, list[tuple[str, float]]]:
        """The lane that answers, and candidates with their scores, best first."""
        ids = pool.ids()
        nan = float("nan")
        evidence = Evidence(
            np.asarray([pool.media.get(i, nan) for i in ids], np.float32),
            np.asarray([pool.caption.get(i, nan) for i in ids], np.float32),
            np.asarray([pool.beam.get(i, nan) for i in ids], np.float32),
            np.asarray([pool.space[i] for i in ids], np.intp),
        )
        chosen = self._calibration.route(evidence) if lane == "auto" else lane
        if not ids:
            return chosen, []
        scores = self._calibration.score(chosen, evidence)
        order = np.argsort(-scores, kind="stable")
        if chosen == "generative":
            # What no beam names is no answer of this lane; `auto` fills up with it.
            named = order[evidence.named[order]]
            rest = order[~evidence.named[order]]
            order = np.concatenate([named, rest]) if lane == "auto" else named
        return chosen, [(ids[n], float(scores[n])) for n in order]

    def _hits(
        self, ranked: list[list[tuple[str, float]]], k: int, group_by: str
    ) -> list[list[Hit]]:
        """Payloads of the best, grouped by file when asked."""
        # A file may hold many of the best segments: read some more than k, and all if need be.
        depth = k if group_by == "none" else 4 * k
        out: list[list[Hit]] = []
        wanted = list(dict.fromkeys(one for rows in ranked for one, _ in rows[:depth]))
        payloads = self._payloads(wanted)
        for rows in ranked:
            found = self._take(rows, payloads, k, group_by)
            if len(found) < min(k, len(rows)) and len(rows) > depth:
                payloads |= self._payloads([one for one, _ in rows[depth:]])
                found = self._take(rows, payloads, k, group_by)
            out.append(found)
        return out

    def _payloads(self, ids: list[str]) -> dict[str, dict[str, Any]]:
        return {str(r.id): dict(r.payload or {}) for r in self._library.store.retrieve(ids)}

    def _take(
        self,
        rows: list[tuple[str, float]],
        payloads: Mapping[str, dict[str, Any]],
        k: int,
        group_by: str,
    ) -> list[Hit]:
        info = self._library.manifest.identifiers
        hits: list[Hit] = []
        seen: set[str] = set()
        for one, score in rows:
            payload = payloads.get(one)
            if payload is None or (group_by == "file" and payload["path"] in seen):
                continue
            seen.add(payload["path"])
            captions = payload.get("captions") or []
            cart = payload.get(info.field) if info is not None else None
            hits.append(
                Hit(
                    rank=len(hits) + 1, id=one, path=payload["path"],
                    modality=Modality(payload["modality"]), start=float(payload["start"]),
                    end=float(payload["end"]), score=score, lane="",
                    identifier=cart["id"] if cart else None,
                    caption=captions[0]["text"] if captions else None, payload=payload,
                )
            )  # fmt: skip
            if len(hits) == k:
                break
        return hits

    def close(self) -> None:
        """Close the store."""
        self._library.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
