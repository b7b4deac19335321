"""Candidates of queries from the store, with what each lane says about them.

Two rounds: the lanes' candidates, then the scores that each candidate lacks. Payloads are read of
the hits alone: what ranks candidates is known beforehand, see `facts`.
Shape legend: B queries, C candidates of one, U points of all, A points of one list, D vector width,
W sentence width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from cart_qdrant.arrays.point_ids import keys_of
from cart_qdrant.arrays.types import FloatArray, IndexArray, KeyArray, MaskArray
from cart_qdrant.generator.beam_search import Beams
from cart_qdrant.identifiers.item_table import places_in
from cart_qdrant.index.index import Index
from cart_qdrant.search.filters import merge_filters
from cart_qdrant.search.fusion import SINGLE, Evidence
from cart_qdrant.search.item_features import FOREIGN_KIND, FactFinder, Facts
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.protocol import CAPTION, CAPTION_TEXTS, MEDIA

LISTS: Mapping[str, tuple[str, ...]] = {
    "generative": (),
    "dense": ("dense",),
    "fused": ("dense", "without_caption", "caption"),
    "caption": ("caption",),
    "bm25": ("bm25",),
    "rrf": ("dense", "caption", "bm25"),
}
"""Lists that a lane takes its candidates from, besides what beams name. `without_caption` is
`dense` among items that have no caption: where these are few, `dense` finds hardly any of them."""
DESCRIBED = qdrant.HasVectorCondition(has_vector=CAPTION)
CAPTIONS_OF_BEAMS = "captions of beams"
"""What is asked of named items besides: no list of its own."""
POOL = 100
"""Candidates of each lane at least; more when more hits are asked for."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A block of queries, encoded.

    Attributes:
        texts: The queries.
        media: Query vectors (B, D) in each media space that they reach.
        caption_BW: Query vectors in the caption space; zero where a query is no text.
        beams: Decoded identifiers.
        belief_BG: log pi of each vertical.
        taps: Text states that the generator reads; None where it does not.
        mask_BS: Where they hold a token.
    """

    texts: Sequence[str]
    media: Mapping[str, FloatArray]
    caption_BW: FloatArray
    beams: list[Beams]
    belief_BG: FloatArray
    hidden_states: tuple[FloatArray, ...] | None = None
    mask_BS: MaskArray | None = None

    @property
    def is_text(self) -> bool:
        """Whether the queries are texts: others have no likeness to captions."""
        return bool(self.caption_BW.any())

    def one(self, b: int) -> Encoded:
        """Query `b` alone."""
        here = slice(b, b + 1)
        return Encoded(
            self.texts[here],
            {space: q_BD[here] for space, q_BD in self.media.items()},
            self.caption_BW[here], self.beams[here], self.belief_BG[here],
            None if self.hidden_states is None else tuple(tap[here] for tap in self.hidden_states),
            None if self.mask_BS is None else self.mask_BS[here],
        )  # fmt: skip


@dataclass(slots=True)
class Pool:
    """Candidates of one query, in order of their ids; NaN where a lane says nothing.

    Attributes:
        belief_G: log pi of each vertical.
        ids: Point ids, as the store has them.
        key_C: The same, see `point_ids.keys_of`.
        facts: What is known of each whatever the query.
        media_C: Cosine of query and media vector.
        caption_C: Cosine of query and caption vector.
        beam_C: Log of the share of the beam that names it.
        words_C: BM25 of the captions.
        looked_C: Whether its caption was compared already; it may have none.
        found: Candidates (places among them) by the list that found them.
    """

    belief_G: FloatArray
    ids: list[Any]
    key_C: KeyArray
    facts: Facts
    media_C: FloatArray
    caption_C: FloatArray
    beam_C: FloatArray
    words_C: FloatArray
    looked_C: MaskArray
    found: dict[str, IndexArray]

    @classmethod
    def of(cls, belief_G: FloatArray, ids: list[Any], key_C: KeyArray, facts: Facts) -> Pool:
        """Of candidates that no lane has said anything about yet."""
        media, caption, beam, words = np.full((4, len(ids)), np.nan, np.float32)
        looked = np.zeros(len(ids), bool)
        return cls(belief_G, ids, key_C, facts, media, caption, beam, words, looked, {})

    def places(self, found: qdrant.FoundIds) -> tuple[IndexArray, FloatArray]:
        """Places of points that are candidates, and their scores."""
        place = places_in(self.key_C, keys_of(found.ids))
        return place[place >= 0], np.asarray(found.scores, np.float32)[place >= 0]

    def ranks(self) -> dict[str, dict[str, int]]:
        """Places of candidates, from 1, in each list that found them."""
        out: dict[str, dict[str, int]] = {}
        for by, places in self.found.items():
            order = places[np.argsort(-self.scores(by)[places], kind="stable")]
            out[by] = {str(self.ids[c]): n for n, c in enumerate(order.tolist(), start=1)}
        return out

    def scores(self, by: str) -> FloatArray:
        """Scores (C,) of one list."""
        return {
            "beam": self.beam_C, "dense": self.media_C, "without_caption": self.media_C,
            "caption": self.caption_C, "bm25": self.words_C,
        }[by]  # fmt: skip

    def similarity(self, place: int) -> float | None:
        """Cosine of the query and a candidate's media vector, else its caption's; None where
        neither was compared."""
        for cosine_C in (self.media_C, self.caption_C):
            if not np.isnan(cosine_C[place]):
                return float(cosine_C[place])
        return None

    def belief_of(self, place: int) -> float | None:
        """How likely the query is for media of a candidate's kind; None where kinds are not told
        apart."""
        if len(self.belief_G) < 2:
            return None
        return float(np.exp(self.belief_G[self.facts.vertical_C[place]]))

    def evidence(self) -> Evidence:
        """What the lanes say about the candidates."""
        facts = self.facts
        return Evidence(
            self.media_C, self.caption_C, self.beam_C, facts.space_C, facts.hub_C,
            facts.caption_hub_C, self.words_C, facts.vertical_C, self.belief_G,
        )  # fmt: skip


@dataclass(slots=True)
class _List:
    """What one search found of a query's candidates.

    Attributes:
        by: Name of the list.
        point_A: The points, by their places among all that the block of queries found.
        answer_A: What the store said of each.
        scores_A: What the list ranks by.
    """

    by: str
    point_A: IndexArray
    answer_A: FloatArray
    scores_A: FloatArray

    def add_to(self, pool: Pool, some: IndexArray, *, scored: bool) -> None:
        """Put into a pool what is said of its candidates.

        Args:
            some: Points that the candidates are.
            scored: Whether points that beams name come with their cosine.
        """
        place = places_in(some, self.point_A)
        here = (place >= 0) & ~np.isnan(self.scores_A)  # NaN: its identifier changed meanwhile
        place = place[here]
        pool.scores(self.by)[place] = self.scores_A[here]
        if self.by == "beam" and scored:
            pool.media_C[place] = self.answer_A[here]
        found = pool.found.get(self.by)
        pool.found[self.by] = place if found is None else np.concatenate([found, place])
        if self.by == "without_caption":
            pool.looked_C[place] = True


class Collector:
    """Asks the store of one index.

    Args:
        index: The index.
        verticals: Number of each modality's vertical.
        spaces: The spaces in the order of their numbers.
        facts: Knows the items.
    """

    def __init__(
        self,
        index: Index,
        modality_prior: Mapping[str, int],
        spaces: Sequence[str],
        facts: FactFinder,
    ) -> None:
        self._index, self._modality_prior, self._spaces = index, modality_prior, list(spaces)
        self._facts = facts
        self._lists: dict[str, dict[int, list[str]]] = {}
        for modality, space in index.manifest.embedder.spaces.items():
            of = self._lists.setdefault(space, {})
            of.setdefault(modality_prior[modality], []).append(modality)

    @cached_property
    def _partly(self) -> bool:
        """Whether some items have a caption and some have none."""
        store = self._index.store
        return 0 < store.count(qdrant.Filter(must=[DESCRIBED])) < store.count()

    def _lists_of(
        self, space: str, filter: qdrant.AnyFilter | None
    ) -> Iterator[qdrant.AnyFilter | None]:
        """A condition for each list of a space: one of every vertical."""
        for modalities in self._lists[space].values():
            if len(modalities) == len(self._modality_prior):
                yield filter
                continue
            match = qdrant.MatchAny(any=modalities)
            mine = qdrant.Filter(must=[qdrant.FieldCondition(key="modality", match=match)])
            yield merge_filters(mine, filter)

    def collect(
        self, encoded: Encoded, *, limit: int, lanes: Sequence[str], filter: qdrant.AnyFilter | None
    ) -> list[Pool]:
        """Candidates of each query and all that the lanes say about them.

        Args:
            limit: Candidates of each nearest-vector search.
            lanes: Which lanes may answer; the generative one alone takes what beams name.
            filter: Condition on the payload that all candidates meet.
        """
        requests: list[qdrant.QueryRequest] = []
        owners: list[tuple[int, str]] = []
        wanted = {by for lane in lanes for by in LISTS[lane]}
        if len(lanes) > 1:
            wanted.add("caption")  # the router looks at the best one
        captions = encoded.is_text and not set(lanes) <= {"dense", *SINGLE, "rrf"}
        nearest = {"dense": filter} if "dense" in wanted else {}
        if "without_caption" in wanted and self._partly and encoded.is_text:
            nearest["without_caption"] = merge_filters(qdrant.Filter(must_not=[DESCRIBED]), filter)
        for b in range(len(encoded.texts)):
            if len(encoded.beams[b].scores_K):
                named = self._named(encoded.beams[b], filter)
                requests.append(self._beam_request(encoded, b, named, limit))
                owners.append((b, "beam"))
                if captions:
                    limit_K = len(encoded.beams[b].scores_K)
                    x_W = encoded.caption_BW[b]
                    requests.append(_nearest(x_W, CAPTION, named, limit_K, exact=True))
                    owners.append((b, CAPTIONS_OF_BEAMS))
            for by, only in nearest.items():
                for space, q_BD in encoded.media.items():
                    for within in self._lists_of(space, only):
                        requests.append(_nearest(q_BD[b], MEDIA, within, limit))
                        owners.append((b, by))
            if "caption" in wanted:
                x_W = encoded.caption_BW[b]
                requests.append(_nearest(x_W, CAPTION, filter, limit))
                owners.append((b, "caption"))
            if "bm25" in wanted:
                requests.append(
                    qdrant.QueryRequest(
                        query=qdrant.TextQuery(text=encoded.texts[b]), using=CAPTION_TEXTS,
                        filter=filter, limit=limit,
                    )
                )  # fmt: skip
                owners.append((b, "bm25"))
        answers = self._index.store.query_ids(requests) if requests else []
        pools = self._pools(encoded, owners, answers)
        for (b, by), found in zip(owners, answers, strict=True):
            if by == CAPTIONS_OF_BEAMS:
                place, scores = pools[b].places(found)
                pools[b].caption_C[place] = scores
                pools[b].looked_C |= ~np.isnan(pools[b].beam_C)
        if not set(lanes) <= {*SINGLE, "rrf"}:
            self._complete(pools, encoded, captions=captions)
        return pools

    def _pools(
        self,
        encoded: Encoded,
        owners: Sequence[tuple[int, str]],
        answers: Sequence[qdrant.FoundIds],
    ) -> list[Pool]:
        """The candidates of each query, from the lists that are its own."""
        asked = [
            (b, by, found)
            for (b, by), found in zip(owners, answers, strict=True)
            if by != CAPTIONS_OF_BEAMS
        ]
        ids = [one for _, _, found in asked for one in found.ids]
        # What is known of a point is looked up once, whichever queries and lists it is in.
        key_U, first_U, point_A = np.unique(keys_of(ids), return_index=True, return_inverse=True)
        id_U = [ids[n] for n in first_U.tolist()]
        ends = np.cumsum([0, *(len(found.ids) for _, _, found in asked)]).tolist()
        lists: list[list[_List]] = [[] for _ in encoded.texts]
        for (b, by, found), (begin, end) in zip(asked, pairwise(ends), strict=True):
            scores_A = np.asarray(found.scores, np.float32)
            lists[b].append(_List(by, point_A[begin:end], scores_A, scores_A))
        named = [(b, one) for b, mine in enumerate(lists) for one in mine if one.by == "beam"]
        facts, shares = self._facts.of(
            id_U, key_U, [(encoded.beams[b], one.point_A) for b, one in named]
        )
        for (_, one), share_A in zip(named, shares, strict=True):
            one.scores_A = share_A
        scored = self._scores_named(encoded)
        pools = []
        for belief_G, mine in zip(encoded.belief_BG, lists, strict=True):
            some = np.unique(np.concatenate([np.empty(0, np.intp), *(m.point_A for m in mine)]))
            some = some[facts.space_C[some] != FOREIGN_KIND]
            pool = Pool.of(belief_G, [id_U[n] for n in some], key_U[some], facts.take(some))
            for one in mine:
                one.add_to(pool, some, scored=scored)
            pools.append(pool)
        return pools

    def _named(self, beams: Beams, filter: qdrant.AnyFilter | None) -> qdrant.AnyFilter | None:
        """Holds for the points that beams name."""
        match = qdrant.MatchAny(any=beams.ids())
        named = qdrant.Filter(
            must=[qdrant.FieldCondition(key=f"{self._index.field}.id", match=match)]
        )
        return merge_filters(named, filter)

    def _beam_request(
        self, encoded: Encoded, b: int, named: qdrant.AnyFilter | None, limit: int
    ) -> qdrant.QueryRequest:
        """Points that beams name; the nearest of them, where cosines come along."""
        if self._scores_named(encoded):
            (q_BD,) = encoded.media.values()
            return _nearest(q_BD[b], MEDIA, named, limit, exact=True)
        return qdrant.QueryRequest(filter=named, limit=len(encoded.beams[b].scores_K))

    def _scores_named(self, encoded: Encoded) -> bool:
        """Whether what beams name comes with its cosine, which saves asking again: where all items
        are of one space."""
        return len(encoded.media) == len(self._spaces) == 1

    def _complete(self, pools: Sequence[Pool], encoded: Encoded, *, captions: bool) -> None:
        """A second round: the scores that a candidate's own lane did not give."""
        requests: list[qdrant.QueryRequest] = []
        owners: list[tuple[Pool, FloatArray]] = []

        def ask(pool: Pool, scores_C: FloatArray, of: MaskArray, using: str, x: FloatArray) -> None:
            missing = np.flatnonzero(of & np.isnan(scores_C)).tolist()
            if missing:
                some = qdrant.HasIdCondition(has_id=[pool.ids[c] for c in missing])
                only = qdrant.Filter(must=[some])
                requests.append(_nearest(x, using, only, len(missing), exact=True))
                owners.append((pool, scores_C))

        for b, pool in enumerate(pools):
            for space, q_BD in encoded.media.items():
                here = pool.facts.space_C == self._spaces.index(space)
                ask(pool, pool.media_C, here, MEDIA, q_BD[b])
            if captions:
                ask(pool, pool.caption_C, ~pool.looked_C, CAPTION, encoded.caption_BW[b])
        answers = self._index.store.query_ids(requests) if requests else []
        for (pool, scores_C), found in zip(owners, answers, strict=True):
            place, scores = pool.places(found)
            scores_C[place] = scores


def _nearest(
    vector: FloatArray,
    using: str,
    filter: qdrant.AnyFilter | None,
    limit: int,
    *,
    exact: bool = False,
) -> qdrant.QueryRequest:
    return qdrant.QueryRequest(
        query=vector, using=using, filter=filter, limit=limit,
        params=qdrant.SearchParams(exact=True) if exact else None,
    )  # fmt: skip
