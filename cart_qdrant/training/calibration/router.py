"""The router: which lane answers a query, by the cosine of its best caption.

Shape legend: B queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np

from cart_qdrant.arrays.types import FloatArray, IndexArray, MaskArray
from cart_qdrant.search.fusion import ROUTED_LANES
from cart_qdrant.training.calibration.candidate_features import Examples

CLEAR_GAIN = 0.02
"""Gain from which a costlier way to rank is taken; less may be chance."""


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

    def apply(self, ranks: Mapping[str, IndexArray], best_caption_B: FloatArray) -> IndexArray:
        """Rank (B,) of each query's right item in the lane that it is routed to."""
        return np.where(best_caption_B >= self.threshold, ranks[self.high], ranks[self.low])


def choose_routing(
    ranks: Mapping[str, IndexArray], examples: Examples, usual: str | None
) -> Routing:
    """The routing of highest gain among those that lose nothing against the dense lane, neither in
    R@1 nor in R@10, on the held-out queries of any stratum.

    Args:
        ranks: Rank (B,) of each query's right item, by lane.
        examples: The queries.
        usual: The only lane that may be taken instead of `dense`, where there are too few queries
            to choose one; None leaves the choice open.
    """
    best_caption_B = examples.best_captions
    strata = {name: examples.stratum_B == name for name in np.unique(examples.stratum_B)}
    dense = {name: _recalls(ranks["dense"], rows) for name, rows in strata.items()}
    best = Routing(0.0, "dense", "dense", 2.0)
    for one in _routings(best_caption_B, usual):
        routed = one.apply(ranks, best_caption_B)
        gain, safe = 0.0, True
        for name, rows in strata.items():
            r1, r10 = _recalls(routed, rows)
            safe &= r1 >= dense[name][0] and r10 >= dense[name][1]
            gain += r1 - dense[name][0] + r10 - dense[name][1]
        # Two lanes, and beams, cost time: a small gain does not justify them.
        cheap = one.high == one.low and one.high != "generative"
        if safe and (usual is not None or gain > best.gain + (1e-9 if cheap else CLEAR_GAIN)):
            best = Routing(gain, one.high, one.low, one.threshold)
    return best


def _routings(best_caption_B: FloatArray, usual: str | None) -> Iterator[Routing]:
    """All that are tried: single lanes first, then pairs at the quantiles of the best captions."""
    edges = [-2.0, *np.quantile(best_caption_B, np.linspace(0.05, 0.95, 19)), 2.0]
    pairs = sorted(product(ROUTED_LANES, ROUTED_LANES), key=lambda pair: pair[0] != pair[1])
    if usual is not None:
        pairs = [(usual, usual)]
    for high, low in pairs:
        for edge in edges[:1] if high == low else edges:
            yield Routing(0.0, high, low, float(edge))


def _recalls(rank_B: IndexArray, chosen_B: MaskArray) -> tuple[float, float]:
    """R@1 and R@10 of the chosen queries."""
    rank = rank_B[chosen_B]
    return float((rank < 1).mean()), float((rank < 10).mean())
