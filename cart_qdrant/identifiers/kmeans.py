"""K-means for many vectors: Lloyd's steps as matrix products; small clusters are re-seeded.

K-means++ chooses outliers as centres. In hundreds of dimensions an outlier is far from all other
vectors, so that one centre near the mean is assigned all of them (docs/experiments.md). Here the
centres start at random vectors, and the centre of a cluster that stays small moves into a large
cluster, which is thereby split. Shape legend: N vectors, D width, K clusters.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cart_qdrant.arrays.types import FloatArray, IndexArray
from cart_qdrant.extras import require
from cart_qdrant.identifiers.quantizer import nearest

STEPS = 20
"""Maximum number of Lloyd's steps; small clusters are re-seeded in the first half of them."""
SMALL = 0.5
"""A cluster is small if it has fewer than this share of the mean number of vectors."""
SPLIT = 0.1
"""Where the second centre of a split cluster is placed: this share of the way from the first
centre to one of the cluster's vectors, so near that both centres get a part of the vectors."""
SETTLED = 1e-3
"""The steps end when a smaller share of the vectors than this changes its cluster."""


class ClusterMeans:
    """Accumulates the mean vector of each cluster, block by block."""

    def __init__(self, k: int, dim: int) -> None:
        require("train", "scipy")
        self._sums_KD = np.zeros((k, dim), dtype=np.float32)
        self.counts_K = np.zeros(k, dtype=np.int64)

    def add(self, x_BD: FloatArray, of_B: IndexArray) -> None:
        """Add vectors (B, D) and the number of the cluster of each (B,)."""
        from scipy import sparse  # type: ignore[import-untyped]  # takes a second to import

        # A block has vectors of some clusters only.
        touched, of_B = np.unique(of_B, return_inverse=True)
        shape = (len(x_BD), len(touched))
        ones = np.ones(len(x_BD), dtype=np.float32)
        member_BT = sparse.csr_matrix((ones, of_B, np.arange(len(x_BD) + 1)), shape=shape)
        self._sums_KD[touched] += member_BT.T.tocsr() @ x_BD
        self.counts_K[touched] += np.bincount(of_B, minlength=len(touched))

    def update(self, centers_KD: FloatArray) -> None:
        """Move the centres to the means of their clusters, in place; empty clusters keep theirs."""
        found = np.flatnonzero(self.counts_K)
        centers_KD[found] = self._sums_KD[found] / self.counts_K[found, None].astype(np.float32)


def balanced_kmeans(x_ND: FloatArray, k: int, seed: int) -> FloatArray:
    """Centres (K, D) of vectors in memory; K is at most the number of vectors."""
    rng = np.random.default_rng(seed)
    k = min(k, len(x_ND))
    centers_KD = x_ND[np.sort(rng.choice(len(x_ND), k, replace=False))].copy()
    before_N: IndexArray | None = None
    for step in range(STEPS):
        of_N = nearest(x_ND, centers_KD)
        means = ClusterMeans(k, x_ND.shape[1])
        means.add(x_ND, of_N)
        means.update(centers_KD)
        split = step < STEPS // 2 and _split(x_ND, of_N, centers_KD, means.counts_K, rng)
        settled = before_N is not None and (of_N != before_N).mean() < SETTLED
        if settled and not split:
            break
        before_N = of_N
    return centers_KD


def _split(
    x_ND: FloatArray,
    of_N: IndexArray,
    centers_KD: FloatArray,
    counts_K: npt.NDArray[np.int64],
    rng: np.random.Generator,
) -> bool:
    """Move the centre of each small cluster into one of the largest; whether any was moved."""
    small = np.flatnonzero(counts_K < SMALL * counts_K.mean())
    large = np.argsort(-counts_K, kind="stable")[: len(small)]
    large = large[counts_K[large] > counts_K.mean()]
    for one, other in zip(small, large, strict=False):
        x_D = x_ND[rng.choice(np.flatnonzero(of_N == other))]
        centers_KD[one] = centers_KD[other] + SPLIT * (x_D - centers_KD[other])
    return len(large) > 0
