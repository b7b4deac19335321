"""What the diagnostics say, by made-up measurements of each failure and of none."""

from __future__ import annotations

from typing import Any

import pytest

from cart_qdrant.evaluation.training_diagnostics import read_diagnostics
from cart_qdrant.search.fusion import MEANINGFUL


def summary(**changed: Any) -> dict[str, Any]:
    lane = {"R@1": 0.3, "R@10": 0.6, "R@10 among an eighth": 0.8}
    stratum = {
        "queries": 300,
        "auto": {"R@1": 0.3, "R@10": 0.6},
        "dense": dict(lane),
        "generative": dict(lane),
    }
    diagnostics = {"loss": {"train": 2.0, "unseen": 2.4}, "valid_identifiers": 0.4}
    return {
        "held_out": {"unseen": {**stratum, **changed.pop("unseen", {})}},
        "diagnostics": diagnostics | changed,
    }


def test_a_sound_training_shows_nothing() -> None:
    assert read_diagnostics(summary()) == []
    assert read_diagnostics({}) == []


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"unseen": {"auto": {"R@1": 0.05, "R@10": 0.6}}}, "not first"),
        (
            {"unseen": {"generative": {"R@1": 0.1, "R@10": 0.3, "R@10 among an eighth": 0.8}}},
            "size of the collection",
        ),
        ({"loss": {"train": 1.0, "unseen": 4.0}}, "memorised"),
        ({"valid_identifiers": 0.001}, "exist"),
    ],
)
def test_each_failure_is_named_with_a_remedy(changed: dict[str, Any], word: str) -> None:
    (line,) = read_diagnostics(summary(**changed))
    assert word in line
    assert "cartq" in line or "--filter" in line


def test_few_queries_tell_nothing() -> None:
    few = {"queries": MEANINGFUL - 1, "auto": {"R@1": 0.0, "R@10": 0.6}}
    assert read_diagnostics(summary(unseen=few)) == []
