"""The router: which lane answers a query, by the cosine of its best caption.

Shape legend: B queries, R draws, V routings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from cart_qdrant.arrays.types import FloatArray, IndexArray, MaskArray
from cart_qdrant.search.fusion import ROUTED_LANES
from cart_qdrant.training.calibration.candidate_features import Examples
from cart_qdrant.training.calibration.measures import Ranks, drawn_means

CLEAR_GAIN = 0.02
"""Gain from which a costlier way to rank is taken; less may be chance."""
LEVEL = 0.05
"""Probability with which the bound of a gain may be above the gain itself."""
DRAWS = 400
"""Draws of the bootstrap of a bound, which is made for each of some dozens of weights."""
ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Routing:
    """A pair of lanes and the threshold between them.

    Attributes:
        gain: R@1 and R@10 above those of the dense lane, summed over the strata.
        high: Lane of queries that some caption matches at least as well as `threshold`.
        low: Lane of the other queries.
        threshold: Cosine of the best caption.
    """

    gain: float
    high: str
    low: str
    threshold: float

    def apply(self, ranks: Ranks, best_caption_B: FloatArray) -> IndexArray:
        """Rank (B,) of each query's right item in the lane that it is routed to."""
        return np.where(best_caption_B >= self.threshold, ranks[self.high], ranks[self.low])


def choose_routing(ranks: Ranks, examples: Examples) -> Routing:
    """The routing of highest gain over the dense lane among those that are safe on these queries.

    Safe is what loses neither R@1 nor R@10 in any stratum, and whose gain in both, each stratum
    weighing the same, has a one-sided bound of `LEVEL` that is no loss, by a paired bootstrap over
    files. That is a statement on the queries that chose it: what the choice is worth on others,
    the report of a training measures.
    """
    best_caption_B = examples.best_captions
    names = np.unique(examples.stratum_B)
    strata = [examples.stratum_B == name for name in names]
    best = Routing(0.0, "dense", "dense", 2.0)
    tried = list(_routings(best_caption_B))
    routed = [one.apply(ranks, best_caption_B) for one in tried]
    differences = [_difference(routed, ranks["dense"], k) for k in (1, 10)]
    means = [np.stack([d_BV[rows].mean(axis=0) for rows in strata]) for d_BV in differences]
    safe_V = np.logical_and.reduce([(mean >= -ROUNDING).all(axis=0) for mean in means])
    alone_V = np.asarray([one.high == one.low for one in tried])
    for d_BV, mean in zip(differences, means, strict=True):
        drawn = [drawn_means(d_BV[rows], examples.file_B[rows], DRAWS) for rows in strata]
        bound_V = _bounds(np.mean(drawn, axis=0), mean.mean(axis=0), alone_V)
        safe_V &= bound_V >= -ROUNDING
    gain_V = sum(mean.sum(axis=0) for mean in means)
    for v in np.flatnonzero(safe_V).tolist():
        one, gain = tried[v], float(gain_V[v])
        # Two lanes, and beams, cost time: a small gain does not justify them.
        cheap = one.high == one.low and one.high != "generative"
        if gain > best.gain + (1e-9 if cheap else CLEAR_GAIN):
            best = Routing(gain, one.high, one.low, one.threshold)
    return best


def _bounds(drawn_RV: FloatArray, mean_V: FloatArray, alone_V: MaskArray) -> FloatArray:
    """One-sided bounds (V,) of mean gains, from their draws: of each single lane by itself, of the
    pairs with their many thresholds all at once, since the best of many is good by chance."""
    each_V = np.quantile(drawn_RV, LEVEL, axis=0)
    if alone_V.all():
        return np.asarray(each_V)
    deviation_V = drawn_RV.std(axis=0)
    worst_R = ((mean_V - drawn_RV) / np.maximum(deviation_V, ROUNDING))[:, ~alone_V].max(axis=1)
    together_V = mean_V - np.quantile(worst_R, 1 - LEVEL) * deviation_V
    return np.where(alone_V, each_V, together_V)


def _difference(routed: list[IndexArray], dense_B: IndexArray, k: int) -> FloatArray:
    """Hits among the first k of each routing less those of the dense lane (B, V)."""
    hit_BV: MaskArray = np.stack(routed, axis=1) < k
    return hit_BV.astype(np.float32) - (dense_B < k)[:, None].astype(np.float32)


def _routings(best_caption_B: FloatArray) -> Iterator[Routing]:
    """All that are tried: single lanes first, then pairs at the quantiles of the best captions."""
    quantiles = np.quantile(best_caption_B, np.linspace(0.05, 0.95, 19))
    edges = np.unique([-2.0, *quantiles, 2.0]).tolist()
    pairs = sorted(product(ROUTED_LANES, ROUTED_LANES), key=lambda pair: pair[0] != pair[1])
    for high, low in pairs:
        for edge in edges[:1] if high == low else edges:
            yield Routing(0.0, high, low, edge)
