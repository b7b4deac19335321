"""Unit vectors, and the share of identifiers that are unique."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def unit(x_ND: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Rows (..., D) at length 1, in float32; rows of zeros stay as they are."""
    norm = np.linalg.norm(x_ND, axis=-1, keepdims=True)
    return np.asarray(x_ND / np.maximum(norm, 1e-12), dtype=np.float32)


def unit_of_any_length(x_ND: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Rows (N, D) at length 1, in float32, also where their squares overflow or vanish.

    No row may be zero.
    """
    wide_ND = x_ND.astype(np.float64)
    wide_ND /= np.abs(wide_ND).max(axis=1, keepdims=True, initial=0.0)
    wide_ND /= np.linalg.norm(wide_ND, axis=1, keepdims=True)
    return wide_ND.astype(np.float32)


def unique_ratio(codes_NL: npt.NDArray[np.int32]) -> float:
    """The unique-identifier ratio: distinct rows over all rows; 1.0 where there is no row."""
    if len(codes_NL) == 0:
        return 1.0
    return len(np.unique(codes_NL, axis=0)) / len(codes_NL)
