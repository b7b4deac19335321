"""The requests to the store by which the candidates of queries are collected.

There are two rounds: the lists of the lanes, then the scores that a candidate still lacks. Payloads
are read of the hits alone: `item_features` knows all else that ranks.
Shape legend: B queries, C candidates of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from cart_qdrant.arrays.types import FloatArray, MaskArray
from cart_qdrant.generator.beam_search import Beams
from cart_qdrant.index.index import Index
from cart_qdrant.search.candidates import Candidates
from cart_qdrant.search.encoding import EncodedQueries
from cart_qdrant.search.filters import has_caption, lacks_caption, merge_filters
from cart_qdrant.search.fusion import CAPTION_LANES
from cart_qdrant.search.lanes import LISTS
from cart_qdrant.search.store_lists import MIN_CANDIDATES, StoreList
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.protocol import CAPTION_TEXTS, MEDIA


class StoreLayout:
    """What is stored in one index: media spaces, modality groups, captions.

    Args:
        index: The index.
        group_of: Number of each modality's group.
        spaces: The media spaces in the order of their numbers.
    """

    def __init__(self, index: Index, group_of: Mapping[str, int], spaces: Sequence[str]) -> None:
        self.index, self.spaces = index, list(spaces)
        self._group_of = group_of
        self._groups: dict[str, dict[int, list[str]]] = {}
        for modality, space in index.manifest.embedder.spaces.items():
            of = self._groups.setdefault(space, {})
            of.setdefault(group_of[modality], []).append(modality)

    @cached_property
    def partly_captioned(self) -> bool:
        """Whether some items have a caption and some have none."""
        store = self.index.store
        return 0 < store.count(has_caption(self.index)) < store.count()

    def filters_of_groups(self, space: str) -> Iterator[qdrant.AnyFilter | None]:
        """A filter for the list of each modality group in a media space."""
        for modalities in self._groups[space].values():
            if len(modalities) == len(self._group_of):
                yield None
                continue
            match = qdrant.MatchAny(any=modalities)
            yield qdrant.Filter(must=[qdrant.FieldCondition(key="modality", match=match)])


@dataclass(frozen=True)
class StoreRequests:
    """The requests for one block of queries.

    Attributes:
        layout: What is stored.
        encoded: The queries.
        lanes: Lanes that may answer.
        filter: Condition on the payload that all candidates meet.
    """

    layout: StoreLayout
    encoded: EncodedQueries
    lanes: Sequence[str]
    filter: qdrant.AnyFilter | None

    @property
    def _slot(self) -> str:
        """Name of the vector that holds captions."""
        return self.layout.index.caption_vector

    @property
    def captions(self) -> bool:
        """Whether candidates are compared with captions that their list did not compare."""
        return self.encoded.is_text and not set(self.lanes) <= {"dense", *CAPTION_LANES, "rrf"}

    @property
    def generative(self) -> bool:
        """Whether beams alone name the candidates."""
        return list(self.lanes) == ["generative"]

    @cached_property
    def beams_are_scored(self) -> bool:
        """Whether the request for what beams name returns cosines: where all items are of one
        media space. It saves a request of the second round."""
        return len(self.encoded.vectors.media) == len(self.layout.spaces) == 1

    def lists(self) -> list[StoreList]:
        """The lists of the lanes, and of what beams name."""
        wanted = {by for lane in self.lanes for by in LISTS[lane]}
        if len(self.lanes) > 1:
            wanted.add("caption")  # the router looks at the best one
        dense: dict[str, qdrant.AnyFilter | None] = {"dense": None} if "dense" in wanted else {}
        partly = "without_caption" in wanted and self.encoded.is_text
        if partly and self.layout.partly_captioned:
            dense["without_caption"] = lacks_caption(self.layout.index)
        out: list[StoreList] = []
        for b, text in enumerate(self.encoded.texts):
            if len(self.encoded.beams[b].scores_K):
                out.append(StoreList(b, "beam"))
            for by, only in dense.items():
                for space, q_BD in self.encoded.vectors.media.items():
                    for group in self.layout.filters_of_groups(space):
                        within = merge_filters(group, only, self.filter)
                        out.append(StoreList(b, by, _asking(q_BD[b], MEDIA, within)))
            if "caption" in wanted:
                caption_W = self.encoded.vectors.caption_BW[b]
                out.append(StoreList(b, "caption", _asking(caption_W, self._slot, self.filter)))
            if "bm25" in wanted:
                words = qdrant.TextQuery(text=text)
                out.append(StoreList(b, "bm25", _asking(words, CAPTION_TEXTS, self.filter)))
        return out

    def of_beams(self, b: int, beams: Beams) -> qdrant.QueryRequest:
        """Request for the points that beams name; the nearest of them, if with their cosines."""
        limit = len(beams.scores_K)
        if not self.beams_are_scored:
            return qdrant.QueryRequest(filter=self._named(beams), limit=limit)
        limit = min(limit, MIN_CANDIDATES)
        (q_BD,) = self.encoded.vectors.media.values()
        return nearest(q_BD[b], MEDIA, self._named(beams), limit, exact=True)

    def captions_of_beams(self, b: int) -> qdrant.QueryRequest:
        """Request for the caption scores of the points that the first beams of a query name."""
        beams = self.encoded.beams[b]
        caption_W = self.encoded.vectors.caption_BW[b]
        return nearest(caption_W, self._slot, self._named(beams), len(beams.scores_K), exact=True)

    def _named(self, beams: Beams) -> qdrant.AnyFilter | None:
        """A filter for the points that beams name."""
        key, match = f"{self.layout.index.field}.id", qdrant.MatchAny(any=beams.ids())
        named = qdrant.Filter(must=[qdrant.FieldCondition(key=key, match=match)])
        return merge_filters(named, self.filter)

    def complete(self, found: Sequence[Candidates]) -> None:
        """Ask for the scores that the list of a candidate did not give."""
        if set(self.lanes) <= {*CAPTION_LANES, "rrf"}:
            return
        requests: list[qdrant.QueryRequest] = []
        owners: list[tuple[Candidates, FloatArray]] = []

        def ask(
            one: Candidates, scores_C: FloatArray, of_C: MaskArray, using: str, x: FloatArray
        ) -> None:
            missing = np.flatnonzero(of_C & np.isnan(scores_C)).tolist()
            if missing:
                some = qdrant.HasIdCondition(has_id=[one.ids[c] for c in missing])
                only = qdrant.Filter(must=[some])
                requests.append(nearest(x, using, only, len(missing), exact=True))
                owners.append((one, scores_C))

        vectors = self.encoded.vectors
        for b, one in enumerate(found):
            for space, q_BD in vectors.media.items():
                here = one.items.space_C == self.layout.spaces.index(space)
                ask(one, one.media_C, here, MEDIA, q_BD[b])
            if self.captions:
                ask(one, one.caption_C, ~one.compared_C, self._slot, vectors.caption_BW[b])
        answers = self.layout.index.store.query_ids(requests) if requests else []
        for (one, scores_C), answer in zip(owners, answers, strict=True):
            position, scores = one.positions(answer)
            scores_C[position] = scores


def _asking(
    query: FloatArray | qdrant.TextQuery, using: str, filter: qdrant.AnyFilter | None
) -> partial[qdrant.QueryRequest]:
    """Asks for what is nearest to a query among the points that a filter, and the one that it is
    called with, let through."""
    return partial(_ask, query, using, filter)


def _ask(
    query: FloatArray | qdrant.TextQuery,
    using: str,
    filter: qdrant.AnyFilter | None,
    unseen: qdrant.AnyFilter | None,
    limit: int,
) -> qdrant.QueryRequest:
    return nearest(query, using, merge_filters(filter, unseen), limit)


def nearest(
    query: FloatArray | qdrant.TextQuery,
    using: str,
    filter: qdrant.AnyFilter | None,
    limit: int,
    *,
    exact: bool = False,
) -> qdrant.QueryRequest:
    return qdrant.QueryRequest(
        query=query, using=using, filter=filter, limit=limit,
        params=qdrant.SearchParams(exact=True) if exact else None,
    )  # fmt: skip
