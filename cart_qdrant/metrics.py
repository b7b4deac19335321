"""Pure measures on arrays. Retrieval measures (recall, MRR) come from `ir-measures`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def unique_ratio(codes_NL: npt.NDArray[np.int32]) -> float:
    """U, the unique-identifier ratio: distinct rows over rows; 1.0 for no rows."""
    if len(codes_NL) == 0:
        return 1.0
    return len(np.unique(codes_NL, axis=0)) / len(codes_NL)
