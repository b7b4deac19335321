"""Identifiers `(k, v1 .. vM, u)`: K-Means cluster, residual codes, counter.

A vector is approximated by its centre plus one code vector a level,
`x ~ c_k + sum_m e_{m, v_m}` (CART, arXiv 2406.17507, section 3.1). That approximation is what the
decoder scores, so it serves items that no caption ever described.
Shape legend: N items, D vector width, K coarse clusters, M residual levels, V codes per level,
L = 1 + M semantic levels.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cart_qdrant import metrics
from cart_qdrant.errors import ConfigError, MismatchError

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]
Method = Literal["rkmeans", "rvq"]

CELLS = 50
"""Possible identifiers for each item under which a size is not tried."""

CLUSTER = 24
"""Items of a coarse cluster, about: few beams then lead to most of what is near
(docs/experiments.md)."""
MAX_COARSE = 65_536
"""Coarse clusters at most."""
GROUPED = 4_096
"""More coarse clusters than this are fitted and searched by groups: a query or an item is compared
with the groups, then with the clusters of the nearest ones."""
PROBED_BY_QUERY, PROBED_BY_ITEM = 48, 12
"""Groups whose clusters are compared (docs/experiments.md)."""
LEARNED = 20_000
"""Vectors up to which `auto` also tries a learned quantiser (docs/experiments.md)."""
PER_CLUSTER = 12
"""Vectors used for fitting, for each coarse cluster, at least."""

_BLOCK = 16_384
"""Vectors coded together."""

# V and M, tried in order until U is reached. M grows last: a level more costs a decoder step more.
_LADDER = (
    (1, 3), (4, 3), (8, 3), (16, 3), (32, 3), (64, 3), (128, 3), (256, 3), (256, 4), (256, 5)
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentifierConfig:
    """How identifiers are fitted."""

    target_u: float = 0.95
    """Share of items whose semantic part is theirs alone, at least."""
    method: Literal["auto", "rkmeans", "rvq"] = "auto"
    """Residual k-means, a learned residual quantiser, or of few vectors the better by U."""
    fit_limit: int = 100_000
    """Vectors used for fitting; a larger corpus is sampled."""
    coarse: int | None = None
    """K; chosen by U when not given."""
    codes: int | None = None
    """V; chosen by U when not given."""
    levels: int | None = None
    """M; chosen by U when not given."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.target_u <= 1:
            raise ConfigError(f"target_u is {self.target_u!r}, but must be in (0, 1].")
        given = (self.coarse, self.codes, self.levels)
        if any(g is not None for g in given) and not all(g is not None and g > 0 for g in given):
            raise ConfigError(f"coarse, codes, levels are {given!r}, but all three must be given.")


@dataclass(frozen=True, slots=True)
class Groups:
    """Coarse clusters that lie together, so that not all need to be looked at.

    Attributes:
        first_G: Where each group's clusters begin; the last entry is K.
        means_GD: Mean centre of each group.
    """

    first_G: IntArray
    means_GD: FloatArray

    @classmethod
    def of(cls, centers_KD: FloatArray, first_G: IntArray) -> Groups:
        """Groups of centres that stand in their order."""
        counts = np.diff(first_G)[:, None]
        sums = np.add.reduceat(centers_KD, first_G[:-1], axis=0)
        return cls(first_G, (sums / counts).astype(np.float32))

    def scores(self, q_BD: FloatArray, centers_KD: FloatArray) -> FloatArray:
        """`q . c_k` (B, K) where the group is among the nearest to the query; else -inf."""
        probed = min(PROBED_BY_QUERY, len(self.means_GD))
        top_BP = np.argpartition(-(q_BD @ self.means_GD.T), probed - 1, axis=1)[:, :probed]
        first = self.first_G
        out = np.full((len(q_BD), len(centers_KD)), -np.inf, dtype=np.float32)
        if len(q_BD) < PROBED_BY_QUERY // 4:
            for q_D, row, groups in zip(q_BD, out, top_BP, strict=True):
                for g in groups:
                    part = slice(first[g], first[g + 1])
                    row[part] = centers_KD[part] @ q_D
            return out
        near_BG = np.zeros((len(q_BD), len(self.means_GD)), dtype=bool)
        np.put_along_axis(near_BG, top_BP, True, axis=1)
        for g in range(len(self.means_GD)):
            rows = np.flatnonzero(near_BG[:, g])
            part = slice(first[g], first[g + 1])
            out[rows, part] = q_BD[rows] @ centers_KD[part].T
        return out

    def nearest(self, x_ND: FloatArray, centers_KD: FloatArray) -> npt.NDArray[np.intp]:
        """The nearest centre (N,) among those of the nearest groups."""
        probed = min(PROBED_BY_ITEM, len(self.means_GD))
        far_NG = (self.means_GD**2).sum(axis=1) - 2 * (x_ND @ self.means_GD.T)
        top_NP = np.argpartition(far_NG, probed - 1, axis=1)[:, :probed]
        near_NG = np.zeros(far_NG.shape, dtype=bool)
        np.put_along_axis(near_NG, top_NP, True, axis=1)
        best = np.full(len(x_ND), np.inf, dtype=np.float32)
        out = np.zeros(len(x_ND), dtype=np.intp)
        norm_K = (centers_KD**2).sum(axis=1)
        for g, (begin, end) in enumerate(pairwise(self.first_G.tolist())):
            rows = np.flatnonzero(near_NG[:, g])
            far = norm_K[begin:end] - 2 * (x_ND[rows] @ centers_KD[begin:end].T)
            at = far.argmin(axis=1)
            distance = far[np.arange(len(rows)), at]
            better = distance < best[rows]
            best[rows[better]], out[rows[better]] = distance[better], begin + at[better]
        return out


@dataclass(frozen=True, slots=True)
class Quantizer:
    """Frozen centres and code books of one vector space.

    Attributes:
        centers_KD: K-Means centres.
        books_MVD: Residual code books.
        offset: Added to the coarse code, so that spaces share no cluster.
        metric_DD: Codes are chosen by distance after this map; None for plain distance. Set to
            the square root of the queries' covariance, it spends codes where queries look.
        error: Mean squared distance to the approximation at fitting (relative to mean |x|^2).
        fitted_on: Items seen at fitting.
        method: How the residual books were made.
        groups: Of the centres, where they are many.
    """

    centers_KD: FloatArray
    books_MVD: FloatArray
    offset: int = 0
    metric_DD: FloatArray | None = None
    error: float = 0.0
    fitted_on: int = 0
    method: str = "rkmeans"
    groups: Groups | None = None

    @property
    def levels(self) -> int:
        """Semantic levels L."""
        return 1 + len(self.books_MVD)

    @property
    def dim(self) -> int:
        """Vector width D."""
        return int(self.centers_KD.shape[1])

    def encode(self, x_ND: FloatArray) -> IntArray:
        """Codes (N, L) of vectors, greedy level by level, in blocks of bounded memory.

        Raises:
            MismatchError: Another vector width than at fitting.
        """
        if x_ND.shape[1] != self.dim:
            raise MismatchError(
                f"Vectors are {x_ND.shape[1]} wide, but the identifiers were fitted on {self.dim}.",
                "Rebuild them with `cartq doctor --fix`.",
            )
        books, groups = [self.centers_KD, *self.books_MVD], self.groups
        if self.metric_DD is not None:
            books = [b @ self.metric_DD for b in books]
            groups = groups and Groups.of(books[0], groups.first_G)
        out_NL = np.empty((len(x_ND), self.levels), dtype=np.int32)
        for begin in range(0, len(x_ND), _BLOCK):
            rest = x_ND[begin : begin + _BLOCK]
            if self.metric_DD is not None:
                rest = rest @ self.metric_DD
            for level, book in enumerate(books):
                codes = _nearest(rest, book, None if level else groups)
                out_NL[begin : begin + len(rest), level] = codes
                rest = rest - book[codes]
        out_NL[:, 0] += self.offset
        return out_NL

    def decode(self, codes_NL: IntArray) -> FloatArray:
        """Approximated vectors (N, D) of codes."""
        x_ND = self.centers_KD[codes_NL[:, 0] - self.offset].copy()
        for level, book in enumerate(self.books_MVD, start=1):
            x_ND += book[codes_NL[:, level]]
        return x_ND

    def relative_error(self, x_ND: FloatArray, codes_NL: IntArray | None = None) -> float:
        """Mean squared reconstruction error over mean squared length; 0 is exact."""
        codes = self.encode(x_ND) if codes_NL is None else codes_NL
        rest = x_ND - self.decode(codes)
        return float((rest**2).sum() / max(float((x_ND**2).sum()), 1e-12))

    def level_scores(self, q_BD: FloatArray) -> list[FloatArray]:
        """`q . c_k` and `q . e_{m,v}` per level, (B, K) then (B, V): the prior of the decoder.

        Of many centres, those of far groups are -inf.
        """
        if self.groups is None:
            coarse = q_BD @ self.centers_KD.T
        else:
            coarse = self.groups.scores(q_BD, self.centers_KD)
        return [coarse, *(q_BD @ book.T for book in self.books_MVD)]


@dataclass(frozen=True, slots=True)
class Codec:
    """The quantisers of all spaces of an index; levels are equal, coarse codes disjoint."""

    quantizers: Mapping[str, Quantizer]

    @property
    def levels(self) -> int:
        """Semantic levels L."""
        return next(iter(self.quantizers.values())).levels

    @property
    def coarse(self) -> int:
        """Coarse clusters of all spaces together."""
        return sum(len(q.centers_KD) for q in self.quantizers.values())

    @property
    def codes(self) -> int:
        """V: codes of the largest residual book."""
        return max((q.books_MVD.shape[1] for q in self.quantizers.values()), default=0)

    def to_arrays(self) -> dict[str, FloatArray | IntArray]:
        """Arrays for a safetensors file; `to_meta` holds the rest."""
        out: dict[str, FloatArray | IntArray] = {}
        for space, q in self.quantizers.items():
            out[f"{space}.centers"], out[f"{space}.books"] = q.centers_KD, q.books_MVD
            if q.metric_DD is not None:
                out[f"{space}.metric"] = q.metric_DD
            if q.groups is not None:
                out[f"{space}.groups"] = q.groups.first_G
        return out

    def to_meta(self) -> dict[str, Any]:
        """JSON beside `to_arrays`."""
        return {
            space: {
                "offset": q.offset,
                "error": q.error,
                "fitted_on": q.fitted_on,
                "method": q.method,
            }
            for space, q in self.quantizers.items()
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any], meta: Mapping[str, Any]) -> Codec:
        """Inverse of `to_arrays` and `to_meta`."""
        out: dict[str, Quantizer] = {}
        for space, info in meta.items():
            centers, first = arrays[f"{space}.centers"], arrays.get(f"{space}.groups")
            out[space] = Quantizer(
                centers, arrays[f"{space}.books"], metric_DD=arrays.get(f"{space}.metric"),
                groups=None if first is None else Groups.of(centers, first), **info,
            )  # fmt: skip
        return cls(out)


@dataclass(slots=True)
class Counters:
    """Hands out the counter `u` of each semantic part."""

    taken: dict[tuple[int, ...], int] = field(default_factory=dict)

    def assign(self, codes_NL: IntArray) -> IntArray:
        """Next free counters (N,), and marks them as taken."""
        out = np.empty(len(codes_NL), dtype=np.int32)
        for n, key in enumerate(map(tuple, codes_NL.tolist())):
            out[n] = self.taken.get(key, 0)
            self.taken[key] = int(out[n]) + 1
        return out

    def complete(self, codes_NL: IntArray) -> IntArray:
        """Codes with their next free counters: whole identifiers (N, L + 1)."""
        return np.concatenate([codes_NL, self.assign(codes_NL)[:, None]], axis=1)


def _kmeans(x_ND: FloatArray, k: int, seed: int) -> FloatArray:
    from sklearn.cluster import KMeans, MiniBatchKMeans  # a second; searches do without
    from sklearn.exceptions import ConvergenceWarning

    # Copies share a cluster: no more clusters than distinct vectors.
    k = min(k, len(x_ND), len(np.unique(x_ND, axis=0)) if len(x_ND) <= 20_000 else k)
    if len(x_ND) > 20_000:
        model = MiniBatchKMeans(k, batch_size=8192, n_init=1, random_state=seed, max_iter=50)
    else:
        model = KMeans(k, n_init=1, max_iter=50, random_state=seed)
    with warnings.catch_warnings():
        # Near copies that are one to it: spare centres are never chosen.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return np.asarray(model.fit(x_ND).cluster_centers_, dtype=np.float32)


def _grouped_kmeans(x_ND: FloatArray, k: int, seed: int) -> tuple[FloatArray, IntArray]:
    """Many centres (K, D) in groups, and where each group begins: k-means within the clusters of a
    k-means, each with its share of the centres."""
    groups = 1 << (k.bit_length() // 2)  # about the root of k
    means = _kmeans(x_ND, groups, seed)
    owner = _nearest(x_ND, means)
    sizes = np.bincount(owner, minlength=len(means))
    share = np.maximum(1, np.floor(k * sizes / sizes.sum())).astype(int)
    centers: list[FloatArray] = []
    for g in np.flatnonzero(sizes):
        mine = x_ND[owner == g]
        centers.append(_kmeans(mine, int(min(share[g], len(mine))), seed + 1 + int(g)))
    first = np.cumsum([0, *(len(part) for part in centers)])
    return np.concatenate(centers), first.astype(np.int32)


def _nearest(
    x_ND: FloatArray, book_VD: FloatArray, groups: Groups | None = None
) -> npt.NDArray[np.intp]:
    """The nearest entry of a book (N,), in blocks; of groups' centres, see `Groups.nearest`."""
    out = np.empty(len(x_ND), dtype=np.intp)
    norm = (book_VD**2).sum(axis=1)
    for begin in range(0, len(x_ND), _BLOCK):
        block = x_ND[begin : begin + _BLOCK]
        out[begin : begin + len(block)] = (
            np.argmin(norm - 2 * (block @ book_VD.T), axis=1)
            if groups is None
            else groups.nearest(block, book_VD)
        )
    return out


def _residual_kmeans(rest_ND: FloatArray, v: int, m: int, seed: int) -> FloatArray:
    """Code books (M, V, D) by k-means on what the levels before leave over."""
    books = np.zeros((m, v, rest_ND.shape[1]), dtype=np.float32)
    for level in range(m):
        book = _kmeans(rest_ND, v, seed + 1 + level)
        # Fewer points than codes: the spare codes repeat the first and are never chosen.
        books[level] = book[np.arange(v) % len(book)] if len(book) < v else book
        rest_ND = rest_ND - book[_nearest(rest_ND, book)]
    return books


def _residual_vq(rest_ND: FloatArray, v: int, m: int, seed: int) -> FloatArray:
    """Code books (M, V, D) by a residual VQ trained on whole-corpus batches, then frozen.

    Small batches ruin it and dead codes cost a third of U, hence `kmeans_init` and
    `threshold_ema_dead_code` (measured: docs/experiments.md).
    """
    import torch
    from vector_quantize_pytorch import ResidualVQ

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Unit scale: the library's k-means starts from random rows and its EMA has an epsilon.
        scale = float(np.sqrt((rest_ND**2).mean())) or 1.0
        x = torch.from_numpy(np.ascontiguousarray(rest_ND / scale))[None]
        vq = ResidualVQ(
            dim=rest_ND.shape[1], num_quantizers=m, codebook_size=v, decay=0.8,
            kmeans_init=True, kmeans_iters=20, threshold_ema_dead_code=2,
        )  # fmt: skip
        vq.train()
        with torch.no_grad():
            for _ in range(20):
                vq(x)
        books = torch.stack([layer.codebook for layer in vq.layers]).reshape(m, v, -1)
    return np.asarray(books.numpy() * scale, dtype=np.float32)


def unique_ratio(codes_NL: IntArray) -> float:
    """U: distinct semantic parts over items; 1 means that no counter is needed."""
    return metrics.unique_ratio(codes_NL)


def fit_quantizer(
    x_ND: FloatArray,
    *,
    k: int,
    v: int,
    m: int,
    method: Method = "rkmeans",
    metric_DD: FloatArray | None = None,
    seed: int = 0,
    offset: int = 0,
    coarse: dict[int, tuple[FloatArray, IntArray | None]] | None = None,
) -> Quantizer:
    """Fit one quantiser of a given size.

    Args:
        x_ND: Unit vectors, at least one.
        metric_DD: Invertible map in which distances are taken.
        coarse: Centres of each K, and their groups, that were found before for the same vectors,
            metric and seed; added to.
    """
    y_ND = x_ND @ metric_DD if metric_DD is not None else x_ND
    coarse = {} if coarse is None else coarse
    if k not in coarse:
        many = k > GROUPED
        coarse[k] = _grouped_kmeans(y_ND, k, seed) if many else (_kmeans(y_ND, k, seed), None)
    centers, first = coarse[k]
    groups = None if first is None else Groups.of(centers, first)
    rest = y_ND - centers[_nearest(y_ND, centers, groups)]
    v = max(1, min(v, len(x_ND)))
    fit = _residual_kmeans if method == "rkmeans" or len(x_ND) < 2 * v else _residual_vq
    books = fit(rest, v, m, seed)
    if metric_DD is not None:
        inverse = np.linalg.inv(metric_DD.astype(np.float64))
        centers = (centers @ inverse).astype(np.float32)
        books = (books @ inverse).astype(np.float32)
    groups = None if first is None else Groups.of(centers, first)
    q = Quantizer(centers, books, offset, metric_DD, 0.0, len(x_ND), method, groups)
    return replace(q, error=q.relative_error(x_ND))


def _clusters(n: int, config: IdentifierConfig) -> int:
    """K for that many items: as it is given, or a power of two."""
    return config.coarse or min(1 << max(n // CLUSTER, 1).bit_length() - 1, MAX_COARSE)


def _sizes(n: int, config: IdentifierConfig) -> Iterator[tuple[int, int, int]]:
    if config.coarse and config.codes and config.levels:
        yield config.coarse, config.codes, config.levels
        return
    clusters = _clusters(n, config)
    for wanted, m in _LADDER:
        v = min(wanted, max(n, 1))
        k = max(v, clusters)
        # Items crowd: with few cells for each, U was never reached (docs/experiments.md).
        if v < n and k * v**m < CELLS * n:
            continue
        yield k, v, m
        if wanted >= n:
            return


def fit_codec(
    vectors: Mapping[str, FloatArray],
    config: IdentifierConfig | None = None,
    metrics_DD: Mapping[str, FloatArray] | None = None,
) -> Codec:
    """Fit the identifiers of an index: per space the smallest size that reaches the target U.

    Args:
        vectors: Unit vectors (N, D) of each space that has items.
        metrics_DD: Query metric per space, see `Quantizer.metric_DD`.

    Returns:
        Quantisers with equal M, the largest that any space asked for.
    """
    config = config or IdentifierConfig()
    rng = np.random.default_rng(config.seed)
    samples: dict[str, FloatArray] = {}
    for space, x_ND in vectors.items():
        limit = max(config.fit_limit, PER_CLUSTER * _clusters(len(x_ND), config))
        if len(x_ND) > limit:
            x_ND = x_ND[np.sort(rng.choice(len(x_ND), limit, replace=False))]
        samples[space] = x_ND
    metric = metrics_DD or {}
    chosen: dict[str, Quantizer] = {}
    for space, x_ND in samples.items():
        # Copies of one vector clash whatever the size, so they do not count against it.
        distinct = np.unique(x_ND, axis=0)
        reachable = len(distinct) / len(x_ND)
        chosen[space] = _choose(distinct, vectors[space], reachable, config, metric.get(space))
    m = max(len(q.books_MVD) for q in chosen.values())
    out: dict[str, Quantizer] = {}
    offset = 0
    for space, q in chosen.items():
        k, v = len(q.centers_KD), q.books_MVD.shape[1]
        if len(q.books_MVD) != m:
            q = fit_quantizer(
                samples[space], k=k, v=v, m=m, metric_DD=metric.get(space), seed=config.seed
            )
        out[space] = replace(q, offset=offset, fitted_on=len(vectors[space]))
        offset += k
    return Codec(out)


def _choose(
    x_ND: FloatArray,
    all_ND: FloatArray,
    reachable: float,
    config: IdentifierConfig,
    metric: FloatArray | None,
) -> Quantizer:
    """The smallest size whose U on all vectors reaches the target.

    Args:
        x_ND: Distinct vectors to fit on; a sample of a large corpus.
        all_ND: All vectors: of a sample, U would be too high.
        reachable: Share of distinct vectors among all.
    """
    methods: tuple[Method, ...] = ("rkmeans", "rvq")
    if config.method != "auto":
        methods = (config.method,)
    elif len(x_ND) > LEARNED:
        methods = ("rkmeans",)
    best: tuple[float, float, Quantizer] | None = None
    coarse: dict[int, tuple[FloatArray, IntArray | None]] = {}
    for k, v, m in _sizes(max(1, round(len(all_ND) * reachable)), config):
        for method in methods:
            q = fit_quantizer(
                x_ND, k=k, v=v, m=m, method=method, metric_DD=metric, seed=config.seed,
                coarse=coarse,
            )  # fmt: skip
            u = unique_ratio(q.encode(all_ND)) / reachable
            if best is None or (round(u, 3), -q.error) > best[:2]:
                best = (round(u, 3), -q.error, q)
            if u >= config.target_u:
                return q
    assert best is not None
    return best[2]


@dataclass(frozen=True, slots=True)
class LevelReport:
    """Use of the codes of one level."""

    level: int
    codes: int
    used: int
    entropy: float
    """Entropy over the maximum for the codes that could be used; 1 is even use."""

    @property
    def dead(self) -> int:
        """Codes that no item has."""
        return self.codes - self.used


def level_reports(codes_NL: IntArray, sizes: list[int]) -> list[LevelReport]:
    """Use of each level's codes over all items."""
    out = []
    for level, size in enumerate(sizes):
        counts = np.array(list(Counter(codes_NL[:, level].tolist()).values()), dtype=np.float64)
        total = counts.sum()
        p = counts / total if total else counts
        top = np.log(max(min(size, total), 1.0))
        entropy = float(-(p * np.log(p)).sum() / top) if top > 0 else 1.0
        out.append(LevelReport(level, size, len(counts), entropy))
    return out
