"""Forecasts of a training in words."""

from __future__ import annotations

import pytest

from cart_qdrant.compute import Compute
from cart_qdrant.training.forecast import in_words


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [(0.2, "10 seconds"), (37, "40 seconds"), (89, "90 seconds"), (95, "2 minutes"),
     (370, "6 minutes")],
)  # fmt: skip
def test_a_forecast_is_rounded(seconds: float, wanted: str) -> None:
    found = in_words(seconds, Compute("cpu", "bfloat16"))
    assert found == f"about {wanted} at most on cpu, bfloat16"
