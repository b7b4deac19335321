"""Fits the identifiers of an index: chooses a size for each space and fits a residual quantiser.

An identifier is `(k, v1 .. vM, u)`: a coarse k-means cluster, residual codes and a disambiguation
token. A vector is approximated by its cluster's centre plus one code vector per residual level,
`x ~ c_k + sum_m e_{m, v_m}` (CART, arXiv 2406.17507, section 3.1). The decoder scores that
approximation, so items without a caption can be found too.
Shape legend: N items, D vector width, K coarse clusters, M residual levels, V codes per level,
L = 1 + M semantic levels.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, Protocol

import numpy as np

from cart_qdrant.arrays.types import FloatArray, IntArray
from cart_qdrant.arrays.vectors import unique_ratio
from cart_qdrant.errors import ConfigError
from cart_qdrant.extras import require
from cart_qdrant.identifiers.fit import ManyFit
from cart_qdrant.identifiers.quantizer import GROUPED, Codec, Quantizer, nearest

Method = Literal["rkmeans", "rvq"]

CELLS = 50
"""A size with fewer possible identifiers per item than this is not tried."""

PER_CODE = 4
"""Vectors for each of the least codes of `IdentifierConfig.least_codes`, at least."""

CLUSTER = 24
"""Approximate number of items in a coarse cluster: with so many, a few beams reach most of the
nearest items (docs/experiments.md)."""
MAX_COARSE = 65_536
"""Maximum number of coarse clusters."""
LEARNED = 20_000
"""Up to this many vectors, every step of the fit reads all of them, and `auto` also tries a learned
quantiser; more vectors are fitted by `ManyFit` (docs/experiments.md)."""

_ITERATIONS = 20
"""Steps of a k-means at most; more of them find no better identifiers (docs/experiments.md)."""

# V and M, tried in order until the target ratio is reached. M grows last, since each level costs a
# step of the decoder.
_LADDER = (
    (1, 3), (4, 3), (8, 3), (16, 3), (32, 3), (64, 3), (128, 3), (256, 3), (256, 4), (256, 5)
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentifierConfig:
    """Options of a fit of identifiers."""

    target_unique_ratio: float = 0.95
    """Unique-identifier ratio that the fit must reach: semantic parts over distinct vectors."""
    method: Literal["auto", "rkmeans", "rvq"] = "auto"
    """Residual k-means (`rkmeans`), a learned residual quantiser (`rvq`), or `auto`: `rkmeans`,
    or for at most `LEARNED` vectors the one with the higher unique-identifier ratio."""
    fit_limit: int = 100_000
    """Vectors that fit the coarse clusters; `ManyFit` uses more where there are many clusters."""
    coarse: int | None = None
    """K; None chooses it by the unique-identifier ratio."""
    codes: int | None = None
    """V; None chooses it by the unique-identifier ratio."""
    levels: int | None = None
    """M; None chooses it by the unique-identifier ratio."""
    least_codes: int = 1
    """V of the smallest size that is tried, where there are `PER_CODE` times as many vectors."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.target_unique_ratio <= 1:
            raise ConfigError(
                f"target_unique_ratio is {self.target_unique_ratio!r}, but must be in (0, 1]."
            )
        given = (self.coarse, self.codes, self.levels)
        if any(g is not None for g in given) and not all(g is not None and g > 0 for g in given):
            raise ConfigError(f"coarse, codes, levels are {given!r}, but all three must be given.")


@dataclass(slots=True)
class DisambiguationTokens:
    """Assigns the disambiguation token `u` to identifiers that share a semantic part.

    Attributes:
        taken: The next free token of each semantic part; 0 where the part is missing.
    """

    taken: MutableMapping[tuple[int, ...], int] = field(default_factory=dict)

    def assign(self, codes_NL: IntArray) -> IntArray:
        """The next free token (N,) of each row of codes, which is then taken."""
        out = np.empty(len(codes_NL), dtype=np.int32)
        for n, key in enumerate(map(tuple, codes_NL.tolist())):
            out[n] = self.taken.get(key, 0)
            self.taken[key] = int(out[n]) + 1
        return out

    def complete(self, codes_NL: IntArray) -> IntArray:
        """Whole identifiers (N, L + 1): the codes, each with its next free token."""
        return np.concatenate([codes_NL, self.assign(codes_NL)[:, None]], axis=1)


def _kmeans(x_ND: FloatArray, k: int, seed: int) -> FloatArray:
    """Centres (K, D) by scikit-learn's k-means; at most as many as there are distinct vectors."""
    require("train", "sklearn")
    from sklearn.cluster import KMeans  # takes a second to import, and searches do not need it
    from sklearn.exceptions import ConvergenceWarning

    # Equal vectors share a cluster, so there are no more clusters than distinct vectors.
    k = min(k, len(x_ND), len(np.unique(x_ND, axis=0)))
    model = KMeans(k, n_init=1, max_iter=_ITERATIONS, random_state=seed)
    with warnings.catch_warnings():
        # It warns where vectors are almost equal; the superfluous centres are never chosen.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return np.asarray(model.fit(x_ND).cluster_centers_, dtype=np.float32)


def _residual_kmeans(rest_ND: FloatArray, v: int, m: int, seed: int) -> FloatArray:
    """Code books (M, V, D) by k-means on the residuals of the levels above."""
    books = np.zeros((m, v, rest_ND.shape[1]), dtype=np.float32)
    for level in range(m):
        book = _kmeans(rest_ND, v, seed + 1 + level)
        # With fewer points than codes, the codes left over repeat the first ones: never chosen.
        books[level] = book[np.arange(v) % len(book)] if len(book) < v else book
        rest_ND = rest_ND - book[nearest(rest_ND, book)]
    return books


def _residual_vq(rest_ND: FloatArray, v: int, m: int, seed: int) -> FloatArray:
    """Code books (M, V, D) by a residual VQ, trained on batches of the whole corpus, then frozen.

    Small batches ruin it and dead codes cost a third of the unique-identifier ratio, hence
    `kmeans_init` and `threshold_ema_dead_code` (measured: docs/experiments.md).
    """
    require("train", "torch", "vector_quantize_pytorch")
    import torch
    from vector_quantize_pytorch import ResidualVQ

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not that of a GPU, which is not put back
        # The library's moving average adds an epsilon that is meant for vectors of unit scale.
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


class QuantizerSize(NamedTuple):
    """K coarse clusters, and M residual levels of V codes each."""

    k: int
    v: int
    m: int


def fit_quantizer(
    x_ND: FloatArray,
    size: QuantizerSize,
    *,
    method: Method = "rkmeans",
    metric_DD: FloatArray | None = None,
    seed: int = 0,
    offset: int = 0,
    coarse: dict[int, FloatArray] | None = None,
) -> Quantizer:
    """Fit one quantiser of a given size.

    Args:
        x_ND: Unit vectors, at least one.
        size: K, V and M.
        method: How the residual code books are fitted.
        metric_DD: Invertible map (D, D) after which distances are taken.
        seed: Seed of the random numbers.
        offset: Added to the coarse codes, see `Quantizer.offset`.
        coarse: Centres (K, D) by K that earlier calls found for the same vectors, metric and seed;
            this call adds its own. Ignored with more than `LEARNED` vectors.
    """
    k, v, m = size
    if len(x_ND) > LEARNED or k > GROUPED:
        fit = _Many(x_ND, metric_DD, IdentifierConfig(seed=seed))
        return replace(fit(size, method)[0], offset=offset)
    y_ND = x_ND @ metric_DD if metric_DD is not None else x_ND
    coarse = {} if coarse is None else coarse
    if k not in coarse:
        coarse[k] = _kmeans(y_ND, k, seed)
    centers = coarse[k]
    rest = y_ND - centers[nearest(y_ND, centers)]
    v = max(1, min(v, len(x_ND)))
    fit_books = _residual_kmeans if method == "rkmeans" or len(x_ND) < 2 * v else _residual_vq
    books = fit_books(rest, v, m, seed)
    if metric_DD is not None:
        inverse = np.linalg.inv(metric_DD.astype(np.float64))
        centers = (centers @ inverse).astype(np.float32)
        books = (books @ inverse).astype(np.float32)
    q = Quantizer(centers, books, offset, metric_DD, 0.0, len(x_ND), method)
    return replace(q, error=q.relative_error(x_ND))


def _sizes(n: int, config: IdentifierConfig) -> Iterator[QuantizerSize]:
    """The sizes to try for N distinct vectors, from the smallest."""
    if config.coarse and config.codes and config.levels:
        yield QuantizerSize(config.coarse, config.codes, config.levels)
        return
    # A power of two, so that a collection that grows often keeps its size.
    clusters = min(1 << max(n // CLUSTER, 1).bit_length() - 1, MAX_COARSE)
    least = min(config.least_codes, max(n // PER_CODE, 1))
    finer = [size for size in _LADDER if size > (least, _LADDER[0][1])]
    for wanted, m in [(least, _LADDER[0][1]), *finer]:
        v = min(wanted, max(n, 1))
        k = max(v, clusters)
        # Vectors are unevenly spread: with few possible identifiers per item, the ratio was never
        # reached (docs/experiments.md).
        if v < n and k * v**m < CELLS * n:
            continue
        yield QuantizerSize(k, v, m)
        if wanted >= n:
            return


class _Fit(Protocol):
    """Fits quantisers of several sizes to the vectors of one space."""

    distinct: int
    """Number of distinct vectors; equal vectors share an identifier at every size."""
    methods: tuple[Method, ...]
    """Methods that `auto` tries."""

    def __call__(self, size: QuantizerSize, method: Method) -> tuple[Quantizer, float]:
        """A quantiser with its error, and its unique-identifier ratio among distinct vectors."""
        ...

    def refit(self, size: QuantizerSize) -> Quantizer:
        """A quantiser of another size, fitted by residual k-means after the choice of sizes."""
        ...


class _Few:
    """Fits each size and method to all vectors, for collections of at most `LEARNED` vectors."""

    methods: tuple[Method, ...] = ("rkmeans", "rvq")

    def __init__(self, x_ND: FloatArray, metric: FloatArray | None, config: IdentifierConfig):
        self._x_ND, self._metric, self._seed = x_ND, metric, config.seed
        self._distinct_ND = np.unique(x_ND, axis=0)
        self.distinct = len(self._distinct_ND)
        self._coarse: dict[int, FloatArray] = {}

    def __call__(self, size: QuantizerSize, method: Method) -> tuple[Quantizer, float]:
        q = fit_quantizer(
            self._distinct_ND, size, method=method, metric_DD=self._metric,
            seed=self._seed, coarse=self._coarse,
        )  # fmt: skip
        return q, unique_ratio(q.encode(self._x_ND)) / (self.distinct / len(self._x_ND))

    def refit(self, size: QuantizerSize) -> Quantizer:
        return fit_quantizer(self._x_ND, size, metric_DD=self._metric, seed=self._seed)


class _Many:
    """Fits by `ManyFit`, for larger collections and for many coarse clusters."""

    methods: tuple[Method, ...] = ("rkmeans",)

    def __init__(self, x_ND: FloatArray, metric: FloatArray | None, config: IdentifierConfig):
        self._fit = ManyFit(x_ND, metric, limit=config.fit_limit, seed=config.seed)
        self.distinct = self._fit.distinct
        self._count = len(x_ND)

    def __call__(self, size: QuantizerSize, method: Method) -> tuple[Quantizer, float]:
        q, u = self._fit.fit(*size, _residual_vq if method == "rvq" else None)
        return replace(q, fitted_on=self._count, method=method), u

    def refit(self, size: QuantizerSize) -> Quantizer:
        return self(size, "rkmeans")[0]


def fit_codec(
    vectors: Mapping[str, FloatArray],
    config: IdentifierConfig | None = None,
    metrics_DD: Mapping[str, FloatArray] | None = None,
    configs: Mapping[str, IdentifierConfig] | None = None,
) -> Codec:
    """Fit the identifiers of an index: for each space, the smallest size that reaches the target
    unique-identifier ratio.

    Args:
        vectors: Vectors (N, D) of each space that has items; may be mapped from files.
        config: Options; the defaults if not given.
        metrics_DD: Query metric of each space, see `Quantizer.metric_DD`.
        configs: Options of single spaces in place of `config`.

    Returns:
        Quantisers with equal M: the largest M that was chosen for any space.
    """
    metric = metrics_DD or {}
    of_space = dict.fromkeys(vectors, config or IdentifierConfig()) | dict(configs or {})
    fits: dict[str, _Fit] = {}
    for space, x_ND in vectors.items():
        one = of_space[space]
        kind = _Many if len(x_ND) > LEARNED or (one.coarse or 0) > GROUPED else _Few
        fits[space] = kind(x_ND, metric.get(space), one)
    chosen = {space: _choose(fit, of_space[space]) for space, fit in fits.items()}
    most = max(m for _, (_, _, m) in chosen.values())
    out: dict[str, Quantizer] = {}
    offset = 0
    for space, (q, (k, v, m)) in chosen.items():
        if m != most:
            q = fits[space].refit(QuantizerSize(k, v, most))
        out[space] = replace(q, offset=offset, fitted_on=len(vectors[space]))
        offset += len(q.centers_KD)
    return Codec(out)


def _choose(fit: _Fit, config: IdentifierConfig) -> tuple[Quantizer, QuantizerSize]:
    """The quantiser of the smallest size that reaches the target ratio, else the best; its size."""
    methods = fit.methods if config.method == "auto" else (config.method,)
    best: tuple[float, float, Quantizer, QuantizerSize] | None = None
    for size in _sizes(fit.distinct, config):
        for method in methods:
            q, u = fit(size, method)
            if best is None or (round(u, 3), -q.error) > best[:2]:
                best = (round(u, 3), -q.error, q, size)
            if u >= config.target_unique_ratio:
                return q, size
    assert best is not None
    return best[2:]


@dataclass(frozen=True, slots=True)
class LevelReport:
    """How many codes of one level are used, and how evenly.

    Attributes:
        level: Number of the level, from 0.
        codes: Number of codes of the level.
        used: Number of codes that some item has.
    """

    level: int
    codes: int
    used: int
    entropy: float
    """Entropy of the use of the codes, divided by its maximum; 1 if all are used equally."""

    @property
    def dead(self) -> int:
        """Number of codes that no item has."""
        return self.codes - self.used


def level_reports(codes_NL: IntArray, sizes: list[int]) -> list[LevelReport]:
    """Reports on the use of the codes of each level, over all items."""
    out = []
    for level, size in enumerate(sizes):
        counts = np.array(list(Counter(codes_NL[:, level].tolist()).values()), dtype=np.float64)
        total = counts.sum()
        p = counts / total if total else counts
        top = np.log(max(min(size, total), 1.0))
        entropy = abs(float((p * np.log(p)).sum() / top)) if top > 0 else 1.0
        out.append(LevelReport(level, size, len(counts), entropy))
    return out
