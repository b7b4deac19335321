"""Collects the candidates of queries from the store, with what each lane says about them.

There are two rounds: the lists of the lanes, then the scores that a candidate still lacks. Payloads
are read of the hits alone: `item_features` knows all else that ranks.
Shape legend: B queries, C candidates of one, U points of all, A points of one list.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np

from cart_qdrant.arrays.point_ids import keys_of
from cart_qdrant.arrays.types import FloatArray, MaskArray
from cart_qdrant.generator.beam_search import Beams
from cart_qdrant.index.index import Index
from cart_qdrant.search.candidates import Candidates, FoundList
from cart_qdrant.search.encoding import EncodedQueries
from cart_qdrant.search.filters import HAS_CAPTION, merge_filters
from cart_qdrant.search.fusion import CAPTION_LANES
from cart_qdrant.search.item_features import UNKNOWN_MODALITY, ItemFeatureReader
from cart_qdrant.search.lanes import LISTS
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.protocol import CAPTION, CAPTION_TEXTS, MEDIA

CAPTIONS_OF_BEAMS = "captions of beams"
"""Name of the request for the caption scores of items that beams name; it is no list of its own."""


@dataclass(frozen=True, slots=True)
class _Requests:
    """Requests to the store, and the query and list of each."""

    requests: list[qdrant.QueryRequest] = field(default_factory=list)
    owners: list[tuple[int, str]] = field(default_factory=list)

    def add(self, b: int, by: str, request: qdrant.QueryRequest) -> None:
        self.requests.append(request)
        self.owners.append((b, by))


class Collector:
    """Collects candidates from the store of one index.

    Args:
        index: The index.
        group_of: Number of each modality's group.
        spaces: The media spaces in the order of their numbers.
        items: Reads the features of items.
    """

    def __init__(
        self,
        index: Index,
        group_of: Mapping[str, int],
        spaces: Sequence[str],
        items: ItemFeatureReader,
    ) -> None:
        self._index, self._group_of, self._spaces = index, group_of, list(spaces)
        self._items = items
        self._groups: dict[str, dict[int, list[str]]] = {}
        for modality, space in index.manifest.embedder.spaces.items():
            of = self._groups.setdefault(space, {})
            of.setdefault(group_of[modality], []).append(modality)

    def collect(
        self,
        encoded: EncodedQueries,
        *,
        limit: int,
        lanes: Sequence[str],
        filter: qdrant.AnyFilter | None,
    ) -> list[Candidates]:
        """The candidates of each query, and all that the lanes say about them.

        Args:
            limit: Candidates of each list.
            lanes: Lanes that may answer; the generative one alone takes what beams name.
            filter: Condition on the payload that all candidates meet.
        """
        captions = encoded.is_text and not set(lanes) <= {"dense", *CAPTION_LANES, "rrf"}
        asked = self._first_round(encoded, limit, lanes, filter, captions=captions)
        answers = self._index.store.query_ids(asked.requests) if asked.requests else []
        out = self._candidates(encoded, asked.owners, answers)
        for (b, by), found in zip(asked.owners, answers, strict=True):
            if by == CAPTIONS_OF_BEAMS:
                position, scores = out[b].positions(found)
                out[b].caption_C[position] = scores
                out[b].compared_C |= ~np.isnan(out[b].beam_C)
        if not set(lanes) <= {*CAPTION_LANES, "rrf"}:
            self._second_round(out, encoded, captions=captions)
        return out

    def _first_round(
        self,
        encoded: EncodedQueries,
        limit: int,
        lanes: Sequence[str],
        filter: qdrant.AnyFilter | None,
        *,
        captions: bool,
    ) -> _Requests:
        """Requests for the lists of the lanes, and for what beams name."""
        asked = _Requests()
        wanted = {by for lane in lanes for by in LISTS[lane]}
        if len(lanes) > 1:
            wanted.add("caption")  # the router looks at the best one
        dense = {"dense": filter} if "dense" in wanted else {}
        if "without_caption" in wanted and self._partly_captioned and encoded.is_text:
            without = qdrant.Filter(must_not=[HAS_CAPTION])
            dense["without_caption"] = merge_filters(without, filter)
        for b, text in enumerate(encoded.texts):
            caption_W = encoded.vectors.caption_BW[b]
            if count := len(encoded.beams[b].scores_K):
                named = self._named(encoded.beams[b], filter)
                asked.add(b, "beam", self._beam_request(encoded, b, named, limit))
                if captions:
                    request = _nearest(caption_W, CAPTION, named, count, exact=True)
                    asked.add(b, CAPTIONS_OF_BEAMS, request)
            for by, only in dense.items():
                for space, q_BD in encoded.vectors.media.items():
                    for within in self._filters_of_groups(space, only):
                        asked.add(b, by, _nearest(q_BD[b], MEDIA, within, limit))
            if "caption" in wanted:
                asked.add(b, "caption", _nearest(caption_W, CAPTION, filter, limit))
            if "bm25" in wanted:
                words = qdrant.TextQuery(text=text)
                request = qdrant.QueryRequest(
                    query=words, using=CAPTION_TEXTS, filter=filter, limit=limit
                )
                asked.add(b, "bm25", request)
        return asked

    @cached_property
    def _partly_captioned(self) -> bool:
        """Whether some items have a caption and some have none."""
        store = self._index.store
        return 0 < store.count(qdrant.Filter(must=[HAS_CAPTION])) < store.count()

    def _filters_of_groups(
        self, space: str, filter: qdrant.AnyFilter | None
    ) -> Iterator[qdrant.AnyFilter | None]:
        """A filter for the list of each modality group in a media space."""
        for modalities in self._groups[space].values():
            if len(modalities) == len(self._group_of):
                yield filter
                continue
            match = qdrant.MatchAny(any=modalities)
            own = qdrant.Filter(must=[qdrant.FieldCondition(key="modality", match=match)])
            yield merge_filters(own, filter)

    def _named(self, beams: Beams, filter: qdrant.AnyFilter | None) -> qdrant.AnyFilter | None:
        """A filter for the points that beams name."""
        match = qdrant.MatchAny(any=beams.ids())
        named = qdrant.Filter(
            must=[qdrant.FieldCondition(key=f"{self._index.field}.id", match=match)]
        )
        return merge_filters(named, filter)

    def _beam_request(
        self, encoded: EncodedQueries, b: int, named: qdrant.AnyFilter | None, limit: int
    ) -> qdrant.QueryRequest:
        """Request for the points that beams name; the nearest of them, if with their cosines."""
        if self._beams_are_scored(encoded):
            (q_BD,) = encoded.vectors.media.values()
            return _nearest(q_BD[b], MEDIA, named, limit, exact=True)
        return qdrant.QueryRequest(filter=named, limit=len(encoded.beams[b].scores_K))

    def _beams_are_scored(self, encoded: EncodedQueries) -> bool:
        """Whether the request for what beams name returns cosines: where all items are of one
        media space. It saves a request of the second round."""
        return len(encoded.vectors.media) == len(self._spaces) == 1

    def _candidates(
        self,
        encoded: EncodedQueries,
        owners: Sequence[tuple[int, str]],
        answers: Sequence[qdrant.FoundIds],
    ) -> list[Candidates]:
        """The candidates of each query, from the lists that are its own."""
        asked = [
            (b, by, found)
            for (b, by), found in zip(owners, answers, strict=True)
            if by != CAPTIONS_OF_BEAMS
        ]
        ids = [one for _, _, found in asked for one in found.ids]
        # The features of a point are read once, whichever queries and lists found it.
        key_U, first_U, point_A = np.unique(keys_of(ids), return_index=True, return_inverse=True)
        id_U = [ids[n] for n in first_U.tolist()]
        ends = np.cumsum([0, *(len(found.ids) for _, _, found in asked)]).tolist()
        lists: list[list[FoundList]] = [[] for _ in encoded.texts]
        for (b, by, found), (begin, end) in zip(asked, pairwise(ends), strict=True):
            score_A = np.asarray(found.scores, np.float32)
            lists[b].append(FoundList(by, point_A[begin:end], score_A, score_A))
        named = [(b, one) for b, own in enumerate(lists) for one in own if one.by == "beam"]
        items, shares = self._items.read(
            id_U, key_U, [(encoded.beams[b], one.point_A) for b, one in named]
        )
        for (_, one), share_A in zip(named, shares, strict=True):
            one.score_A = share_A
        scored = self._beams_are_scored(encoded)
        out = []
        for log_prior_G, own in zip(encoded.log_prior_BG, lists, strict=True):
            some = np.unique(np.concatenate([np.empty(0, np.intp), *(m.point_A for m in own)]))
            some = some[items.space_C[some] != UNKNOWN_MODALITY]
            made = Candidates.of(
                log_prior_G, [id_U[n] for n in some], key_U[some], items.take(some)
            )
            for one in own:
                one.add_to(made, some, scored=scored)
            out.append(made)
        return out

    def _second_round(
        self, found: Sequence[Candidates], encoded: EncodedQueries, *, captions: bool
    ) -> None:
        """Ask for the scores that the list of a candidate did not give."""
        requests: list[qdrant.QueryRequest] = []
        owners: list[tuple[Candidates, FloatArray]] = []

        def ask(
            one: Candidates, scores_C: FloatArray, of_C: MaskArray, using: str, x: FloatArray
        ) -> None:
            missing = np.flatnonzero(of_C & np.isnan(scores_C)).tolist()
            if missing:
                some = qdrant.HasIdCondition(has_id=[one.ids[c] for c in missing])
                only = qdrant.Filter(must=[some])
                requests.append(_nearest(x, using, only, len(missing), exact=True))
                owners.append((one, scores_C))

        vectors = encoded.vectors
        for b, one in enumerate(found):
            for space, q_BD in vectors.media.items():
                here = one.items.space_C == self._spaces.index(space)
                ask(one, one.media_C, here, MEDIA, q_BD[b])
            if captions:
                ask(one, one.caption_C, ~one.compared_C, CAPTION, vectors.caption_BW[b])
        answers = self._index.store.query_ids(requests) if requests else []
        for (one, scores_C), answer in zip(owners, answers, strict=True):
            position, scores = one.positions(answer)
            scores_C[position] = scores


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
