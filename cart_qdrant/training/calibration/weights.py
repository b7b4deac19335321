"""Weights of the experts for items with and without a caption, and of the odds between the experts,
fitted to held-out queries.

Shape legend: B queries, C candidates, F features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cart_qdrant.arrays.types import FloatArray, IndexArray, MaskArray
from cart_qdrant.search.candidate_features import FeatureColumns, greatest_cosine
from cart_qdrant.search.fusion import (
    TRAINED_WEIGHTS,
    Calibration,
    caption_odds_features,
    default_weights,
    log_sum,
)
from cart_qdrant.training.calibration.candidate_features import Examples
from cart_qdrant.training.calibration.maximum_likelihood import fit_caption_odds, fit_weights

FEW = 20
"""Number of held-out queries below which nothing is fitted to them."""


def fit_lanes(base: Calibration, examples: Examples, *, beams: bool) -> Calibration:
    """The calibration with fitted weights of both experts and of their odds.

    Args:
        base: Names the media spaces; its weights stay where there are too few queries.
        examples: Held-out queries with their candidates.
        beams: Whether the experts may use the beams' log-probability.
    """
    spaces = len(base.spaces)
    column = FeatureColumns.of(spaces)
    fit = _LaneFit.of(examples, spaces, column)
    media = default_weights(spaces, base.scale)
    # Alone, a cosine ranks the same under every weight.
    if spaces > 1 or len(examples.candidates[0].log_prior_G) > 1:
        everything = np.arange(len(examples))
        allowed = column.media & ~column.hub & ~column.presence
        media = fit.weights(everything, fit.same_group, allowed)
    # Whether an item has a caption is the same for all items of an expert.
    free = ~column.beam | beams
    with_caption = fit.expert(True, free & ~(column.caption & column.presence))
    without_caption = fit.expert(False, free & ~column.caption)
    calibration = replace(
        base,
        with_caption=with_caption or default_weights(spaces, *TRAINED_WEIGHTS),
        without_caption=without_caption or media,
    )
    odds = fit.caption_odds(calibration)
    return calibration if odds is None else replace(calibration, caption_odds=odds)


@dataclass(frozen=True, slots=True)
class _LaneFit:
    """The examples, and what all fits read of them.

    Attributes:
        rising: Features whose weight must not be negative (F,).
        same_group: Candidates (C,) of each query in the modality group of its right item.
        captioned: Candidates (C,) of each query that have a caption.
        wants_caption_B: Whether the right item of each query has a caption.
        queries_S: Number of queries whose right item is in each media space.
    """

    examples: Examples
    rising: MaskArray
    same_group: list[MaskArray]
    captioned: list[MaskArray]
    wants_caption_B: MaskArray
    queries_S: IndexArray

    @classmethod
    def of(cls, examples: Examples, spaces: int, column: FeatureColumns) -> _LaneFit:
        candidates, targets = examples.candidates, examples.targets
        group = [e.group_C == e.group_C[t] for e, t in zip(candidates, targets, strict=True)]
        space_B = np.asarray([e.space_C[t] for e, t in zip(candidates, targets, strict=True)])
        captioned = [e.has_caption for e in candidates]
        wants = np.asarray([has[t] for has, t in zip(captioned, targets, strict=True)])
        queries_S = np.bincount(space_B[space_B >= 0], minlength=spaces)
        return cls(examples, ~column.presence, group, captioned, wants, queries_S)

    def weights(self, rows: IndexArray, kept: list[MaskArray], allowed: MaskArray) -> list[float]:
        """Weights of the features `allowed` (F,), fitted to the queries `rows`, each among the
        candidates that are `kept` (C,)."""
        features, targets = self.examples.features, self.examples.targets
        pairs = list(zip(rows.tolist(), kept, strict=True))
        mine = [_share_weights(features[n][keep], self.queries_S) for n, keep in pairs]
        right = [int(keep[: targets[n]].sum()) for n, keep in pairs]
        weight_B = self.examples.weight_B[rows]
        fitted = fit_weights(mine, right, weight_B, allowed, self.rising)
        return _spread_weights(fitted, self.queries_S)

    def expert(self, captioned: bool, allowed: MaskArray) -> list[float] | None:
        """Weights of the expert for items with (or without) a caption, fitted to the queries for
        such items among such candidates; None where there are too few queries."""
        rows = np.flatnonzero(self.wants_caption_B == captioned)
        if len(rows) < FEW:
            return None
        kept = [self.same_group[n] & (self.captioned[n] == captioned) for n in rows]
        return self.weights(rows, kept, allowed)

    def caption_odds(self, calibration: Calibration) -> list[float] | None:
        """Weights of the log-odds that an item with a caption is asked for; None where there are
        too few queries for items of either sort."""
        wants = self.wants_caption_B
        if min(wants.sum(), (~wants).sum()) < FEW:
            return None
        rows, used = [], []
        for n, candidates in enumerate(self.examples.candidates):
            group = self.same_group[n]
            has = self.captioned[n][group]
            if has.any() and not has.all():
                scores = calibration.expert_scores(self.examples.features[n][group], has)
                best = greatest_cosine(candidates.caption_C[group])
                rows.append(
                    caption_odds_features(best, log_sum(scores[has]), log_sum(scores[~has]))
                )
                used.append(n)
        if len(np.unique(wants[used])) < 2:
            return None
        return fit_caption_odds(np.stack(rows), wants[used], self.examples.weight_B[used])


def _share_weights(features_CF: FloatArray, queries_S: IndexArray) -> FloatArray:
    """Features that give a seldom asked media space the weights of the most asked one: a dozen
    queries are too few for weights of its own."""
    most = int(queries_S.argmax())
    out = features_CF.copy()
    for n in np.flatnonzero(queries_S < FEW).tolist():
        if n != most:
            out[:, 3 * most : 3 * most + 3] += out[:, 3 * n : 3 * n + 3]
            out[:, 3 * n : 3 * n + 3] = 0
    return out


def _spread_weights(weights_F: FloatArray, queries_S: IndexArray) -> list[float]:
    """Weights of the features as they were before `_share_weights`."""
    most = int(queries_S.argmax())
    out = weights_F.copy()
    for n in np.flatnonzero(queries_S < FEW).tolist():
        out[3 * n : 3 * n + 3] = out[3 * most : 3 * most + 3]
    return [float(w) for w in out]
