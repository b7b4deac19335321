"""The confidence of hits: Platt scaling of fused scores, and its expected calibration error.

It is fitted, and its error measured, for a mix of queries that is said: people ask for every file
of the collection equally often, in words such as those of its captions. The hits are those that a
search would give: where it does not find what is asked for, all of them are wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression

from cart_qdrant.arrays.types import FloatArray, MaskArray
from cart_qdrant.search.fusion import Calibration
from cart_qdrant.training.calibration.candidate_features import Examples, Retrieved

HITS = 10
"""Hits of a query whose confidence is calibrated."""


@dataclass(frozen=True, slots=True)
class Hits:
    """The first hits of several queries, each a file.

    Attributes:
        log_odds_H: Log-odds of their fused scores.
        right_H: Whether the file is the one that is asked for.
        weight_H: Probability of the query that each is a hit of.
    """

    log_odds_H: FloatArray
    right_H: MaskArray
    weight_H: FloatArray

    @classmethod
    def of(cls, calibration: Calibration, examples: Examples) -> Hits:
        """Those of `auto` under a calibration."""
        odds: list[FloatArray] = []
        right: list[MaskArray] = []
        weight: list[FloatArray] = []
        for retrieved, asked in zip(examples.retrieved, examples.asked_B.tolist(), strict=True):
            log_odds_H, right_H = _first_files(calibration, retrieved)
            odds.append(log_odds_H)
            right.append(right_H)
            weight.append(np.full(len(right_H), asked, np.float32))
        return cls(np.concatenate(odds), np.concatenate(right), np.concatenate(weight))


def _first_files(calibration: Calibration, retrieved: Retrieved) -> tuple[FloatArray, MaskArray]:
    """Log-odds of the first files of one query, and whether each is right: ranked, and the segments
    of a file summed, as a search does."""
    candidates = retrieved.candidates
    order, _ = calibration.order(calibration.route(candidates), candidates, fill=True)
    file_C, number_C = np.unique(retrieved.file_C, return_inverse=True)
    _, first = np.unique(number_C[order], return_index=True)
    top = order[np.sort(first)][:HITS]
    odds_C = calibration.fused_log_odds(candidates, number_C)
    return odds_C[top], file_C[number_C[top]] == retrieved.file


def fit_confidence(calibration: Calibration, examples: Examples) -> Calibration:
    """The calibration with the line from the log-odds of a file's fused score to those of being
    right; without one where all hits are right, or none is."""
    hits = Hits.of(calibration, examples)
    if hits.right_H.all() or not hits.right_H.any():
        return calibration
    weight_H = hits.weight_H * (len(hits.weight_H) / hits.weight_H.sum())
    model = LogisticRegression(C=100.0)
    model.fit(hits.log_odds_H[:, None], hits.right_H, sample_weight=weight_H)
    line = [float(model.coef_[0, 0]), float(model.intercept_[0])]
    return replace(calibration, confidence=line)


def confidence_error(parts: Sequence[tuple[Calibration, Examples]]) -> float | None:
    """Expected calibration error on queries, each part by a calibration that it did not choose;
    None where one of these has no confidence."""
    p: list[npt.NDArray[np.float64]] = []
    hits = [Hits.of(calibration, examples) for calibration, examples in parts]
    for (calibration, _), one in zip(parts, hits, strict=True):
        if not calibration.confidence:
            return None
        slope, intercept = calibration.confidence
        p.append(1 / (1 + np.exp(-(slope * one.log_odds_H.astype(np.float64) + intercept))))
    right = np.concatenate([one.right_H for one in hits])
    weight = np.concatenate([one.weight_H for one in hits])
    return round(expected_calibration_error(np.concatenate(p), right, weight), 4)


def expected_calibration_error(
    p_N: npt.NDArray[np.float64], right_N: MaskArray, weight_N: npt.NDArray[Any], bins: int = 10
) -> float:
    """Mean distance between stated and observed probability, over bins of equal width that count by
    the weight of what falls into them (Guo et al., arXiv 1706.04599)."""
    number = np.minimum((p_N * bins).astype(int), bins - 1)
    total = 0.0
    for n in range(bins):
        rows = number == n
        if rows.any():
            w = weight_N[rows]
            total += abs(float((w * (p_N[rows] - right_N[rows])).sum()))
    return total / float(weight_N.sum())
