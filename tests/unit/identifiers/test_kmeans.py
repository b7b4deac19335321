"""Laws of k-means on many vectors: means are means, clusters stay balanced."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from cart_qdrant.identifiers.kmeans import ClusterMeans, balanced_kmeans
from cart_qdrant.identifiers.quantizer import nearest


def even(of_N: Any, k: int) -> float:
    """exp of the entropy of cluster sizes over K: 1 is even use."""
    p = np.bincount(of_N, minlength=k) / len(of_N)
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()) / k)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 9), st.lists(st.integers(0, 30), max_size=4))
def test_means_of_blocks_are_those_of_all(seed: int, k: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(seed)
    means, centers = ClusterMeans(k, 3), rng.normal(size=(k, 3)).astype(np.float32)
    before, x = centers.copy(), rng.normal(size=(sum(sizes), 3)).astype(np.float32)
    of = rng.integers(0, k, len(x))
    for part in np.split(np.arange(len(x)), np.cumsum(sizes)[:-1] if sizes else []):
        means.add(x[part], of[part])
    means.update(centers)
    assert means.counts_K.tolist() == np.bincount(of, minlength=k).tolist()
    for n in range(k):
        wanted = x[of == n].mean(axis=0) if (of == n).any() else before[n]
        np.testing.assert_allclose(centers[n], wanted, atol=1e-5)


def test_clusters_that_are_there_are_found() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=(40, 16)).astype(np.float32)
    x = np.repeat(true, 50, axis=0) + rng.normal(size=(2_000, 16)).astype(np.float32) / 50
    centers = balanced_kmeans(x, 40, seed=1)
    assert np.linalg.norm(x - centers[nearest(x, centers)], axis=1).mean() < 0.3
    np.testing.assert_array_equal(centers, balanced_kmeans(x, 40, seed=1))
    assert (centers != balanced_kmeans(x, 40, seed=2)).any()


def test_noise_is_shared_where_kmeans_plus_plus_leaves_it_to_one_centre() -> None:
    x = np.random.default_rng(0).normal(size=(3_000, 256)).astype(np.float32)
    x[::7] *= 2  # lone vectors
    usual = KMeans(128, n_init=1, random_state=0).fit(x).cluster_centers_.astype(np.float32)
    centers = balanced_kmeans(x, 128, seed=0)
    assert even(nearest(x, centers), 128) > 0.8 > 0.5 > even(nearest(x, usual), 128)


def test_fewer_vectors_than_clusters_and_copies() -> None:
    x = np.eye(3, dtype=np.float32)
    np.testing.assert_array_equal(np.unique(balanced_kmeans(x, 9, seed=0), axis=0), x[::-1])
    copies = np.repeat(x, 20, axis=0)
    centers = balanced_kmeans(copies, 8, seed=0)
    assert centers.shape == (8, 3) and np.isfinite(centers).all()
