"""Ranks and recalls of held-out queries under a calibration, and how sure the recalls are.

Shape legend: B queries, C candidates, F files, R draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cart_qdrant.arrays.types import FloatArray, IndexArray, MaskArray
from cart_qdrant.search.fusion import ROUTED_LANES, Calibration
from cart_qdrant.training.calibration.candidate_features import Examples

MISSED = np.iinfo(np.intp).max
"""Rank of an item that a lane does not find."""
DRAWS = 1_000
"""Draws of a bootstrap."""

Ranks = Mapping[str, IndexArray]
"""Rank (B,) of each query's right item, by lane."""


def rank_of(scores_C: FloatArray, target: int) -> int:
    """Number of candidates before the right one; `MISSED` where the lane leaves it out."""
    if not np.isfinite(scores_C[target]):
        return MISSED
    return int((scores_C > scores_C[target]).sum())


def lane_ranks(calibration: Calibration, examples: Examples) -> Ranks:
    """Ranks in the lanes that the router chooses from; an item that a search does not find is
    missed, whatever its score would be."""
    found: dict[str, list[int]] = {lane: [] for lane in ROUTED_LANES}
    for candidates, target in zip(examples.candidates, examples.targets, strict=True):
        scores = calibration.score("fused", candidates)
        found["fused"].append(rank_of(scores, target))
        found["dense"].append(rank_of(calibration.score("dense", candidates), target))
        named = np.where(candidates.named, scores, -np.inf)
        found["generative"].append(rank_of(named, target))
    return {
        lane: np.where(examples.retrieved_B, np.asarray(ranks, np.intp), MISSED)
        for lane, ranks in found.items()
    }


def ranks_among_an_eighth(calibration: Calibration, examples: Examples) -> Ranks:
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


def drawn_means(value_BV: FloatArray, file_B: IndexArray, draws: int = DRAWS) -> FloatArray:
    """Means (R, V) over the queries of files drawn with replacement: queries for one file are not
    independent of each other."""
    _, number_B = np.unique(file_B, return_inverse=True)
    files = int(number_B.max()) + 1
    sum_FV = np.zeros((files, value_BV.shape[1]))
    np.add.at(sum_FV, number_B, value_BV)
    count_F = np.bincount(number_B, minlength=files)
    rng = np.random.default_rng(0)
    drawn_RF = rng.multinomial(files, np.full(files, 1 / files), size=draws)
    means: FloatArray = drawn_RF @ sum_FV / (drawn_RF @ count_F)[:, None]
    return means


def recall(rank_B: IndexArray, file_B: IndexArray, k: int) -> dict[str, Any]:
    """Share of the queries whose right item is among the first k, and its 95 % interval by a
    bootstrap over files."""
    hit_B1 = (rank_B < k)[:, None].astype(np.float32)
    low, high = np.quantile(drawn_means(hit_B1, file_B), [0.025, 0.975])
    name = f"R@{k}"
    return {
        name: round(float(hit_B1.mean()), 4),
        f"{name} interval": [round(float(low), 4), round(float(high), 4)],
    }


def reported(ranks: Ranks, fewer: Ranks, chosen_B: MaskArray, file_B: IndexArray) -> dict[str, Any]:
    """What is reported of one stratum: its size, and recalls by lane.

    Args:
        ranks: Of all queries.
        fewer: The same among an eighth of the candidates.
        chosen_B: Whether a query is of the stratum.
        file_B: File that each query asks for.
    """
    files = file_B[chosen_B]
    out: dict[str, Any] = {"queries": int(chosen_B.sum()), "files": len(np.unique(files))}
    for lane, rank_B in ranks.items():
        rank = rank_B[chosen_B]
        out[lane] = {**recall(rank, files, 1), **recall(rank, files, 10)}
        if lane in fewer:
            among = fewer[lane][chosen_B] < 10
            out[lane]["R@10 among an eighth"] = round(float(among.mean()), 4)
    return out
