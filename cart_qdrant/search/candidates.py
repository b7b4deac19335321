"""Candidates of queries from the store, with what each lane says about them.

Two rounds: the lanes' candidates, then the scores that each candidate lacks.
Shape legend: B queries, D vector width, W sentence width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from cart_qdrant.index import qdrant
from cart_qdrant.index.library import Library
from cart_qdrant.index.store import CAPTION, CAPTION_TEXTS, MEDIA
from cart_qdrant.learn.beam import Beams
from cart_qdrant.learn.fusion import SINGLE, Evidence
from cart_qdrant.search.filters import merge_filters

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.intp]
MaskArray = npt.NDArray[np.bool_]

LISTS: Mapping[str, tuple[str, ...]] = {
    "generative": (),
    "dense": ("dense",),
    "fused": ("dense", "undescribed", "caption"),
    "caption": ("caption",),
    "bm25": ("bm25",),
    "rrf": ("dense", "caption", "bm25"),
}
"""Lists that a lane takes its candidates from, besides what beams name. `undescribed` is `dense`
among items without a caption: where these are few, `dense` holds next to none of them."""
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
    taps: tuple[FloatArray, ...] | None = None
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
            None if self.taps is None else tuple(tap[here] for tap in self.taps),
            None if self.mask_BS is None else self.mask_BS[here],
        )  # fmt: skip


@dataclass(slots=True)
class Pool:
    """Candidates of one query: scores by point id, the numbers of each one's space and vertical,
    hubness, file; and what is believed of the verticals."""

    belief_G: FloatArray
    media: dict[str, float] = field(default_factory=dict)
    caption: dict[str, float] = field(default_factory=dict)
    beam: dict[str, float] = field(default_factory=dict)
    space: dict[str, int] = field(default_factory=dict)
    vertical: dict[str, int] = field(default_factory=dict)
    hub: dict[str, float] = field(default_factory=dict)
    caption_hub: dict[str, float] = field(default_factory=dict)
    words: dict[str, float] = field(default_factory=dict)
    path: dict[str, str] = field(default_factory=dict)
    looked: set[str] = field(default_factory=set)
    """Candidates whose captions were compared already; they may have none."""
    found: dict[str, list[str]] = field(default_factory=dict)
    """Candidates by the list that found them."""

    def ranks(self) -> dict[str, dict[str, int]]:
        """Places of candidates, from 1, in each list that found them."""
        out: dict[str, dict[str, int]] = {}
        for by, ids in self.found.items():
            scores = self.scores(by)
            order = sorted(ids, key=lambda one: -scores[one])
            out[by] = {one: n for n, one in enumerate(order, start=1)}
        return out

    def scores(self, by: str) -> dict[str, float]:
        """Scores of one list."""
        return {
            "beam": self.beam, "dense": self.media, "undescribed": self.media,
            "caption": self.caption, "bm25": self.words,
        }[by]  # fmt: skip

    def belief_of(self, one: str) -> float | None:
        """How likely the query is for media of a candidate's kind; None where kinds are not told
        apart."""
        v = self.vertical.get(one)
        return None if v is None or len(self.belief_G) < 2 else float(np.exp(self.belief_G[v]))

    def files(self) -> IntArray:
        """A number for the file of each candidate, in the order of `space`."""
        number: dict[str, int] = {}
        return np.asarray(
            [number.setdefault(self.path[one], len(number)) for one in self.space], np.intp
        )

    def evidence(self) -> Evidence:
        """Of the candidates, in the order of `space`; NaN where a lane says nothing."""

        def column(scores: Mapping[str, float]) -> FloatArray:
            return np.asarray([scores.get(one, np.nan) for one in self.space], np.float32)

        return Evidence(
            column(self.media), column(self.caption), column(self.beam),
            np.asarray(list(self.space.values()), np.intp),
            column(self.hub), column(self.caption_hub), column(self.words),
            np.asarray(list(self.vertical.values()), np.intp), self.belief_G,
        )  # fmt: skip


class Collector:
    """Asks the store of one index.

    Args:
        library: The index.
        verticals: Number of each modality's vertical.
        spaces: The spaces in the order of their numbers.
    """

    def __init__(
        self, library: Library, verticals: Mapping[str, int], spaces: Sequence[str]
    ) -> None:
        self._library, self._verticals, self._spaces = library, verticals, list(spaces)
        self._lists: dict[str, dict[int, list[str]]] = {}
        for modality, space in library.manifest.embedder.spaces.items():
            of = self._lists.setdefault(space, {})
            of.setdefault(verticals[modality], []).append(modality)

    @cached_property
    def _partly(self) -> bool:
        """Whether some items have a caption and some have none."""
        store = self._library.store
        return 0 < store.count(qdrant.Filter(must=[DESCRIBED])) < store.count()

    def _lists_of(
        self, space: str, filter: qdrant.AnyFilter | None
    ) -> Iterator[qdrant.AnyFilter | None]:
        """A condition for each list of a space: one of every vertical."""
        for modalities in self._lists[space].values():
            if len(modalities) == len(self._verticals):
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
        pools = [Pool(belief_G) for belief_G in encoded.belief_BG]
        requests: list[qdrant.AnyQuery] = []
        owners: list[tuple[int, str]] = []
        wanted = {by for lane in lanes for by in LISTS[lane]}
        if len(lanes) > 1:
            wanted.add("caption")  # the router looks at the best one
        captions = encoded.is_text and not set(lanes) <= {"dense", *SINGLE, "rrf"}
        nearest = {"dense": filter} if "dense" in wanted else {}
        if "undescribed" in wanted and self._partly and encoded.is_text:
            nearest["undescribed"] = merge_filters(qdrant.Filter(must_not=[DESCRIBED]), filter)
        for b in range(len(pools)):
            if len(encoded.beams[b].scores_K):
                named = self._named(encoded.beams[b], filter)
                requests.append(self._beam_request(encoded, b, named, limit))
                owners.append((b, "beam"))
                if captions:
                    limit_K = len(encoded.beams[b].scores_K)
                    x_W = encoded.caption_BW[b]
                    requests.append(_nearest(x_W, CAPTION, named, limit_K, False, exact=True))
                    owners.append((b, CAPTIONS_OF_BEAMS))
            for by, only in nearest.items():
                for space, q_BD in encoded.media.items():
                    for within in self._lists_of(space, only):
                        requests.append(_nearest(q_BD[b], MEDIA, within, limit, self._payload))
                        owners.append((b, by))
            if "caption" in wanted:
                x_W = encoded.caption_BW[b]
                requests.append(_nearest(x_W, CAPTION, filter, limit, self._payload))
                owners.append((b, "caption"))
            if "bm25" in wanted:
                requests.append(
                    qdrant.QueryRequest(
                        query=qdrant.TextQuery(text=encoded.texts[b]), using=CAPTION_TEXTS,
                        filter=filter, limit=limit, with_payload=self._payload,
                    )
                )  # fmt: skip
                owners.append((b, "bm25"))
        answers = self._library.store.query_batch(requests) if requests else []
        for (b, by), points in zip(owners, answers, strict=True):
            if by == CAPTIONS_OF_BEAMS:
                pools[b].caption.update((str(point.id), point.score) for point in points)
                pools[b].looked.update(pools[b].beam)
            else:
                self._add(pools[b], by, points, encoded, b)
        if not set(lanes) <= {*SINGLE, "rrf"}:
            self._complete(pools, encoded, captions=captions)
        return pools

    def _named(self, beams: Beams, filter: qdrant.AnyFilter | None) -> qdrant.AnyFilter | None:
        """Holds for the points that beams name."""
        match = qdrant.MatchAny(any=beams.ids())
        named = qdrant.Filter(must=[qdrant.FieldCondition(key=f"{self._field}.id", match=match)])
        return merge_filters(named, filter)

    def _beam_request(
        self, encoded: Encoded, b: int, named: qdrant.AnyFilter | None, limit: int
    ) -> qdrant.QueryRequest:
        """Points that beams name; the nearest of them, where cosines come along: reading their
        payloads takes most of the time."""
        payload = [*self._payload, f"{self._field}.id"]
        if self._scores_named(encoded):
            (q_BD,) = encoded.media.values()
            return _nearest(q_BD[b], MEDIA, named, limit, payload, exact=True)
        count = len(encoded.beams[b].scores_K)
        return qdrant.QueryRequest(filter=named, limit=count, with_payload=payload)

    def _scores_named(self, encoded: Encoded) -> bool:
        """Whether what beams name comes with its cosine, which saves asking again: where all items
        are of one space."""
        return len(encoded.media) == len(self._spaces) == 1

    @property
    def _payload(self) -> list[str]:
        """What is read of each candidate."""
        return ["modality", "path", f"{self._field}.hub"]

    @property
    def _field(self) -> str:
        info = self._library.manifest.identifiers
        return info.field if info is not None else "cart"

    def _add(
        self, pool: Pool, by: str, points: Sequence[qdrant.AnyHit], encoded: Encoded, b: int
    ) -> None:
        """Candidates with their scores."""
        scores, scored = pool.scores(by), self._scores_named(encoded)
        share: dict[str, float] = {}
        if by == "beam":
            beams = encoded.beams[b]
            share = dict(zip(beams.ids(), beams.log_probs().tolist(), strict=True))
        for point in points:
            payload, one = point.payload or {}, str(point.id)
            modality = payload.get("modality", "")
            space = self._library.space(modality)
            if space is None:
                continue
            pool.vertical[one] = self._verticals[modality]
            pool.space[one] = self._spaces.index(space) if space in self._spaces else -1
            pool.path[one] = payload.get("path", one)
            cart = payload.get(self._field, {})
            hub = cart.get("hub", {})
            pool.hub[one] = hub.get("media", np.nan)
            pool.caption_hub[one] = hub.get("caption", np.nan)
            scores[one] = share[cart["id"]] if by == "beam" else point.score
            if by == "beam" and scored:
                pool.media[one] = point.score
            pool.found.setdefault(by, []).append(one)
            if by == "undescribed":
                pool.looked.add(one)

    def _complete(self, pools: Sequence[Pool], encoded: Encoded, *, captions: bool) -> None:
        """A second round: the scores that a candidate's own lane did not give."""
        requests: list[qdrant.AnyQuery] = []
        owners: list[dict[str, float]] = []

        def ask(scores: dict[str, float], ids: list[str], using: str, vector: FloatArray) -> None:
            missing = [one for one in ids if one not in scores]
            if missing:
                only = qdrant.Filter(must=[qdrant.HasIdCondition(has_id=list(missing))])
                requests.append(_nearest(vector, using, only, len(missing), False, exact=True))
                owners.append(scores)

        for b, pool in enumerate(pools):
            for space, q_BD in encoded.media.items():
                number = self._spaces.index(space)
                ids = [one for one, n in pool.space.items() if n == number]
                ask(pool.media, ids, MEDIA, q_BD[b])
            if captions:
                rest = [one for one in pool.space if one not in pool.looked]
                ask(pool.caption, rest, CAPTION, encoded.caption_BW[b])
        answers = self._library.store.query_batch(requests) if requests else []
        for scores, points in zip(owners, answers, strict=True):
            scores.update({str(point.id): point.score for point in points})


def _nearest(
    vector: FloatArray,
    using: str,
    filter: qdrant.AnyFilter | None,
    limit: int,
    payload: list[str] | bool,
    *,
    exact: bool = False,
) -> qdrant.QueryRequest:
    return qdrant.QueryRequest(
        query=vector.tolist(), using=using, filter=filter, limit=limit, with_payload=payload,
        params=qdrant.SearchParams(exact=True) if exact else None,
    )  # fmt: skip
