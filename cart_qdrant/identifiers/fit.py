"""Fits residual quantisers to more vectors than can be read in every step.

The coarse clusters are fitted by k-means within the clusters of a first k-means, followed by a few
steps over many vectors. The residuals of the clusters are distributed alike, so the code books are
fitted on a sample of them. The unique-identifier ratio is measured on whole coarse clusters: items
that share an identifier share a cluster, so a random subset of the clusters gives an unbiased
estimate, which a random subset of the items does not. Vectors are read in blocks and may be mapped
from a file. Shape legend: N items, D vector width, K coarse clusters, M residual
levels, V codes per level, S vectors of a sample, L = 1 + M semantic levels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from cart_qdrant.arrays.types import FloatArray, IndexArray, IntArray
from cart_qdrant.arrays.vectors import unique_ratio
from cart_qdrant.identifiers.kmeans import ClusterMeans, balanced_kmeans
from cart_qdrant.identifiers.quantizer import (
    BLOCK,
    GROUPED,
    Groups,
    Quantizer,
    nearest,
    square_norms,
)

PER_CLUSTER = 64
"""Least number of vectors per coarse cluster that are used for fitting."""
PER_CENTRE = 256
"""Maximum number of vectors of a group that are used for each of its centres."""
REFINED = 3
"""Number of k-means steps over all fitting vectors after the groups were fitted."""
SAMPLE = 65_536
"""Number of vectors on which the groups, and by their residuals the code books, are fitted."""
HELD = 32_768
"""Least number of vectors, in whole coarse clusters, on which the unique-identifier ratio and the
error are measured."""

BookLearner = Callable[[FloatArray, int, int, int], FloatArray]
"""Fits code books (M, V, D), given residuals (S, D), V, M and a seed."""


def distinct_rows(x_ND: FloatArray) -> IndexArray:
    """Positions of the distinct rows, in ascending order: the first of each set of equal rows."""
    digests = bytearray()
    for begin in range(0, len(x_ND), BLOCK):
        for row in np.ascontiguousarray(x_ND[begin : begin + BLOCK]):
            digests += hashlib.blake2b(row, digest_size=8).digest()
    _, first = np.unique(np.frombuffer(digests, dtype=np.uint64), return_index=True)
    return np.sort(first)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Some rows of a matrix of vectors, which are mapped by the metric when they are read."""

    x_ND: FloatArray
    rows_N: IndexArray
    metric_DD: FloatArray | None

    def __len__(self) -> int:
        return len(self.rows_N)

    def take(self, positions: IndexArray | slice) -> FloatArray:
        """The rows at given positions; a view if they are adjacent and there is no metric."""
        rows = self.rows_N[positions]
        side_by_side = len(rows) > 0 and rows[-1] - rows[0] + 1 == len(rows)
        if isinstance(positions, slice) and side_by_side:
            x = self.x_ND[rows[0] : rows[-1] + 1]
        else:
            x = self.x_ND[rows]
        return x if self.metric_DD is None else x @ self.metric_DD

    def blocks(self) -> Iterator[FloatArray]:
        """All rows in order, in blocks."""
        for begin in range(0, len(self), BLOCK):
            yield self.take(slice(begin, begin + BLOCK))

    def sample(self, count: int, rng: np.random.Generator) -> _Rows:
        """A random sample of `count` rows, in order."""
        positions = np.sort(rng.choice(len(self), count, replace=False))
        return replace(self, rows_N=self.rows_N[positions])


@dataclass(frozen=True, slots=True)
class _Coarse:
    """Coarse clusters after the map of the metric, with a sample of their residuals.

    Attributes:
        centers_KD: Centres of the clusters.
        first_G: Position of the first centre of each group; the last entry is K.
        rest_SD: Residuals of a sample of the vectors.
        held_N: Rows of all distinct vectors of some clusters.
    """

    centers_KD: FloatArray
    first_G: IntArray
    rest_SD: FloatArray
    held_N: IndexArray


class ManyFit:
    """Fits quantisers of several sizes to the same vectors."""

    def __init__(
        self, x_ND: FloatArray, metric_DD: FloatArray | None = None, *, limit: int, seed: int = 0
    ) -> None:
        """
        Args:
            x_ND: Unit vectors; may be mapped from a file.
            metric_DD: Invertible map (D, D) after which distances are taken.
            limit: Number of vectors that fit the coarse clusters; `PER_CLUSTER` for each cluster
                if that is more.
            seed: Seed of the random numbers.
        """
        self._limit, self._seed = limit, seed
        self._rows = _Rows(x_ND, distinct_rows(x_ND), metric_DD)
        self._coarse: dict[int, _Coarse] = {}
        self._books: tuple[tuple[int, int], list[FloatArray], FloatArray] | None = None

    @property
    def distinct(self) -> int:
        """Number of distinct vectors."""
        return len(self._rows)

    def fit(
        self, k: int, v: int, m: int, learner: BookLearner | None = None
    ) -> tuple[Quantizer, float]:
        """A quantiser of a given size with its error, and its ratio of unique identifiers among
        distinct vectors.

        Args:
            learner: Fits the code books; residual k-means if not given.
        """
        if k not in self._coarse:
            self._coarse[k] = self._fit_coarse(k)
        coarse, metric = self._coarse[k], self._rows.metric_DD
        centers_KD = coarse.centers_KD
        if learner is None:
            books_MVD = np.stack(self._grown(k, v, m))
        else:
            books_MVD = learner(coarse.rest_SD, v, m, self._seed)
        if metric is not None:
            inverse = np.linalg.inv(metric.astype(np.float64))
            centers_KD = (centers_KD @ inverse).astype(np.float32)
            books_MVD = (books_MVD @ inverse).astype(np.float32)
        groups = Groups.of(centers_KD, coarse.first_G) if k > GROUPED else None
        q = Quantizer(centers_KD, books_MVD, metric_DD=metric, groups=groups)
        x_HD = self._rows.x_ND[coarse.held_N]
        codes_HL = q.encode(x_HD)
        return replace(q, error=q.relative_error(x_HD, codes_HL)), unique_ratio(codes_HL)

    def _grown(self, k: int, v: int, m: int) -> list[FloatArray]:
        """M code books by residual k-means; the books of an earlier call with fewer levels are kept
        and extended."""
        if self._books is None or self._books[0] != (k, v) or len(self._books[1]) > m:
            self._books = (k, v), [], self._coarse[k].rest_SD.copy()
        _, books, rest_SD = self._books
        while len(books) < m:
            book = balanced_kmeans(rest_SD, v, self._seed + 1 + len(books))
            rest_SD -= book[nearest(rest_SD, book)]
            books.append(book)
        return books

    def _fit_coarse(self, k: int) -> _Coarse:
        """Fit K coarse clusters, and choose the samples for the code books and the measurement."""
        rng = np.random.default_rng(self._seed)
        rows, limit = self._rows, max(self._limit, PER_CLUSTER * k)
        some = rows if len(rows) <= limit else rows.sample(limit, rng)
        centers_KD, first_G = self._grouped(some, k, rng)
        for _ in range(REFINED):
            groups, norm_K = Groups.of(centers_KD, first_G), square_norms(centers_KD)
            means = ClusterMeans(*centers_KD.shape)
            for block in some.blocks():
                means.add(block, groups.nearest(block, centers_KD, norm_K))
            means.update(centers_KD)
        groups, norm_K = Groups.of(centers_KD, first_G), square_norms(centers_KD)
        find = groups.nearest if k > GROUPED else nearest
        of_N = np.concatenate([find(block, centers_KD, norm_K) for block in rows.blocks()])
        positions = rng.choice(len(rows), min(SAMPLE, len(rows)), replace=False)
        rest_SD = rows.take(positions) - centers_KD[of_N[positions]]
        held_N = rows.rows_N[_whole_clusters(of_N, len(centers_KD), rng)]
        return _Coarse(centers_KD, first_G, rest_SD, held_N)

    def _grouped(
        self, rows: _Rows, k: int, rng: np.random.Generator
    ) -> tuple[FloatArray, IntArray]:
        """Centres (K, D) sorted by group, and the position of the first centre of each group.

        A first k-means makes the groups; each group gets a share of the K centres by its size, and
        a second k-means within the group fits them.
        """
        count = 1 << (k.bit_length() // 2)  # about the root of k
        sample = rows.sample(SAMPLE, rng) if len(rows) > SAMPLE else rows
        means_GD = balanced_kmeans(sample.take(slice(None)), count, self._seed)
        norm_G = square_norms(means_GD)
        of_N = np.concatenate([nearest(block, means_GD, norm_G) for block in rows.blocks()])
        ends_G = np.cumsum(np.bincount(of_N, minlength=count))
        shares_G = np.diff(np.rint(k * ends_G / len(rows)), prepend=0).astype(int)  # sum up to K
        members = np.split(np.argsort(of_N, kind="stable"), ends_G[:-1])
        centers: list[FloatArray] = []
        for g, (mine, share) in enumerate(zip(members, shares_G.tolist(), strict=True)):
            if share == 0:  # its few vectors are assigned to the clusters of other groups
                continue
            if len(mine) > PER_CENTRE * share:
                mine = np.sort(rng.choice(mine, PER_CENTRE * share, replace=False))
            centers.append(balanced_kmeans(rows.take(mine), share, self._seed + 1 + g))
        first = np.cumsum([0, *(len(part) for part in centers)])
        return np.concatenate(centers), first.astype(np.int32)


def _whole_clusters(of_N: IndexArray, k: int, rng: np.random.Generator) -> IndexArray:
    """Positions of all vectors of a random subset of the clusters, in ascending order."""
    counts_K = np.bincount(of_N, minlength=k)
    order = rng.permutation(k)
    enough = int(np.searchsorted(np.cumsum(counts_K[order]), HELD)) + 1
    chosen_K = np.zeros(k, dtype=bool)
    chosen_K[order[:enough]] = True
    positions = np.flatnonzero(chosen_K[of_N])
    if len(positions) > 4 * HELD:  # for clusters so large, only the error is of use
        positions = np.sort(rng.choice(positions, HELD, replace=False))
    return positions
