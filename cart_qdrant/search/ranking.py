"""Ranks the candidates of a query: lane, order, confidence, one segment of each file.

Shape legend: C candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cart_qdrant.arrays.types import FloatArray, IndexArray
from cart_qdrant.identifiers.item_table import positions_in
from cart_qdrant.search.candidates import Candidates
from cart_qdrant.search.fusion import Calibration
from cart_qdrant.search.lanes import CONFIDENT_LANES
from cart_qdrant.search.options import SearchRequest


@dataclass(frozen=True, slots=True)
class Ranking:
    """The candidates of one query that may be hits.

    Attributes:
        lane: The lane that ranked them.
        candidates: All candidates.
        order: Positions of the ranked ones among them, best first; the best of each file where
            files are ranked.
        score_C: Score of each candidate.
        confidence_C: Confidence of each candidate; None where it is not known.
    """

    lane: str
    candidates: Candidates
    order: IndexArray
    score_C: FloatArray
    confidence_C: FloatArray | None = None

    def ids(self, order: IndexArray) -> list[str]:
        """Point ids of the candidates at some positions."""
        return [str(self.candidates.ids[c]) for c in order.tolist()]

    def one_a_file(self, request: SearchRequest) -> Ranking:
        """The ranking with each file once, if files are ranked."""
        if not request.ranks_files:
            return self
        _, first = np.unique(self.candidates.items.file_C[self.order], return_index=True)
        return replace(self, order=self.order[np.sort(first)])

    def continued(self, later: Ranking, count: int, request: SearchRequest) -> Ranking:
        """The first `count` of this ranking, and behind them the others of a ranking of more
        candidates.

        What was ranked by fewer candidates keeps its place, score and confidence, so that they do
        not depend on how many hits are asked for.
        """
        kept = self.order[:count]
        at = positions_in(later.candidates.key_C, self.candidates.key_C[kept])
        score_C = later.score_C.copy()
        rest = later.order[~np.isin(later.order, at)]
        if len(at):
            score_C[rest] = np.minimum(score_C[rest], self.score_C[kept[-1]])
        score_C[at] = self.score_C[kept]
        confidence_C = later.confidence_C
        if confidence_C is not None and self.confidence_C is not None:
            confidence_C = confidence_C.copy()
            confidence_C[at] = self.confidence_C[kept]
        order = np.concatenate([at, rest])
        return Ranking(self.lane, later.candidates, order, score_C, confidence_C).one_a_file(
            request
        )

    def cut(self, request: SearchRequest) -> Ranking:
        """The ranking without candidates of too low a confidence or similarity."""
        order = self.order
        if request.min_confidence and self.confidence_C is not None:
            order = order[self.confidence_C[order] >= request.min_confidence]
        if request.min_similarity is not None:
            similarity_C = self.candidates.similarities()
            order = order[similarity_C[order] >= request.min_similarity]
        return replace(self, order=order)


def rank(
    candidates: Candidates,
    calibration: Calibration,
    request: SearchRequest,
    lane: str | None = None,
) -> Ranking:
    """Rank the candidates of a text.

    Args:
        lane: The lane; None takes that of the request, or the one that the router chooses.
    """
    features = candidates.features()
    if lane is None:
        lane = calibration.route(features) if request.lane == "auto" else request.lane
    if not candidates.ids:
        none = np.empty(0, np.float32)
        return Ranking(lane, candidates, np.empty(0, np.intp), none, none)
    # Items that no beam names are no answer of the generative lane, but `auto` appends them.
    order, score_C = calibration.order(lane, features, fill=request.lane == "auto")
    confidence_C = None
    if request.lane in CONFIDENT_LANES:
        files = None
        if request.ranks_files:
            files = np.unique(candidates.items.file_C, return_inverse=True)[1]
        confidence_C = calibration.confidences(features, files)
    return Ranking(lane, candidates, order, score_C, confidence_C).one_a_file(request)


def rank_by_media(candidates: Candidates, request: SearchRequest, lane: str | None) -> Ranking:
    """Rank the candidates of a query that is more than a text, by their media similarity.

    Args:
        lane: `generative` leaves out what no beam names.
    """
    lane = lane or "dense"
    media_C = candidates.media_C
    allowed = ~np.isnan(media_C)
    if lane == "generative":
        allowed &= ~np.isnan(candidates.beam_C)
    order = np.argsort(-media_C, kind="stable")
    return Ranking(lane, candidates, order[allowed[order]], media_C).one_a_file(request)
