"""What a training says of itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cart_qdrant.compute import Compute
from cart_qdrant.search.fusion import MEANINGFUL, untrained
from cart_qdrant.training.report import TrainReport


@pytest.mark.parametrize(
    ("queries", "said"),
    [(MEANINGFUL - 1, "too few to choose by"), (MEANINGFUL, "were chosen by 50 held-out queries")],
)
def test_nothing_is_said_to_be_chosen_by_a_handful(queries: int, said: str) -> None:
    calibration = replace(untrained(["visual"], 4, True), held_out={"seen": {"queries": 2}})
    report = TrainReport(
        profile="quick", items=30, pairs=90, chosen_by=queries, val_r10=0.0, unique_ratio=1.0,
        seconds=1.0, calibration=calibration, compute=Compute(), identifiers_from="both",
    )  # fmt: skip
    (line,) = [line for line in report.summary_lines() if "choose" in line or "chosen" in line]
    assert said in line
