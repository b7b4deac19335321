"""Ranks of right items among all items, by a score.

Shape legend: B queries, N items.
"""

from __future__ import annotations

import numpy as np

from cart_qdrant.arrays.types import FloatArray, IndexArray


def ranks_in(score_BN: FloatArray, target_B: IndexArray) -> IndexArray:
    """Number of items (B,) that score higher than the right one."""
    right_B1 = score_BN[np.arange(len(target_B)), target_B][:, None]
    return np.asarray((score_BN > right_B1).sum(axis=1))


def found(rank_B: IndexArray) -> FloatArray:
    """What each query finds (B,): one for its item among the first ten, one more if it is first."""
    return (rank_B < 1).astype(np.float32) + (rank_B < 10)
