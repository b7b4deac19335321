"""The confidence of hits."""

from __future__ import annotations

import numpy as np
import pytest

from cart_qdrant.training.calibration.confidence import expected_calibration_error


def test_calibration_error_is_the_gap_between_stated_and_observed() -> None:
    p = np.asarray([0.95] * 10 + [0.05] * 10)
    right = np.asarray([True] * 10 + [False] * 10)
    assert expected_calibration_error(p, right, np.ones(20)) == pytest.approx(0.05)
    assert expected_calibration_error(p, ~right, np.ones(20)) == pytest.approx(0.95)
    # What weighs nothing does not count.
    weight = np.asarray([1.0] * 10 + [0.0] * 10)
    assert expected_calibration_error(p, np.asarray([True] * 20), weight) == pytest.approx(0.05)
