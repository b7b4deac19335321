"""Calibration of a search on held-out queries: fusion weights, router and confidence.

On the held-out queries of each stratum, which are those that it is fitted to, the routed result is
never worse in R@1 and R@10 than the dense lane; where it would be, the router says dense.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cart_qdrant.arrays.types import IndexArray
from cart_qdrant.search.fusion import MEANINGFUL, ROUTED_LANES, Calibration
from cart_qdrant.training.calibration.candidate_features import (
    Examples,
    HeldOut,
    Items,
    collect_examples,
)
from cart_qdrant.training.calibration.confidence import fit_confidence
from cart_qdrant.training.calibration.measures import (
    dense_ranks,
    fused_ranks,
    ranks_among_an_eighth,
    recall,
)
from cart_qdrant.training.calibration.router import CLEAR_GAIN, Routing, choose_routing
from cart_qdrant.training.calibration.weights import fit_lanes

Ranks = Mapping[str, IndexArray]

ODDS_SHIFTS = (0.0, *(sign * step / 2 for step in range(1, 11) for sign in (-1, 1)))
"""Added to the log-odds that an item with a caption is asked for: the shift of highest gain is
taken among those that lose nothing for items with or without a caption."""


def calibrate(strata: Mapping[str, HeldOut], items: Items, base: Calibration) -> Calibration:
    """Fit weights, router and confidence on the strata that have queries.

    Args:
        strata: Held-out queries by name.
        items: What is searched.
        base: Media spaces, scale, gates, beam width and mean hubness; it is returned with the rest
            filled in.
    """
    examples = collect_examples(strata, items, base)
    if examples is None:
        return base
    calibration, routing, ranks = _best(base, examples)
    if len(examples) >= MEANINGFUL:
        calibration = fit_confidence(calibration, examples)
    routed = routing.apply(ranks, examples.best_captions)
    return replace(
        calibration, held_out=_held_out({**ranks, "auto": routed}, calibration, examples, strata)
    )


def _best(base: Calibration, examples: Examples) -> tuple[Calibration, Routing, Ranks]:
    """The weights and the routing of highest gain, and what they reach; the defaults where there
    are too few queries to choose by."""
    many = len(examples) >= MEANINGFUL
    mixed = any(e.has_caption.any() and not e.has_caption.all() for e in examples.candidates)
    best: tuple[Calibration, Routing, Ranks] | None = None
    for beams in (False, True) if many else (False,):
        fitted = fit_lanes(base, examples, beams=beams)
        dense = dense_ranks(fitted, examples)
        for shift in ODDS_SHIFTS if mixed and many else ODDS_SHIFTS[:1]:
            one = replace(
                fitted, caption_odds=[fitted.caption_odds[0] + shift, *fitted.caption_odds[1:]]
            )
            fused, generative = fused_ranks(one, examples)
            found = {"dense": dense, "fused": fused, "generative": generative}
            ranks = {lane: found[lane] for lane in ROUTED_LANES}
            routing = choose_routing(ranks, examples, None if many else base.high_match_lane)
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
            best = (one, routing, ranks)
    assert best is not None
    return best


def _held_out(
    ranks: Ranks, calibration: Calibration, examples: Examples, strata: Mapping[str, HeldOut]
) -> dict[str, dict[str, Any]]:
    """Recall by stratum and lane, as the report of a training shows it."""
    report: dict[str, dict[str, Any]] = {}
    fewer = ranks_among_an_eighth(calibration, examples)
    for name, held_out in strata.items():
        rows = examples.stratum_B == name
        report[name] = {"queries": len(held_out.item_B)}
        for lane, rank_B in ranks.items():
            report[name][lane] = {"R@1": recall(rank_B, rows, 1), "R@10": recall(rank_B, rows, 10)}
            if lane in fewer:
                report[name][lane]["R@10 among an eighth"] = recall(fewer[lane], rows, 10)
    return report
