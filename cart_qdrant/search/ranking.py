"""Ranks the candidates of a query: lane, order, confidence, one segment of each file.

Shape legend: C candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cart_qdrant.arrays.types import FloatArray, IndexArray
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

    def kept(self, request: SearchRequest) -> Ranking:
        """The ranking without candidates of too low a confidence, and with each file once if files
        are ranked."""
        order = self.order
        if request.min_confidence and self.confidence_C is not None:
            order = order[self.confidence_C[order] >= request.min_confidence]
        if request.ranks_files:
            _, first = np.unique(self.candidates.items.file_C[order], return_index=True)
            order = order[np.sort(first)]
        return Ranking(self.lane, self.candidates, order, self.score_C, self.confidence_C)


def rank(candidates: Candidates, calibration: Calibration, request: SearchRequest) -> Ranking:
    """Rank the candidates of a text in the lane of the request, or in the one that the router
    chooses."""
    features = candidates.features()
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
    return Ranking(lane, candidates, order, score_C, confidence_C).kept(request)


def rank_by_media(candidates: Candidates, lane: str, request: SearchRequest) -> Ranking:
    """Rank the candidates of a query that is more than a text, by their media similarity."""
    media_C = candidates.media_C
    allowed = ~np.isnan(media_C)
    if lane == "generative":
        allowed &= ~np.isnan(candidates.beam_C)
    order = np.argsort(-media_C, kind="stable")
    return Ranking(lane, candidates, order[allowed[order]], media_C).kept(request)
