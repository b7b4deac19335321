"""Fusion of the lanes into one score, and the router that picks a lane for each query.

Each modality group is ranked by itself, and the lists are joined by the modality prior: the score
of an item is `log p(modality | query) + log p(item | query, modality)`. Within a group two experts
share the candidates: one ranks the items with a caption, one those without, each a conditional
logit (McFadden 1974), `p(item | query) = softmax_items(w . features)`. A logistic model gives the
odds that an item with a caption is meant; the fused score is the log-probability of that mixture.
One linear model for all items fails twice: a weight that lets captions decide for items that have
one buries those that have none, and a few audio files drown among many photos
(docs/experiments.md). Shape legend: C candidates of a query, F features, G modality groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from cart_qdrant.arrays.types import FloatArray, IndexArray, MaskArray
from cart_qdrant.arrays.vectors import unit
from cart_qdrant.search.candidate_features import CandidateFeatures, greatest_cosine

ROUTED_LANES = ("generative", "dense", "fused")
"""Lanes that the router chooses from."""
CAPTION_LANES = ("caption", "bm25")
"""Lanes that rank by the captions alone. The router takes neither: they serve exact words, and
comparisons."""
ANCHORS, EMBEDDER = "anchors", "embedder"
"""Where the embedder's own text vectors come from: from texts whose vectors are kept, between which
other texts lie, or from the embedder itself."""
RRF = 60
"""Constant of reciprocal rank fusion."""
STRATA = {"unseen": "items without a training caption", "seen": "items with training captions"}
"""Strata of the held-out queries, by what they ask for."""
MEANINGFUL = 50
"""Held-out queries from which a recall means something (with fewer its error exceeds 7 points)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Fitted weights of the lanes and of the router.

    Attributes:
        spaces: Names of the media spaces, in the order of the features.
        with_caption: Weights of `CandidateFeatures.matrix` of the expert for items with a caption.
        without_caption: Weights of the expert for items without a caption.
        caption_odds: Weights of `caption_odds_features` for the log-odds that an item with a
            caption is meant.
        hub_means: Mean hubness in each media space, then of captions.
        high_match_lane: Lane for queries that some caption matches well.
        low_match_lane: Lane for the other queries.
        match_threshold: Caption cosine from which a query counts as matched well.
        zero_shot: Share of the embedder's own text vectors in a query vector, see `blend`.
        zero_shot_by: What gives these: `ANCHORS`, or `EMBEDDER`, which a search then loads.
        scale: Factor of the inner products of the prior.
        gates: Weight of the generator's correction at each level.
        beams: Beam width.
        confidence: Slope and intercept from the log-odds of a file's fused score to the log-odds
            that the file is meant; empty where too little was held out to fit them.
        ece: Expected calibration error of the confidence, on the queries of `held_out`; None where
            there is no confidence.
        held_out: Recall by stratum and lane on held-out queries that chose nothing; empty where
            none were held out.
        cross_fitted: Whether the queries of `held_out` were folds, each measured by what the other
            folds chose; else they are a set of their own.
    """

    spaces: list[str]
    with_caption: list[float]
    without_caption: list[float]
    caption_odds: list[float]
    hub_means: list[float]
    high_match_lane: str = "dense"
    low_match_lane: str = "dense"
    match_threshold: float = 2.0
    zero_shot: float = 0.0
    zero_shot_by: str = ANCHORS
    scale: float = 20.0
    gates: list[float] = field(default_factory=list)
    beams: int = 200
    confidence: list[float] = field(default_factory=list)
    ece: float | None = None
    held_out: dict[str, Any] = field(default_factory=dict)
    cross_fitted: bool = False

    def order(
        self, lane: str, candidates: CandidateFeatures, *, fill: bool
    ) -> tuple[IndexArray, FloatArray]:
        """Candidates ordered by a lane, best first (at most C,), and the scores of all (C,).

        Args:
            fill: Whether candidates that no beam names follow in the generative lane.
        """
        scores = self.score(lane, candidates)
        order = np.argsort(-scores, kind="stable")
        order = order[np.isfinite(scores[order])]
        if lane == "generative":
            named = candidates.named[order]
            order = np.concatenate([order[named], order[~named]]) if fill else order[named]
        return order, scores

    def confidences(
        self, candidates: CandidateFeatures, files: IndexArray | None = None
    ) -> FloatArray | None:
        """Probability (C,) that each candidate is what is meant; None where it is not known.

        Args:
            candidates: With captions compared, as `auto` and `fused` collect them: the confidence
                is calibrated on these.
            files: Number of each candidate's file, if a file counts as one answer: the
                probabilities of its segments are summed.
        """
        if not self.confidence:
            return None
        slope, intercept = self.confidence
        odds = slope * self.fused_log_odds(candidates, files) + intercept
        return np.asarray(1 / (1 + np.exp(-odds)), dtype=np.float32)

    def fused_log_odds(
        self, candidates: CandidateFeatures, files: IndexArray | None = None
    ) -> FloatArray:
        """Log-odds (C,) of the fused scores, before they are calibrated; `files` as in
        `confidences`."""
        log_p = self.score("fused", candidates)
        if files is not None and len(files):
            log_p = np.log(np.bincount(files, np.exp(log_p)) + 1e-30)[files].astype(np.float32)
        return log_odds(log_p)

    def score(self, lane: str, candidates: CandidateFeatures) -> FloatArray:
        """Scores (C,) of a lane; -inf where the lane says nothing.

        `dense` and `caption`: cosine; `bm25`: BM25; `rrf`: summed reciprocal ranks; all else:
        log-probability. Only the last two depend on the other candidates.
        """
        if lane in ("dense", *CAPTION_LANES):
            found = {"dense": candidates.media_C, "caption": candidates.caption_C}
            return np.nan_to_num(found.get(lane, candidates.bm25_C), nan=-np.inf)
        if lane == "rrf":
            return reciprocal_ranks([candidates.media_C, candidates.caption_C, candidates.bm25_C])
        scores = self.expert_scores(candidates.matrix(self.hub_means), candidates.has_caption)
        out = np.empty_like(scores)
        log_prior_G, first = candidates.log_prior_G, candidates.first
        groups = np.unique(candidates.group_C)
        shared = np.unique(candidates.group_C[first])
        total = log_sum(log_prior_G[shared]) if len(shared) else 0.0
        for g in groups:
            rows = candidates.group_C == g
            within = self._mixture(scores[rows], candidates.caption_C[rows], first[rows])
            out[rows] = within + (log_prior_G[g] - total)
        return out

    def _mixture(
        self, scores_C: FloatArray, caption_C: FloatArray, first_C: MaskArray
    ) -> FloatArray:
        """Log-probabilities (C,) of one group's candidates by the mixture of both experts; the
        `first_C` share the probability."""
        has = ~np.isnan(caption_C)
        if has.all() or not has.any():
            return np.asarray(scores_C - _log_sum_of(scores_C, first_C), np.float32)
        with_caption = _log_sum_of(scores_C[has], first_C[has])
        without = _log_sum_of(scores_C[~has], first_C[~has])
        best = greatest_cosine(caption_C[first_C])
        features = caption_odds_features(best, with_caption, without)
        odds = float(features @ np.asarray(self.caption_odds))
        share = np.where(has, -np.logaddexp(0, -odds), -np.logaddexp(0, odds))
        return np.asarray(scores_C - np.where(has, with_caption, without) + share, np.float32)

    def expert_scores(self, features_CF: FloatArray, has_caption_C: MaskArray) -> FloatArray:
        """Scores (C,) of each candidate by its expert."""
        w_2F = np.asarray([self.without_caption, self.with_caption], dtype=np.float32)
        both_C2 = features_CF @ w_2F.T
        return np.where(has_caption_C, both_C2[:, 1], both_C2[:, 0])

    def reads_beams(self) -> bool:
        """Whether the answers of `auto` and `fused` depend on the beams."""
        lanes = (self.high_match_lane, self.low_match_lane)
        return "generative" in lanes or bool(self.with_caption[-1] or self.without_caption[-1])

    def route(self, candidates: CandidateFeatures) -> str:
        """The lane for a query, chosen by its best caption."""
        matched = candidates.best_caption >= self.match_threshold
        return self.high_match_lane if matched else self.low_match_lane

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Calibration:
        """Inverse of `to_json`."""
        return cls(**data)


def reciprocal_ranks(lists: Sequence[FloatArray]) -> FloatArray:
    """Reciprocal rank fusion (C,) (Cormack et al. 2009).

    Args:
        lists: Scores (C,) of each list; NaN where the list lacks a candidate.
    """
    total = np.zeros(len(lists[0]), dtype=np.float32)
    for scores in lists:
        there = np.flatnonzero(~np.isnan(scores))
        order = there[np.argsort(-scores[there], kind="stable")]
        total[order] += 1 / (RRF + np.arange(1, len(order) + 1, dtype=np.float32))
    return total


def blend(tower_BD: FloatArray, zero_shot_BD: FloatArray | None, share: float) -> FloatArray:
    """Unit query vectors (B, D): those of the trained tower with a share of the zero-shot ones.

    A tower that was trained on few captions knows their items and little else.
    """
    if zero_shot_BD is None or share == 0:
        return tower_BD
    return unit((1 - share) * tower_BD + share * zero_shot_BD)


def caption_odds_features(
    best_caption: float, with_caption: float, without_caption: float
) -> FloatArray:
    """Features (4,): one, the best caption's cosine, each expert's log-sum of scores over ten."""
    return np.asarray([1.0, best_caption, with_caption / 10, without_caption / 10], np.float32)


CAPTION_ODDS = [-8.0, 16.0, 0.0, 0.0]
"""Weights where no caption could be held out: even odds at a cosine of one half."""
TRAINED_WEIGHTS = (10.0, 17.0)
"""Weights of media and caption cosine where no caption could be held out, as fitted on photos."""
UNTRAINED_WEIGHTS = (6.0, 17.0)
"""The same weights before training, when a text vector compares less well with media vectors."""


def default_weights(spaces: int, media: float, caption: float = 0.0) -> list[float]:
    """Weights of `CandidateFeatures.matrix` that are equal in all media spaces."""
    return [media, 0.0, 0.0] * spaces + [caption, 0.0, 0.0, 0.0]


def untrained(spaces: Sequence[str], levels: int, captions: bool) -> Calibration:
    """The calibration before training: captions decide where there are some, else media vectors."""
    lane = "fused" if captions else "dense"
    return Calibration(
        spaces=list(spaces),
        with_caption=default_weights(len(spaces), *UNTRAINED_WEIGHTS),
        without_caption=default_weights(len(spaces), UNTRAINED_WEIGHTS[0]),
        caption_odds=list(CAPTION_ODDS),
        hub_means=[0.0] * (len(spaces) + 1),
        high_match_lane=lane,
        low_match_lane=lane,
        gates=[0.0] * levels,
    )


def log_odds(log_p_C: FloatArray) -> FloatArray:
    """Log-odds (C,) of log-probabilities, bounded so that certainty stays finite."""
    p = np.clip(np.exp(np.minimum(log_p_C, 0.0)), 1e-7, 1 - 1e-7)
    return np.asarray(np.log(p) - np.log1p(-p), dtype=np.float32)


def _log_sum_of(scores_C: FloatArray, first_C: MaskArray) -> float:
    """Logarithm of the summed exponentials of the first candidates; of all, where none is first."""
    return log_sum(scores_C[first_C] if first_C.any() else scores_C)


def log_sum(scores_C: FloatArray) -> float:
    """Logarithm of the summed exponentials."""
    top = float(scores_C.max())
    return top + float(np.log(np.exp(scores_C - top).sum()))
