"""Residual quantisers: encode vectors as codes, and score codes for query vectors.

Shape legend: N items, B queries, D vector width, K coarse clusters, G groups of them, M residual
levels, V codes per level, L = 1 + M semantic levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from cart_qdrant.arrays.types import FloatArray, IndexArray, IntArray, MaskArray
from cart_qdrant.errors import MismatchError
from cart_qdrant.identifiers.parts import MEDIA_ALONE, Parts, captioned, uncaptioned

GROUPED = 4_096
"""Above this number, coarse clusters are searched by groups: a query or an item is compared with
the means of the groups, then with the clusters of the nearest groups."""
PROBED_BY_QUERY, PROBED_BY_ITEM = 32, 12
"""Number of groups whose clusters are compared (docs/experiments.md)."""

_PART = 128
"""Code vectors that are multiplied with a single query at once."""
BLOCK = 16_384
"""Vectors encoded at once."""
_ERROR_BLOCK = 20_000
"""Vectors whose squared error is summed in float32 before it is added in float64."""


def square_norms(x_ND: FloatArray) -> FloatArray:
    """Squared lengths (N,) of vectors."""
    return np.asarray((x_ND**2).sum(axis=1), dtype=np.float32)


def nearest(x_ND: FloatArray, book_VD: FloatArray, norm_V: FloatArray | None = None) -> IndexArray:
    """Position (N,) of the nearest code vector of a book, computed in blocks.

    Args:
        norm_V: The `square_norms` of the book, if they are known.
    """
    norm_V = square_norms(book_VD) if norm_V is None else norm_V
    out = np.empty(len(x_ND), dtype=np.intp)
    for begin in range(0, len(x_ND), BLOCK):
        far = _distances(x_ND[begin : begin + BLOCK], book_VD, norm_V)
        far.argmin(axis=1, out=out[begin : begin + len(far)])
    return out


def _distances(x_ND: FloatArray, book_VD: FloatArray, norm_V: FloatArray) -> FloatArray:
    """Squared distances (N, V) minus |x|^2, which does not change the order."""
    far_NV = x_ND @ book_VD.T
    far_NV *= -2
    far_NV += norm_V
    return far_NV


def _products(q_BD: FloatArray, book_VD: FloatArray) -> FloatArray:
    """Inner products `q . e_v` (B, V).

    A single query is multiplied part by part, so that BLAS starts no second thread: that thread
    would keep spinning for longer than a search takes, on the core that encodes the next text.
    """
    if len(q_BD) > 1 or len(book_VD) <= _PART:
        return q_BD @ book_VD.T
    parts = range(0, len(book_VD), _PART)
    return np.concatenate([book_VD[v : v + _PART] @ q_BD[0] for v in parts])[None]


@dataclass(frozen=True, slots=True)
class Groups:
    """Groups of nearby coarse clusters, so that not all clusters need to be compared.

    Attributes:
        first_G: Position of the first cluster of each group; the last entry is K.
        means_GD: Mean of the centres of each group.
    """

    first_G: IntArray
    means_GD: FloatArray

    @classmethod
    def of(cls, centers_KD: FloatArray, first_G: IntArray) -> Groups:
        """Groups of centres that are sorted by group."""
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

    def nearest(
        self, x_ND: FloatArray, centers_KD: FloatArray, norm_K: FloatArray | None = None
    ) -> IndexArray:
        """Position (N,) of the nearest centre among those of the nearest groups."""
        norm_K = square_norms(centers_KD) if norm_K is None else norm_K
        parts = [
            self._nearest(x_ND[begin : begin + BLOCK], centers_KD, norm_K)
            for begin in range(0, len(x_ND), BLOCK)
        ]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.intp)

    def _nearest(self, x_ND: FloatArray, centers_KD: FloatArray, norm_K: FloatArray) -> IndexArray:
        probed = min(PROBED_BY_ITEM, len(self.means_GD))
        far_NG = _distances(x_ND, self.means_GD, square_norms(self.means_GD))
        top_NP = np.argpartition(far_NG, probed - 1, axis=1)[:, :probed]
        # The groups that each vector is compared with, in a narrow type: NumPy sorts it by radix.
        wanted = top_NP.astype(np.uint16 if len(self.means_GD) < 65_536 else np.int32).ravel()
        row_NP = np.argsort(wanted, kind="stable") // probed
        ends = np.cumsum(np.bincount(wanted, minlength=len(self.means_GD))).tolist()
        best = np.full(len(x_ND), np.inf, dtype=np.float32)
        out = np.zeros(len(x_ND), dtype=np.intp)
        for (begin, end), (from_, to) in zip(
            pairwise(self.first_G.tolist()), pairwise([0, *ends]), strict=True
        ):
            rows = row_NP[from_:to]
            far = _distances(x_ND[rows], centers_KD[begin:end], norm_K[begin:end])
            at = far.argmin(axis=1)
            distance = far[np.arange(len(rows)), at]
            better = distance < best[rows]
            best[rows[better]], out[rows[better]] = distance[better], begin + at[better]
        return out


@dataclass(frozen=True, slots=True)
class _Books:
    """The code books mapped by the metric, with their squared lengths and groups."""

    books: list[FloatArray]
    norms: list[FloatArray]
    groups: Groups | None

    def codes(self, x_ND: FloatArray) -> IntArray:
        """Codes (N, L) of vectors, chosen greedily level by level."""
        out_NL = np.empty((len(x_ND), len(self.books)), dtype=np.int32)
        rest = x_ND
        for level, (book, norm) in enumerate(zip(self.books, self.norms, strict=True)):
            if level == 0 and self.groups is not None:
                codes = self.groups.nearest(rest, book, norm)
            else:
                codes = nearest(rest, book, norm)
            out_NL[:, level] = codes
            if level + 1 < len(self.books):
                rest = np.subtract(rest, book[codes], out=rest if level else None)
        return out_NL


@dataclass(frozen=True, slots=True)
class Quantizer:
    """Frozen centres and code books of one identifier space.

    Attributes:
        centers_KD: Centres of the coarse k-means clusters.
        books_MVD: Residual code books.
        offset: Added to the coarse code, so that no two spaces share a code.
        metric_DD: Codes are chosen by the distance after this map; None for the plain distance. As
            the square root of the queries' covariance, it makes codes finer in the directions in
            which queries differ.
        error: Mean squared error of the approximation when fitted, divided by the mean |x|^2.
        fitted_on: Number of items that it was fitted on.
        method: How the residual code books were fitted.
        groups: Groups of the centres; None with at most `GROUPED` centres.
        parts: What its vectors are made of.
    """

    centers_KD: FloatArray
    books_MVD: FloatArray
    offset: int = 0
    metric_DD: FloatArray | None = None
    error: float = 0.0
    fitted_on: int = 0
    method: str = "rkmeans"
    groups: Groups | None = None
    parts: Parts = MEDIA_ALONE
    _mapped: _Books | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def levels(self) -> int:
        """Semantic levels L."""
        return 1 + len(self.books_MVD)

    @property
    def dim(self) -> int:
        """Vector width D."""
        return int(self.centers_KD.shape[1])

    @property
    def end(self) -> int:
        """First coarse code after its own."""
        return self.offset + len(self.centers_KD)

    def encode(self, x_ND: FloatArray) -> IntArray:
        """Codes (N, L) of vectors, chosen greedily level by level, in blocks of bounded memory.

        Raises:
            MismatchError: The vectors are not as wide as those it was fitted on.
        """
        if x_ND.shape[1] != self.dim:
            raise MismatchError(
                f"Vectors are {x_ND.shape[1]} wide, but the identifiers were fitted on {self.dim}.",
                "Rebuild them with `cartq doctor --fix`.",
            )
        books = self._books()
        out_NL = np.empty((len(x_ND), self.levels), dtype=np.int32)
        for begin in range(0, len(x_ND), BLOCK):
            block = x_ND[begin : begin + BLOCK]
            if self.metric_DD is not None:
                block = block @ self.metric_DD
            out_NL[begin : begin + len(block)] = books.codes(block)
        out_NL[:, 0] += self.offset
        return out_NL

    def _books(self) -> _Books:
        """The mapped code books, kept after the first use: mapping many centres takes longer than
        encoding a page of vectors."""
        if self._mapped is None:
            books, groups = [self.centers_KD, *self.books_MVD], self.groups
            if self.metric_DD is not None:
                books = [b @ self.metric_DD for b in books]
                groups = groups and Groups.of(books[0], groups.first_G)
            mapped = _Books(books, [square_norms(b) for b in books], groups)
            object.__setattr__(self, "_mapped", mapped)
        assert self._mapped is not None
        return self._mapped

    def decode(self, codes_NL: IntArray) -> FloatArray:
        """Vectors (N, D) that codes stand for: the sums of their code vectors."""
        x_ND = self.centers_KD[codes_NL[:, 0] - self.offset].copy()
        for level, book in enumerate(self.books_MVD, start=1):
            x_ND += book[codes_NL[:, level]]
        return x_ND

    def relative_error(self, x_ND: FloatArray, codes_NL: IntArray | None = None) -> float:
        """Mean squared error of the approximation over the mean squared length; 0 if exact."""
        codes = self.encode(x_ND) if codes_NL is None else codes_NL
        lost = length = 0.0
        for begin in range(0, len(x_ND), _ERROR_BLOCK):
            block = x_ND[begin : begin + _ERROR_BLOCK]
            rest = block - self.decode(codes[begin : begin + _ERROR_BLOCK])
            lost += float((rest**2).sum())
            length += float((block**2).sum())
        return lost / max(length, 1e-12)

    def level_scores(self, q_BD: FloatArray) -> list[FloatArray]:
        """Prior of the decoder: `q . c_k` (B, K), then `q . e_{m,v}` (B, V) of each residual level.

        If the centres are grouped, the scores of centres in distant groups are -inf.
        """
        if self.groups is None:
            coarse = _products(q_BD, self.centers_KD)
        else:
            coarse = self.groups.scores(q_BD, self.centers_KD)
        return [coarse, *(q_BD @ book.T for book in self.books_MVD)]


@dataclass(frozen=True, slots=True)
class Codec:
    """The quantisers of all identifier spaces of an index, with equal levels and disjoint coarse
    codes; `parts` names these spaces."""

    quantizers: Mapping[str, Quantizer]

    @property
    def levels(self) -> int:
        """Semantic levels L."""
        return next(iter(self.quantizers.values())).levels

    @property
    def coarse(self) -> int:
        """Number of coarse clusters of all spaces together."""
        return sum(len(q.centers_KD) for q in self.quantizers.values())

    @property
    def codes(self) -> int:
        """V: number of codes of the largest residual code book."""
        return max((q.books_MVD.shape[1] for q in self.quantizers.values()), default=0)

    @property
    def reads_captions(self) -> bool:
        """Whether some identifiers are made of caption vectors."""
        return any(q.parts.caption for q in self.quantizers.values())

    def names(self, spaces_N: npt.NDArray[np.str_], captioned_N: MaskArray) -> npt.NDArray[np.str_]:
        """Identifier space of each item (N,).

        Args:
            spaces_N: Media spaces.
            captioned_N: Whether an item has a caption vector.
        """
        out = spaces_N.astype(object)
        for space in np.unique(spaces_N[captioned_N]).tolist():
            if captioned(space) in self.quantizers:
                out[captioned_N & (spaces_N == space)] = captioned(space)
        return out.astype(np.str_)

    def queries(
        self, media: Mapping[str, FloatArray], caption_BW: FloatArray | None
    ) -> dict[str, FloatArray]:
        """Query vectors in each identifier space that some query reaches.

        Args:
            media: Query vectors (B, D) in media spaces.
            caption_BW: Query vectors in the caption space, see `Parts.of_queries`.
        """
        out: dict[str, FloatArray] = {}
        for name, quantizer in self.quantizers.items():
            q_BD = media.get(uncaptioned(name))
            if q_BD is not None:
                u_BD = quantizer.parts.of_queries(q_BD, caption_BW, quantizer.dim)
                if u_BD is not None:
                    out[name] = u_BD
        return out

    def name_of(self, coarse: int) -> str | None:
        """The identifier space that a coarse code belongs to."""
        for name, q in self.quantizers.items():
            if q.offset <= coarse < q.end:
                return name
        return None

    def to_arrays(self) -> dict[str, FloatArray | IntArray]:
        """The arrays to store in a safetensors file; `to_meta` gives the remaining fields."""
        out: dict[str, FloatArray | IntArray] = {}
        for space, q in self.quantizers.items():
            out[f"{space}.centers"], out[f"{space}.books"] = q.centers_KD, q.books_MVD
            if q.metric_DD is not None:
                out[f"{space}.metric"] = q.metric_DD
            if q.groups is not None:
                out[f"{space}.groups"] = q.groups.first_G
                out[f"{space}.group_means"] = q.groups.means_GD
        return out

    def to_meta(self) -> dict[str, Any]:
        """The fields that are no arrays, as JSON."""
        return {
            space: {
                "offset": q.offset,
                "error": q.error,
                "fitted_on": q.fitted_on,
                "method": q.method,
                "parts": asdict(q.parts),
            }
            for space, q in self.quantizers.items()
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any], meta: Mapping[str, Any]) -> Codec:
        """The codec whose `to_arrays` and `to_meta` are given."""
        out: dict[str, Quantizer] = {}
        for space, info in meta.items():
            parts = Parts(**info["parts"])
            groups = None
            if f"{space}.groups" in arrays:
                groups = Groups(arrays[f"{space}.groups"], arrays[f"{space}.group_means"])
            out[space] = Quantizer(
                arrays[f"{space}.centers"], arrays[f"{space}.books"],
                metric_DD=arrays.get(f"{space}.metric"), groups=groups, **{**info, "parts": parts},
            )  # fmt: skip
        return cls(out)
