"""Ranks and recalls of held-out queries under a calibration.

Shape legend: B queries, C candidates.
"""

from __future__ import annotations

import numpy as np

from cart_qdrant.arrays.types import FloatArray, IndexArray, MaskArray
from cart_qdrant.search.fusion import Calibration
from cart_qdrant.training.calibration.candidate_features import Examples


def rank_of(scores_C: FloatArray, target: int) -> int:
    """Number of candidates before the right one; all of them where the lane leaves it out."""
    if not np.isfinite(scores_C[target]):
        return len(scores_C)
    return int((scores_C > scores_C[target]).sum())


def recall(rank_B: IndexArray, chosen_B: MaskArray, k: int) -> float:
    """Share of the chosen queries whose right item is among the first k."""
    return round(float((rank_B[chosen_B] < k).mean()), 4) if chosen_B.any() else 0.0


def dense_ranks(calibration: Calibration, examples: Examples) -> IndexArray:
    """Rank of each query's right item in the dense lane (B,)."""
    pairs = zip(examples.candidates, examples.targets, strict=True)
    return np.asarray([rank_of(calibration.score("dense", e), t) for e, t in pairs])


def fused_ranks(calibration: Calibration, examples: Examples) -> tuple[IndexArray, IndexArray]:
    """Rank of each query's right item by the fused score (B,): among all candidates, and among
    those that a beam names, which is the generative lane."""
    fused, generative = [], []
    for candidates, target in zip(examples.candidates, examples.targets, strict=True):
        scores = calibration.score("fused", candidates)
        fused.append(rank_of(scores, target))
        generative.append(rank_of(np.where(candidates.named, scores, -np.inf), target))
    return np.asarray(fused), np.asarray(generative)


def ranks_among_an_eighth(calibration: Calibration, examples: Examples) -> dict[str, IndexArray]:
    """Rank (B,) of each query's right item among a random eighth of its candidates, by lane."""
    rng = np.random.default_rng(0)
    found: dict[str, list[int]] = {"dense": [], "generative": []}
    for candidates, target in zip(examples.candidates, examples.targets, strict=True):
        kept = rng.random(len(candidates.space_C)) < 1 / 8
        kept[target] = True
        named = kept & candidates.named
        for lane, among in (("dense", kept), ("generative", named)):
            scores = np.where(among, calibration.score(lane, candidates), -np.inf)
            found[lane].append(rank_of(scores, target))
    return {lane: np.asarray(ranks) for lane, ranks in found.items()}
