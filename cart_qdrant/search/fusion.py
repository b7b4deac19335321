"""Fusion of the lanes into one score, and the router that picks a lane per query.

Each kind of media is ranked by itself, and what kind a query is for is believed, see `verticals`:
an item's score is `log pi(v | q) + log p(item | q, v)`. Within a kind, two experts share the
candidates: one ranks items that have a caption, one those that have none, each a conditional logit
(McFadden 1974), `p(item | q) = softmax_items(w . f)`. Which of them a query is for is another
belief, a logistic model; the fused score is the mixture's log-probability. One linear model for
all fails twice: a weight that lets captions decide for items that have one buries those that have
none, and a few sounds are drowned among many photos (docs/experiments.md).
Shape legend: C candidates of a query, F features, G verticals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cart_qdrant.arrays.types import FloatArray, IndexArray
from cart_qdrant.arrays.vectors import unit

LANES = ("generative", "dense", "fused")
SINGLE = ("caption", "bm25")
"""Lanes of one likeness to captions, which no router takes: for exact words, and to compare."""
RRF = 60
"""Constant of the reciprocal ranks."""
FLOOR = -12.0
"""Log-probability under which beams are told apart no more, and of an item that none names."""
STRATA = {"unseen": "items without a training caption", "seen": "items with training captions"}
"""Strata of the held-out queries, by what they ask for."""
MEANINGFUL = 50
"""Held-out queries under which a recall says nothing (its error is then 7 points)."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the lanes say about the candidates of one query.

    Attributes:
        media_C: Cosine of query and media vector; NaN where the tower does not reach the space.
        caption_C: Cosine of query and caption vector; NaN where there is no caption.
        beam_C: Log-probability of the identifier; NaN where no beam names it.
        space_C: Number of the item's space.
        hub_C: Hubness of the media vector; NaN where it is not known (before training).
        caption_hub_C: That of the caption vector.
        words_C: BM25 of the captions; NaN where they hold no word of the query.
        vertical_C: Number of the item's vertical.
        belief_G: log pi of each vertical.
    """

    media_C: FloatArray
    caption_C: FloatArray
    beam_C: FloatArray
    space_C: npt.NDArray[np.intp]
    hub_C: FloatArray
    caption_hub_C: FloatArray
    words_C: FloatArray
    vertical_C: npt.NDArray[np.intp]
    belief_G: FloatArray

    @property
    def captioned(self) -> npt.NDArray[np.bool_]:
        """Items that have a caption (C,)."""
        return ~np.isnan(self.caption_C)

    @property
    def best_caption(self) -> float:
        """Cosine of the best caption; -1 where there is none."""
        return best_of(self.caption_C)

    @property
    def named(self) -> npt.NDArray[np.bool_]:
        """Items that some beam names (C,), however unlikely it is."""
        return ~np.isnan(self.beam_C)

    def features(self, hub_means: Sequence[float]) -> FloatArray:
        """(C, F): for each space cosine, presence and lack of hubness; the same of the caption;
        beam.

        Args:
            hub_means: Mean hubness in each space, and of captions: what is not known counts as.
        """
        columns: list[npt.NDArray[Any]] = []
        for n, mean in enumerate(hub_means[:-1]):
            here = (self.space_C == n) & ~np.isnan(self.media_C)
            columns += [np.where(here, self.media_C, 0), (self.space_C == n).astype(np.float32)]
            columns.append(np.where(here & ~np.isnan(self.hub_C), mean - self.hub_C, 0))
        known = self.captioned
        columns += [np.where(known, self.caption_C, 0), known.astype(np.float32)]
        columns.append(np.nan_to_num(hub_means[-1] - self.caption_hub_C, nan=0.0) * known)
        columns.append(np.maximum(np.nan_to_num(self.beam_C, nan=FLOOR), FLOOR) - FLOOR)
        return np.stack(columns, axis=1).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of `Evidence.features` are what, as masks (F,)."""

    media: npt.NDArray[np.bool_]
    caption: npt.NDArray[np.bool_]
    presence: npt.NDArray[np.bool_]
    hub: npt.NDArray[np.bool_]
    beam: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, spaces: int) -> Columns:
        """Those of a number of media spaces."""
        n = np.arange(3 * spaces + 4)
        beam = n == len(n) - 1
        kind = np.where(beam, -1, n % 3)
        media = n < 3 * spaces
        return cls(media, ~media & ~beam, kind == 1, kind == 2, beam)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Fitted weights and router.

    Attributes:
        spaces: Names of the media spaces, in the order of the features.
        dense: Weights of `Evidence.features` in the dense lane.
        captioned: Those of the expert for items with a caption.
        bare: Those of the expert for items without.
        belief: Weights of `belief_features`, for the log-odds that an item with a caption is meant.
        strong: Lane for queries that some caption answers well.
        weak: Lane for the others.
        threshold: Caption cosine from which a query counts as well answered.
        zero_shot: Share of the embedder's own text vectors in a query vector, see `blend`.
        scale: Multiplies the prior's inner products.
        gates: Weight of the generator's correction at each level.
        beams: Beam width.
        hub_means: Mean hubness in each space, then of captions.
        confidence: Slope and intercept from a fused score's log-odds to those of being right;
            empty where too little was held out to fit them.
        ece: Expected calibration error of the confidence, each half of the held-out queries
            judged by a line fitted to the other; None where there is no confidence.
        held_out: Recall on held-out queries, per stratum and lane; empty when nothing was held out.
    """

    spaces: list[str]
    dense: list[float]
    captioned: list[float]
    bare: list[float]
    belief: list[float]
    hub_means: list[float]
    strong: str = "dense"
    weak: str = "dense"
    threshold: float = 2.0
    zero_shot: float = 0.0
    scale: float = 20.0
    gates: list[float] = field(default_factory=list)
    beams: int = 200
    confidence: list[float] = field(default_factory=list)
    ece: float | None = None
    held_out: dict[str, Any] = field(default_factory=dict)

    def order(self, lane: str, evidence: Evidence, *, fill: bool) -> tuple[IndexArray, FloatArray]:
        """Candidates by a lane, best first (at most C,), and the scores of all (C,).

        Args:
            fill: Whether the generative lane goes on with what no beam names.
        """
        scores = self.score(lane, evidence)
        order = np.argsort(-scores, kind="stable")
        order = order[np.isfinite(scores[order])]
        if lane == "generative":
            named = evidence.named[order]
            order = np.concatenate([order[named], order[~named]]) if fill else order[named]
        return order, scores

    def confidences(self, evidence: Evidence, files: IndexArray | None = None) -> FloatArray | None:
        """Probability (C,) that each candidate is what is meant; None where it is not known.

        Args:
            evidence: With captions, as `auto` and `fused` collect it: what it is calibrated on.
            files: Number of each candidate's file, where a file counts as one answer: the shares
                of its segments are summed.
        """
        if not self.confidence:
            return None
        slope, intercept = self.confidence
        log_p = self.score("fused", evidence)
        if files is not None and len(files):
            log_p = np.log(np.bincount(files, np.exp(log_p)) + 1e-30)[files].astype(np.float32)
        odds = slope * log_odds(log_p) + intercept
        return np.asarray(1 / (1 + np.exp(-odds)), dtype=np.float32)

    def score(self, lane: str, evidence: Evidence) -> FloatArray:
        """Scores (C,) of a lane: cosine (weighted if dense and of one vertical), BM25, summed
        reciprocal ranks, else log-probability; -inf where the lane says nothing."""
        if lane in SINGLE:
            found = {"caption": evidence.caption_C, "bm25": evidence.words_C}[lane]
            return np.nan_to_num(found, nan=-np.inf)
        if lane == "rrf":
            return reciprocal_ranks([evidence.media_C, evidence.caption_C, evidence.words_C])
        features_CF = evidence.features(self.hub_means)
        there = np.unique(evidence.vertical_C)
        if lane == "dense":
            scores = np.asarray(features_CF @ np.asarray(self.dense, np.float32), np.float32)
            if len(there) < 2:
                return scores
        else:
            scores = self.expert_scores(features_CF, evidence.captioned)
        out = np.empty_like(scores)
        belief_G = evidence.belief_G
        total = log_sum(belief_G[there]) if len(there) else 0.0
        for v in there:
            rows = evidence.vertical_C == v
            if lane == "dense":
                within = scores[rows] - log_sum(scores[rows])
            else:
                within = self._log_p(scores[rows], evidence.caption_C[rows])
            out[rows] = within + (belief_G[v] - total)
        return out

    def _log_p(self, scores_C: FloatArray, caption_C: FloatArray) -> FloatArray:
        """Log-probabilities (C,) of one vertical's candidates: the mixture of both experts."""
        has = ~np.isnan(caption_C)
        if has.all() or not has.any():
            return np.asarray(scores_C - log_sum(scores_C), np.float32)
        there, bare = log_sum(scores_C[has]), log_sum(scores_C[~has])
        features = belief_features(best_of(caption_C), there, bare)
        odds = float(features @ np.asarray(self.belief))
        share = np.where(has, -np.logaddexp(0, -odds), -np.logaddexp(0, odds))
        return np.asarray(scores_C - np.where(has, there, bare) + share, np.float32)

    def expert_scores(
        self, features_CF: FloatArray, captioned_C: npt.NDArray[np.bool_]
    ) -> FloatArray:
        """Scores (C,) by the expert that each candidate falls to."""
        w_2F = np.asarray([self.bare, self.captioned], dtype=np.float32)
        both_C2 = features_CF @ w_2F.T
        return np.where(captioned_C, both_C2[:, 1], both_C2[:, 0])

    def reads_beams(self) -> bool:
        """Whether what `auto` and `fused` answer depends on the beams."""
        return "generative" in (self.strong, self.weak) or bool(self.captioned[-1] or self.bare[-1])

    def route(self, evidence: Evidence) -> str:
        """The lane for a query, by its best caption."""
        return self.strong if evidence.best_caption >= self.threshold else self.weak

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Calibration:
        """Inverse of `to_json`."""
        return cls(**data)


def reciprocal_ranks(lists: Sequence[FloatArray]) -> FloatArray:
    """Reciprocal rank fusion (C,) of scores (C,), NaN where a list lacks a candidate
    (Cormack et al. 2009)."""
    total = np.zeros(len(lists[0]), dtype=np.float32)
    for scores in lists:
        there = np.flatnonzero(~np.isnan(scores))
        order = there[np.argsort(-scores[there], kind="stable")]
        total[order] += 1 / (RRF + np.arange(1, len(order) + 1, dtype=np.float32))
    return total


def blend(tower_BD: FloatArray, zero_shot_BD: FloatArray | None, share: float) -> FloatArray:
    """Unit query vectors (B, D): the tower's, and a share of the untrained ones.

    A tower that learned from a few captions knows their items and little else.
    """
    if zero_shot_BD is None or share == 0:
        return tower_BD
    return unit((1 - share) * tower_BD + share * zero_shot_BD)


def belief_features(best_caption: float, captioned: float, bare: float) -> FloatArray:
    """(4,): one, the best caption's cosine, and each expert's log-sum of scores over ten."""
    return np.asarray([1.0, best_caption, captioned / 10, bare / 10], dtype=np.float32)


BELIEF = [-8.0, 16.0, 0.0, 0.0]
"""Where nothing could be held out: even odds at a cosine of one half."""
CAPTIONED = (10.0, 17.0)
"""Weights of media and caption cosine where no caption could be held out; as fitted on photos."""
UNTRAINED = (6.0, 17.0)
"""The same before training: text reaches media vectors less well then."""


def default_weights(spaces: int, media: float, caption: float = 0.0) -> list[float]:
    """Weights of `Evidence.features` that are the same for each space."""
    return [media, 0.0, 0.0] * spaces + [caption, 0.0, 0.0, 0.0]


def untrained(spaces: Sequence[str], levels: int, captions: bool) -> Calibration:
    """Weights before any training: captions first where there are some, media vectors else."""
    lane = "fused" if captions else "dense"
    return Calibration(
        spaces=list(spaces),
        dense=default_weights(len(spaces), 1.0),
        captioned=default_weights(len(spaces), *UNTRAINED),
        bare=default_weights(len(spaces), UNTRAINED[0]),
        belief=list(BELIEF),
        hub_means=[0.0] * (len(spaces) + 1),
        strong=lane,
        weak=lane,
        gates=[0.0] * levels,
    )


def log_odds(log_p_C: FloatArray) -> FloatArray:
    """Of log-probabilities; bounded, so that what is certain stays finite."""
    p = np.clip(np.exp(np.minimum(log_p_C, 0.0)), 1e-7, 1 - 1e-7)
    return np.asarray(np.log(p) - np.log1p(-p), dtype=np.float32)


def best_of(caption_C: FloatArray) -> float:
    """The greatest cosine of captions; -1 where there is none."""
    found = caption_C[~np.isnan(caption_C)]
    return float(found.max()) if len(found) else -1.0


def log_sum(scores_C: FloatArray) -> float:
    """Log of the summed exponentials."""
    top = float(scores_C.max())
    return top + float(np.log(np.exp(scores_C - top).sum()))
