"""Ranked candidates to hits: their payloads are read, and made into records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cart_qdrant.index.index import Index
from cart_qdrant.records import Hit, Modality
from cart_qdrant.search.caption_match import best_caption, moment_of, words_of
from cart_qdrant.search.ranking import Ranking

Payload = dict[str, Any]


class HitReader:
    """Reads the hits of one index."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def read(
        self, texts: Sequence[str], rankings: Sequence[Ranking], k: int, offset: int = 0
    ) -> list[list[Hit]]:
        """The best `k` of each ranking, with their payloads.

        Args:
            texts: Text of each query, by which the caption of a hit is chosen.
            rankings: Ranking of each query.
            k: Hits of each query.
            offset: Number of the best of each ranking that are passed over.
        """
        rankings = [replace(one, order=one.order[offset:]) for one in rankings]
        best = [ranking.ids(ranking.order[:k]) for ranking in rankings]
        payloads = self._payloads({one for ids in best for one in ids})
        out: list[list[Hit]] = []
        for text, ids, ranking in zip(texts, best, rankings, strict=True):
            words = words_of(text)
            found = self._first(ranking, ids, payloads, k, words, offset)
            if len(found) < min(k, len(ranking.order)):  # some were deleted meanwhile
                ids += ranking.ids(ranking.order[k:])
                payloads |= self._payloads(set(ids[k:]))
                found = self._first(ranking, ids, payloads, k, words, offset)
            out.append(found)
        return out

    def _payloads(self, ids: set[str]) -> dict[str, Payload]:
        found = self._index.store.retrieve(sorted(ids))
        return {str(record.id): dict(record.payload or {}) for record in found}

    def _first(
        self,
        ranking: Ranking,
        ids: Sequence[str],
        payloads: Mapping[str, Payload],
        k: int,
        words: frozenset[str],
        offset: int,
    ) -> list[Hit]:
        """The first `k` ranked points that still have a payload."""
        hits: list[Hit] = []
        for id, c in zip(ids, ranking.order.tolist(), strict=False):
            payload = payloads.get(id)
            if payload is not None:
                hits.append(self._hit(ranking, c, payload, words, rank=offset + len(hits) + 1))
            if len(hits) == k:
                break
        return hits

    def _hit(
        self, ranking: Ranking, c: int, payload: Payload, words: frozenset[str], *, rank: int
    ) -> Hit:
        info = self._index.manifest.identifiers
        caption = best_caption(payload.get("captions") or [], words)
        cart = payload.get(info.field) if info is not None else None
        confidence_C = ranking.confidence_C
        return Hit(
            rank=rank,
            id=str(ranking.candidates.ids[c]),
            path=payload["path"],
            modality=Modality(payload["modality"]),
            start=float(payload["start"]),
            end=float(payload["end"]),
            score=float(ranking.score_C[c]),
            lane=ranking.lane,
            identifier=cart["id"] if cart else None,
            caption=caption["text"] if caption else None,
            payload=payload,
            confidence=None if confidence_C is None else float(confidence_C[c]),
            moment=moment_of(caption, words),
            similarity=ranking.candidates.similarity(c),
        )
