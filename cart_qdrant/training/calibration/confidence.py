"""The confidence of hits: Platt scaling of fused scores, and its expected calibration error."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression

from cart_qdrant.arrays.types import MaskArray
from cart_qdrant.search.fusion import Calibration, log_odds
from cart_qdrant.training.calibration.candidate_features import Examples

HITS = 10
"""Hits of a query whose confidence is calibrated."""


def fit_confidence(calibration: Calibration, examples: Examples) -> Calibration:
    """The calibration with the line from a fused score's log-odds to those of being right, and with
    the error of that line: each half of the queries is judged by a line fitted to the other."""
    odds, right, owner = [], [], []
    for n, (candidates, target) in enumerate(
        zip(examples.candidates, examples.targets, strict=True)
    ):
        lane = calibration.route(candidates)
        top = calibration.order(lane, candidates, fill=True)[0][:HITS]
        odds.append(log_odds(calibration.score("fused", candidates))[top])
        right.append(top == target)
        owner.append(np.full(len(top), n))
    x, y, query = np.concatenate(odds)[:, None], np.concatenate(right), np.concatenate(owner)
    if y.all() or not y.any():
        return calibration
    weights = examples.weight_B
    w = weights[query] * (len(query) / weights[query].sum())

    def fit(rows: MaskArray) -> LogisticRegression:
        return LogisticRegression(C=100.0).fit(x[rows], y[rows], sample_weight=w[rows])

    ece = None
    halves = [query % 2 == 0, query % 2 == 1]
    if all(len(np.unique(y[half])) == 2 for half in halves):
        p = np.empty(len(x))
        for half, other in (halves, halves[::-1]):
            p[other] = fit(half).predict_proba(x[other])[:, 1]
        ece = round(expected_calibration_error(p, y, w), 4)
    model = fit(np.ones(len(x), dtype=bool))
    line = [float(model.coef_[0, 0]), float(model.intercept_[0])]
    return replace(calibration, confidence=line, ece=ece)


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
