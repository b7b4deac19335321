"""Calibration on held-out queries: weights, router, confidence."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.generator.beam_search import Beams
from cart_qdrant.search.candidate_features import CandidateFeatures
from cart_qdrant.search.fusion import untrained
from cart_qdrant.training.calibration.calibrate import calibrate
from cart_qdrant.training.calibration.candidate_features import HeldOut, Items


def searched(x_ND: FloatArray, rows_NL: npt.NDArray[np.int32]) -> Items:
    n = len(x_ND)
    unknown = np.full(n, np.nan, np.float32)
    return Items(x_ND, np.zeros(n, np.intp), rows_NL, np.arange(n), unknown, np.zeros(n, np.intp))


def beams_of(rows_KL: Any) -> Beams:
    """Identifiers of equal score."""
    return Beams(rows_KL, np.zeros(len(rows_KL), np.float32), np.arange(len(rows_KL)))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_seldom_asked_space_is_weighed_as_the_most_asked_one(groups: int) -> None:
    """Five queries for sounds, whose cosines are an order smaller, among 200 for pictures; sounds
    are no modality group of their own where training has no text of one."""
    rng = np.random.default_rng(3)
    n, d = 80, 16
    x = rng.normal(size=(n, d)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    sound = np.arange(n) >= 60
    rows = np.stack([np.arange(n), np.zeros(n)], axis=1).astype(np.int32)
    unknown = np.full(n, np.nan, np.float32)
    group_N = np.where(sound, groups - 1, 0)
    items = Items(x, sound.astype(np.intp), rows, np.arange(n), unknown, group_N)
    asked = np.concatenate([rng.integers(0, 60, 200), rng.integers(60, n, 5)])
    q = x[asked] + 0.3 * rng.normal(size=(len(asked), d)).astype(np.float32)
    belief = np.log(np.where(sound[asked][:, None], [[0.2, 0.8]], [[0.8, 0.2]])).astype(np.float32)
    belief = belief if groups == 2 else np.zeros((len(asked), 1), np.float32)
    held = HeldOut(
        asked, {"visual": q, "audio": 0.1 * q}, np.zeros((len(asked), 4), np.float32),
        [beams_of(rows[:1])] * len(asked), np.zeros((n, 4), np.float32),
        np.zeros(n, bool), unknown, belief,
    )  # fmt: skip
    found = calibrate({"new": held}, items, untrained(["visual", "audio"], 1, False))
    assert found.without_caption[:3] == found.without_caption[3:6]
    assert found.without_caption[0] > 0


def test_routed_is_never_worse_than_dense_on_held_out_queries() -> None:
    """Captions that mislead: whatever the weights, the router must not lose to dense."""
    rng = np.random.default_rng(1)
    n, d, w = 60, 16, 8
    x = rng.normal(size=(n, d)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    rows = np.stack([np.arange(n), np.zeros(n)], axis=1).astype(np.int32)

    def stratum(noise: float, known: bool) -> HeldOut:
        items = rng.integers(0, n, 80) if known else rng.integers(0, 20, 80)
        q = x[items] + noise * rng.normal(size=(80, d)).astype(np.float32)
        captions = rng.normal(size=(n, w)).astype(np.float32)
        text = rng.normal(size=(80, w)).astype(np.float32)
        if known:
            text = captions[items] + 0.5 * rng.normal(size=(80, w)).astype(np.float32)
        beams = [beams_of(rows[:3])] * 80
        # Held-out items have no caption that is known; some others have none either.
        has = np.ones(n, bool)
        if not known:
            has[items] = False
            captions[~has] = 0
        unknown, sure = np.full(n, np.nan, np.float32), np.zeros((80, 1), np.float32)
        return HeldOut(items, {"s": q}, text, beams, captions, has, unknown, sure)

    strata = {"new": stratum(0.3, known=False), "known": stratum(0.3, known=True)}
    base = untrained(["s"], 1, captions=True)
    found = calibrate(strata, searched(x, rows), base)
    for lanes in found.held_out.values():
        for measure in ("R@1", "R@10"):
            assert lanes["auto"][measure] >= lanes["dense"][measure]
    assert found.held_out["known"]["fused"]["R@1"] > found.held_out["known"]["dense"]["R@1"]
    assert found.ece is not None and found.ece < 0.1
    cosines, unknown = np.asarray([0.9, 0.1], np.float32), np.full(2, np.nan, np.float32)
    two = CandidateFeatures(
        cosines, np.asarray([0.9, 0.0], np.float32), unknown, np.zeros(2, np.intp),
        unknown, unknown, unknown, np.zeros(2, np.intp), np.zeros(1, np.float32),
    )  # fmt: skip
    confidence = found.confidences(two)
    assert confidence is not None and 0 < confidence[1] < confidence[0] < 1


def test_a_few_held_out_queries_do_not_choose_a_routing() -> None:
    """Ten queries: the usual lane, or dense where that loses; never what chance prefers."""
    rng = np.random.default_rng(2)
    n = 30
    x = rng.normal(size=(n, 8)).astype(np.float32)
    rows = np.stack([np.arange(n), np.zeros(n)], axis=1).astype(np.int32)
    items = np.arange(10)
    has = np.arange(n) >= 10
    captions = np.where(has[:, None], rng.normal(size=(n, 6)), 0).astype(np.float32)
    text = rng.normal(size=(10, 6)).astype(np.float32)
    beams = [beams_of(rows[i : i + 1]) for i in items]
    hub, sure = np.zeros(n, np.float32), np.zeros((10, 1), np.float32)
    held = HeldOut(items, {"s": x[items]}, text, beams, captions, has, hub, sure)
    base = untrained(["s"], 1, captions=True)
    found = calibrate({"new": held}, searched(x, rows), base)
    assert found.confidence == [] and found.ece is None
    assert found.high_match_lane == found.low_match_lane != "generative"
    assert found.caption_odds == base.caption_odds
    measured = found.held_out["new"]
    assert measured["auto"]["R@1"] >= measured["dense"]["R@1"]
