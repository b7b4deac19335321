"""Calibration on held-out queries: weights, router, confidence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from cart_qdrant.arrays.types import FloatArray, IndexArray
from cart_qdrant.generator.beam_search import Beams
from cart_qdrant.search.candidate_features import CandidateFeatures
from cart_qdrant.search.fusion import MEANINGFUL, untrained
from cart_qdrant.training.calibration.calibrate import calibrate
from cart_qdrant.training.calibration.candidate_features import HeldOut, Items, collect_examples
from cart_qdrant.training.calibration.confidence import Hits
from cart_qdrant.training.calibration.measures import lane_ranks
from cart_qdrant.training.calibration.router import choose_routing


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
    found = calibrate({"new": held}, None, items, untrained(["visual", "audio"], 1, False))
    assert found.without_caption[:3] == found.without_caption[3:6]
    assert found.without_caption[0] > 0


@dataclass(frozen=True)
class World:
    """Sixty items with vectors and captions of their own."""

    x_ND: FloatArray
    caption_NW: FloatArray
    items: Items
    rng: np.random.Generator

    @classmethod
    def make(cls, seed: int) -> World:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(60, 16)).astype(np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        rows = np.stack([np.arange(60), np.zeros(60)], axis=1).astype(np.int32)
        captions = rng.normal(size=(60, 8)).astype(np.float32)
        return cls(x, captions, searched(x, rows), rng)

    def asked(self, files: IndexArray, *, captions: float, count: int = 80) -> HeldOut:
        """Queries for some items.

        Args:
            captions: Noise of the queries' likeness to their captions; the media vectors have .3.
        """
        rng, right = self.rng, self.rng.choice(files, count)
        q = self.x_ND[right] + 0.3 * rng.normal(size=(count, 16)).astype(np.float32)
        text = self.caption_NW[right] + captions * rng.normal(size=(count, 8)).astype(np.float32)
        beams = [beams_of(self.items.rows_NL[:3])] * count
        unknown, sure = np.full(60, np.nan, np.float32), np.zeros((count, 1), np.float32)
        known = np.ones(60, bool)
        return HeldOut(right, {"s": q}, text, beams, self.caption_NW, known, unknown, sure)


CHOOSE, REPORT = np.arange(40), np.arange(40, 60)


def test_what_helps_is_chosen_and_measured_on_other_files() -> None:
    world = World.make(1)
    choose = {"seen": world.asked(CHOOSE, captions=0.5)}
    report = {"seen": world.asked(REPORT, captions=0.5, count=60)}
    found = calibrate(choose, report, world.items, untrained(["s"], 1, captions=True))
    measured = found.held_out["seen"]
    assert measured["queries"] == 60 and measured["files"] <= 20 and not found.cross_fitted
    assert measured["auto"] == measured["fused"] != measured["dense"]
    assert measured["fused"]["R@1"] > measured["dense"]["R@1"]
    low, high = measured["fused"]["R@1 interval"]
    assert low < measured["fused"]["R@1"] < high
    assert found.ece is not None and found.ece < 0.15
    cosines, unknown = np.asarray([0.9, 0.1], np.float32), np.full(2, np.nan, np.float32)
    two = CandidateFeatures(
        cosines, np.asarray([0.9, 0.0], np.float32), unknown, np.zeros(2, np.intp),
        unknown, unknown, unknown, np.zeros(2, np.intp), np.zeros(1, np.float32),
    )  # fmt: skip
    confidence = found.confidences(two)
    assert confidence is not None and 0 < confidence[1] < confidence[0] < 1


def test_what_chose_well_by_chance_is_not_reported_so() -> None:
    """Captions that say what is asked for where it is chosen, and mislead where it is reported:
    the report tells what the choice is worth, not what it was chosen by."""
    world = World.make(4)
    choose = {"seen": world.asked(CHOOSE, captions=0.1)}
    report = {"seen": world.asked(REPORT, captions=30.0)}
    found = calibrate(choose, report, world.items, untrained(["s"], 1, captions=True))
    assert found.high_match_lane == "fused"
    assert found.held_out["seen"]["auto"]["R@1"] < found.held_out["seen"]["dense"]["R@1"]


def test_a_lane_is_not_chosen_by_a_gain_that_may_be_chance() -> None:
    """Of lanes that are equally good, each wins some draws of the queries. Two queries more, of
    eighty, are no reason to leave the dense lane; thirty are."""
    rng = np.random.default_rng(5)
    world = World.make(5)
    examples = collect_examples(
        {"seen": world.asked(CHOOSE, captions=30.0)}, world.items, untrained(["s"], 1, False)
    )
    assert examples is not None
    dense = rng.permutation(np.repeat([0, 20], 40))
    for more, wanted in ((2, "dense"), (30, "fused")):
        fused = dense.copy()
        won, lost = np.flatnonzero(dense == 20)[: more + 8], np.flatnonzero(dense == 0)[:8]
        fused[won], fused[lost] = 0, 20
        missed = np.full(80, 20)
        ranks = {"dense": dense, "fused": fused, "generative": missed}
        assert choose_routing(ranks, examples).high == wanted


def test_folds_are_measured_by_what_other_folds_chose() -> None:
    world = World.make(6)
    one = world.asked(np.arange(60), captions=0.5, count=120)
    found = calibrate({"seen": one}, None, world.items, untrained(["s"], 1, captions=True))
    assert found.cross_fitted and found.held_out["seen"]["queries"] == 120
    assert found.held_out["seen"]["fused"]["R@1"] > found.held_out["seen"]["dense"]["R@1"]
    few = world.asked(np.arange(60), captions=0.5, count=MEANINGFUL)
    found = calibrate({"seen": few}, None, world.items, untrained(["s"], 1, captions=True))
    # Each fold is left with too few to choose by, all together with just enough.
    assert found.confidence and found.ece is None


def test_a_miss_of_the_search_counts() -> None:
    """The right item is among the candidates that weights are fitted to, and among the hits only if
    a search finds it: here two hundred others are nearer in each list."""
    rng = np.random.default_rng(7)
    n = 300
    x = np.zeros((n, 4), np.float32)
    x[:, 0] = np.linspace(1, 0, n)
    rows = np.stack([np.arange(n), np.zeros(n)], axis=1).astype(np.int32)
    unknown, sure = np.full(n, np.nan, np.float32), np.zeros((60, 1), np.float32)
    right = np.where(np.arange(60) < 30, rng.integers(0, 3, 60), 299)
    q = np.tile(np.eye(1, 4, dtype=np.float32), (60, 1))
    held = HeldOut(
        right, {"s": q}, np.zeros((60, 2), np.float32), [beams_of(rows[:1])] * 60,
        np.zeros((n, 2), np.float32), np.zeros(n, bool), unknown, sure,
    )  # fmt: skip
    base = untrained(["s"], 1, captions=False)
    examples = collect_examples({"unseen": held}, searched(x, rows), base)
    assert examples is not None
    assert examples.retrieved_B.tolist() == (right < 100).tolist()
    hits = Hits.of(base, examples)
    assert hits.right_H.sum() == 30 and len(hits.right_H) == 600
    assert (lane_ranks(base, examples)["dense"][right == 299] > n).all()


def test_segments_of_the_right_file_answer_for_it_as_in_a_search() -> None:
    """Each file has two segments that are equally near: the file's confidence is that of both."""
    world = World.make(8)
    items = replace(world.items, file_N=np.arange(60) // 2)
    held = world.asked(CHOOSE, captions=0.5)
    examples = collect_examples({"seen": held}, items, untrained(["s"], 1, captions=True))
    assert examples is not None
    for n, one in enumerate(examples.retrieved):
        assert np.isin(held.item_B[n] ^ 1, np.flatnonzero(np.isin(items.file_N, one.file)))
        assert (one.file_C == one.file).sum() == 2
        assert len(examples.candidates[n].media_C) == len(one.file_C) - 1
    hits = Hits.of(untrained(["s"], 1, captions=True), examples)
    assert len(hits.right_H) == 10 * 80  # files, not segments
    asked = np.bincount(examples.file_B, examples.asked_B)
    np.testing.assert_allclose(asked[asked > 0], asked[asked > 0][0], rtol=1e-5)
    assert asked.sum() == pytest.approx(1)


def test_a_handful_of_queries_decides_nothing() -> None:
    """Ten queries that the captions mislead: lanes and weights are those of before training."""
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
    found = calibrate({"new": held}, None, searched(x, rows), base)
    assert found.confidence == [] and found.ece is None
    lanes = (found.high_match_lane, found.low_match_lane, found.match_threshold)
    assert lanes == (base.high_match_lane, base.low_match_lane, base.match_threshold)
    assert found.caption_odds == base.caption_odds
    assert found.held_out["new"]["queries"] == 10
