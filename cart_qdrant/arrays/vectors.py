"""Pure functions of arrays. Retrieval measures (recall, MRR) come from `ir-measures`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def unit(x_ND: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Rows at length 1; rows of nothing stay so."""
    norm = np.linalg.norm(x_ND, axis=1, keepdims=True)
    return np.asarray(x_ND / np.maximum(norm, 1e-12), dtype=np.float32)


def unique_ratio(codes_NL: npt.NDArray[np.int32]) -> float:
    """U, the unique-identifier ratio: distinct rows over rows; 1.0 for no rows."""
    if len(codes_NL) == 0:
        return 1.0
    return len(np.unique(codes_NL, axis=0)) / len(codes_NL)
