"""Unit vectors, and the unique-identifier ratio."""

from __future__ import annotations

import numpy as np
import pytest

from cart_qdrant.arrays.vectors import unique_ratio, unit, unit_of_any_length


def test_rows_get_length_one_and_zeros_stay() -> None:
    x_ND = np.asarray([[3.0, 4.0], [0.0, 0.0], [-1e-3, 0.0]], np.float32)
    expected_ND = np.asarray([[0.6, 0.8], [0.0, 0.0], [-1.0, 0.0]], np.float32)
    np.testing.assert_allclose(unit(x_ND), expected_ND, rtol=1e-6)
    np.testing.assert_allclose(unit(x_ND[0]), expected_ND[0], rtol=1e-6)
    assert unit(x_ND.astype(np.float64)).dtype == np.float32


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1.0, 1e30, 1e300])
def test_rows_of_any_length_keep_their_direction(scale: float) -> None:
    x_ND = scale * np.asarray([[3.0, 4.0], [-4.0, 3.0]])
    found_ND = unit_of_any_length(x_ND)
    np.testing.assert_allclose(found_ND, [[0.6, 0.8], [-0.8, 0.6]], rtol=1e-6)
    assert found_ND.dtype == np.float32
    assert unit_of_any_length(np.empty((0, 2))).shape == (0, 2)


def test_unique_ratio_counts_different_rows() -> None:
    assert unique_ratio(np.asarray([[1, 2], [1, 2], [1, 3], [2, 2]], np.int32)) == 0.75
    assert unique_ratio(np.empty((0, 2), np.int32)) == 1.0
