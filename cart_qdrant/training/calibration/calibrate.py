"""Calibration of a search on held-out queries: fusion weights, router and confidence.

They are chosen by one set of queries and reported on another, of other files; or, where there are
too few files for two sets, each fold is reported by what the other folds choose. Too few queries to
choose by leave the lanes as they are before training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cart_qdrant.search.fusion import (
    MEANINGFUL,
    TRAINED_WEIGHTS,
    Calibration,
    default_weights,
)
from cart_qdrant.training.calibration.candidate_features import (
    Examples,
    HeldOut,
    Items,
    collect_examples,
)
from cart_qdrant.training.calibration.confidence import confidence_error, fit_confidence
from cart_qdrant.training.calibration.measures import (
    Ranks,
    lane_ranks,
    ranks_among_an_eighth,
    reported,
)
from cart_qdrant.training.calibration.router import CLEAR_GAIN, Routing, choose_routing
from cart_qdrant.training.calibration.weights import fit_lanes
from cart_qdrant.training.split import FOLDS

ODDS_SHIFTS = (0.0, *(sign * step / 2 for step in range(1, 11) for sign in (-1, 1)))
"""Added to the log-odds that an item with a caption is asked for: the shift of highest gain is
taken among those that lose nothing for items with or without a caption."""


def calibrate(
    choose: Mapping[str, HeldOut],
    report: Mapping[str, HeldOut] | None,
    items: Items,
    base: Calibration,
) -> Calibration:
    """Fit weights, router and confidence, and measure them on queries that chose nothing.

    Args:
        choose: Queries to choose by, by the name of their stratum.
        report: Queries for other files, to report on; None cross-fits those of `choose`.
        items: What is searched.
        base: Media spaces, scale, gates, beam width and mean hubness; it is returned with the rest
            filled in.
    """
    chosen_by = collect_examples(choose, items, base)
    if chosen_by is None:
        return _defaults(base)
    found = choose_calibration(base, chosen_by)
    if report is None:
        parts = _cross_fitted(base, chosen_by)
    else:
        examples = collect_examples(report, items, base)
        parts = [] if examples is None else [(found, examples)]
    return replace(
        found,
        held_out=_held_out(parts),
        ece=confidence_error(parts) if parts else None,
        cross_fitted=report is None,
    )


def choose_calibration(base: Calibration, examples: Examples) -> Calibration:
    """Weights, router and confidence by some queries; the defaults where there are too few."""
    if len(examples) < MEANINGFUL:
        return _defaults(base)
    return fit_confidence(_best(base, examples), examples)


def _defaults(base: Calibration) -> Calibration:
    """The weights where nothing can be fitted; the lanes stay as before training."""
    spaces = len(base.spaces)
    return replace(
        base,
        with_caption=default_weights(spaces, *TRAINED_WEIGHTS),
        without_caption=default_weights(spaces, base.scale),
    )


def _best(base: Calibration, examples: Examples) -> Calibration:
    """The weights and the routing of highest gain."""
    mixed = any(e.has_caption.any() and not e.has_caption.all() for e in examples.candidates)
    best: tuple[Calibration, Routing] | None = None
    for beams in (False, True):
        fitted = fit_lanes(base, examples, beams=beams)
        for shift in ODDS_SHIFTS if mixed else ODDS_SHIFTS[:1]:
            one = replace(
                fitted, caption_odds=[fitted.caption_odds[0] + shift, *fitted.caption_odds[1:]]
            )
            routing = choose_routing(lane_ranks(one, examples), examples)
            if best is not None:
                # Decoding beams for their score alone costs more than all else together.
                costlier = beams and not best[0].reads_beams()
                if routing.gain <= best[1].gain + (CLEAR_GAIN if costlier else 1e-9):
                    continue
            one = replace(
                one,
                high_match_lane=routing.high,
                low_match_lane=routing.low,
                match_threshold=routing.threshold,
            )
            best = (one, routing)
    assert best is not None
    return best[0]


def _cross_fitted(base: Calibration, examples: Examples) -> list[tuple[Calibration, Examples]]:
    """The queries of each fold, with the calibration that the other folds choose; queries for one
    file are in one fold."""
    fold_B = np.unique(examples.file_B, return_inverse=True)[1] % FOLDS
    return [
        (
            choose_calibration(base, examples.take(np.flatnonzero(fold_B != fold))),
            examples.take(np.flatnonzero(fold_B == fold)),
        )
        for fold in np.unique(fold_B).tolist()
    ]


def _held_out(parts: Sequence[tuple[Calibration, Examples]]) -> dict[str, dict[str, Any]]:
    """Recall by stratum and lane, as the report of a training shows it."""
    if not parts:
        return {}
    ranks = [_with_auto(calibration, examples) for calibration, examples in parts]
    fewer = [ranks_among_an_eighth(calibration, examples) for calibration, examples in parts]
    stratum_B = np.concatenate([examples.stratum_B for _, examples in parts])
    file_B = np.concatenate([examples.file_B for _, examples in parts])
    joined, few = _joined(ranks), _joined(fewer)
    return {
        str(name): reported(joined, few, stratum_B == name, file_B) for name in np.unique(stratum_B)
    }


def _with_auto(calibration: Calibration, examples: Examples) -> Ranks:
    """Ranks in each lane, and in the one that the router takes."""
    ranks = lane_ranks(calibration, examples)
    routing = Routing(
        0.0, calibration.high_match_lane, calibration.low_match_lane, calibration.match_threshold
    )
    return {**ranks, "auto": routing.apply(ranks, examples.best_captions)}


def _joined(parts: Sequence[Ranks]) -> Ranks:
    """The ranks of several parts, one behind the other."""
    return {lane: np.concatenate([one[lane] for one in parts]) for lane in parts[0]}
