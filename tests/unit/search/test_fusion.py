"""Fusion weights, the router and their round trip."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cart_qdrant.search.candidate_features import FLOOR, CandidateFeatures, FeatureColumns
from cart_qdrant.search.fusion import Calibration, blend, untrained


def candidates(
    media: list[float],
    caption: list[float],
    hub: list[float] | None = None,
    caption_hub: list[float] | None = None,
    bm25: list[float] | None = None,
    group: list[int] | None = None,
    prior: list[float] | None = None,
) -> CandidateFeatures:
    n = len(media)
    unknown = [float("nan")] * n
    return CandidateFeatures(
        np.asarray(media, np.float32),
        np.asarray(caption, np.float32),
        np.full(n, np.nan, np.float32),
        np.zeros(n, np.intp),
        np.asarray(hub or unknown, np.float32),
        np.asarray(caption_hub or unknown, np.float32),
        np.asarray(bm25 or unknown, np.float32),
        np.asarray(group or [0] * n, np.intp),
        np.log(np.asarray(prior or [1.0], np.float32)),
    )


def test_a_missing_caption_is_no_cosine_of_zero() -> None:
    features = candidates([0.5, 0.5], [float("nan"), 0.0]).matrix([0.0, 0.0])
    assert features[0].tolist() == [0.5, 1, 0, 0, 0, 0, 0]
    assert features[1].tolist() == [0.5, 1, 0, 0, 1, 0, 0]


def test_hubness_that_is_not_known_counts_as_the_mean() -> None:
    nan = float("nan")
    features = candidates([0.5] * 3, [0.1, 0.1, nan], [0.5, nan, 0.0], [0.5, nan, 0.9]).matrix(
        [0.25, 0.75]
    )
    assert features[:, 2].tolist() == [-0.25, 0, 0.25]
    assert features[:, 5].tolist() == [0.25, 0, 0]  # without a caption there is no hubness of it


def test_columns_are_those_of_the_features() -> None:
    column = FeatureColumns.of(2)
    assert column.media.tolist() == [True] * 6 + [False] * 4
    assert column.caption.tolist() == [False] * 6 + [True] * 3 + [False]
    assert np.flatnonzero(column.presence).tolist() == [1, 4, 7]
    assert np.flatnonzero(column.hub).tolist() == [2, 5, 8]
    assert np.flatnonzero(column.beam).tolist() == [9]
    assert len(column.beam) == candidates([0.0], [0.0]).matrix([0.0] * 3).shape[1]


def test_reciprocal_ranks_count_only_lists_that_have_the_item() -> None:
    nan = float("nan")
    found = candidates([0.9, 0.8, nan], [nan, 0.2, 0.7], bm25=[nan, nan, 3.0])
    scores = untrained(["s"], 2, captions=True).score("rrf", found)
    assert scores == pytest.approx([1 / 61, 1 / 62 + 1 / 62, 1 / 61 + 1 / 61])


def test_a_lane_of_words_leaves_out_what_has_none() -> None:
    found = candidates([0.9, 0.8, 0.7], [0.1, float("nan"), 0.3], bm25=[1.0, 2.0, float("nan")])
    calibration = untrained(["s"], 2, captions=True)
    assert calibration.order("bm25", found, fill=False)[0].tolist() == [1, 0]
    assert calibration.order("caption", found, fill=False)[0].tolist() == [2, 0]


def test_a_hub_loses_to_what_is_as_near_and_asked_less() -> None:
    calibration = replace(
        untrained(["s"], 2, captions=False), without_caption=[20.0, 0.0, 16.0, 0, 0, 0, 0]
    )
    found = candidates([0.5, 0.49], [float("nan")] * 2, [0.6, 0.4])
    assert calibration.order("dense", found, fill=True)[0].tolist() == [0, 1]
    assert calibration.order("fused", found, fill=True)[0].tolist() == [1, 0]


def test_an_unlikely_beam_still_names_its_item() -> None:
    """Under the floor it counts as little as no beam, but the item stays a candidate."""
    found = CandidateFeatures(
        np.zeros(3, np.float32), np.zeros(3, np.float32),
        np.asarray([-1, FLOOR - 8, np.nan], np.float32), np.zeros(3, np.intp),
        np.zeros(3, np.float32), np.zeros(3, np.float32), np.zeros(3, np.float32),
        np.zeros(3, np.intp), np.zeros(1, np.float32),
    )  # fmt: skip
    assert found.named.tolist() == [True, True, False]
    assert found.matrix([0.0, 0.0])[:, -1].tolist() == [11, 0, 0]
    calibration = untrained(["s"], 2, captions=True)
    assert set(calibration.order("generative", found, fill=False)[0]) == {0, 1}
    assert calibration.order("generative", found, fill=True)[0].tolist()[2] == 2


@given(st.floats(-1, 1, width=32), st.floats(-1, 1, width=32))
def test_route_follows_the_best_caption(threshold: float, best: float) -> None:
    calibration = Calibration(
        spaces=["s"],
        with_caption=[],
        without_caption=[],
        caption_odds=[],
        hub_means=[0.0, 0.0],
        high_match_lane="fused",
        low_match_lane="dense",
        match_threshold=threshold,
    )
    found = calibration.route(candidates([0.0, 0.0], [best, -1.0]))
    assert found == ("fused" if best >= threshold else "dense")


@given(
    st.lists(
        st.tuples(st.floats(-1, 1), st.none() | st.floats(-1, 1), st.integers(0, 2)),
        min_size=1, max_size=9,
    )
)  # fmt: skip
def test_fused_scores_are_log_probabilities(items: list[tuple[float, float | None, int]]) -> None:
    found = candidates(
        [media for media, _, _ in items],
        [float("nan") if caption is None else caption for _, caption, _ in items],
        group=[group for _, _, group in items], prior=[0.5, 0.3, 0.2],
    )  # fmt: skip
    scores = untrained(["s"], 2, captions=True).score("fused", found)
    assert np.exp(scores).sum() == pytest.approx(1, abs=1e-4)


def test_a_good_caption_wins_and_a_poor_one_does_not_hide_items_without() -> None:
    calibration = untrained(["s"], 2, captions=True)
    good = calibration.score("fused", candidates([0.1, 0.3], [0.8, float("nan")]))
    poor = calibration.score("fused", candidates([0.1, 0.3], [0.2, float("nan")]))
    assert good[0] > good[1]
    assert poor[0] < poor[1]


def test_the_prior_of_a_group_is_shared_by_its_items() -> None:
    """However many they are, and however their cosines compare."""
    nan = float("nan")
    found = candidates(
        [0.9, 0.8, 0.8, 0.8, 0.1], [nan] * 5, group=[0, 0, 0, 0, 1], prior=[0.4, 0.6]
    )
    p = np.exp(untrained(["s"], 2, captions=False).score("fused", found))
    assert p[4] == pytest.approx(0.6, abs=1e-4)
    assert p[:4].sum() == pytest.approx(0.4, abs=1e-4)
    alone = candidates([0.9, 0.8], [nan] * 2, group=[0, 0], prior=[0.4, 0.6])
    p = np.exp(untrained(["s"], 2, captions=False).score("fused", alone))
    assert p.sum() == pytest.approx(1, abs=1e-4)


@given(st.integers(1, 60), st.floats(0.01, 0.99))
def test_the_dense_lane_ranks_by_the_cosine_whatever_else_is_found(more: int, prior: float) -> None:
    """An image of cosine .40 before a video of .30, also among many images of .39."""
    nan = float("nan")
    calibration = untrained(["s"], 2, captions=False)
    few = candidates([0.4, 0.3], [nan] * 2, group=[0, 1], prior=[prior, 1 - prior])
    many = candidates(
        [0.4, 0.3, *[0.39] * more, nan], [nan] * (more + 3), group=[0, 1, *[0] * (more + 1)],
        prior=[prior, 1 - prior],
    )  # fmt: skip
    assert calibration.score("dense", few).tolist() == few.media_C.tolist()
    assert calibration.score("dense", many)[:2].tolist() == few.media_C.tolist()
    order, _ = calibration.order("dense", many, fill=True)
    assert order.tolist() == [0, *range(2, more + 2), 1]


def test_the_first_candidates_share_the_probability() -> None:
    """Those that are found later, as more hits are asked for, change no score or confidence."""
    nan = float("nan")
    calibration = replace(untrained(["s"], 2, captions=True), confidence=[1.5, -0.2])
    media, caption, group = [0.5, 0.4, 0.3], [nan, 0.6, nan], [0, 0, 1]
    few = candidates(media, caption, group=group, prior=[0.7, 0.3])
    many = replace(
        candidates(
            [*media, 0.45, 0.2, 0.1], [*caption, nan, 0.3, 0.7], group=[*group, 0, 0, 1],
            prior=[0.7, 0.3],
        ),
        first_C=np.asarray([True] * 3 + [False] * 3),
    )  # fmt: skip
    for score in (lambda c: calibration.score("fused", c), calibration.confidences):
        np.testing.assert_array_equal(score(many)[:3], score(few))
    assert many.best_caption == few.best_caption


def test_calibration_round_trip() -> None:
    calibration = untrained(["visual", "audio"], 4, captions=True)
    again = Calibration.from_json(json.loads(json.dumps(calibration.to_json())))
    assert again == calibration


def test_blended_queries_are_unit_vectors_between_their_parts() -> None:
    tower, other = np.eye(2, dtype=np.float32)[:1], np.eye(2, dtype=np.float32)[1:]
    assert blend(tower, None, 0.5) is tower and blend(tower, other, 0.0) is tower
    q = blend(tower, other, 0.25)
    assert np.linalg.norm(q) == pytest.approx(1) and q[0, 0] > q[0, 1] > 0
