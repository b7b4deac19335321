"""Held-out queries with the candidates that a search would rank for them, and their features.

Shape legend: B queries, b of them, N items, C candidates, D vector width, W caption vector width,
L levels, G modality groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cart_qdrant.arrays.types import FloatArray, IndexArray, IntArray, MaskArray
from cart_qdrant.generator.beam_search import Beams, positions
from cart_qdrant.search.candidate_features import CandidateFeatures
from cart_qdrant.search.fusion import Calibration

CANDIDATES = 100
"""Candidates taken from each ranking."""
_SCORES = 2**25
"""Scores of queries and items that are held at once."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Encoded held-out queries of one stratum.

    Attributes:
        item_B: The right item of each query.
        media: Query vectors (B, D) by media space.
        caption_BW: Query vectors in the caption space.
        beams: Decoded identifiers of each query, over all spaces.
        caption_NW: Caption vectors of the items, without the captions that are held out.
        known_N: Whether an item has such a caption vector.
        caption_hub_N: Hubness of these caption vectors; NaN where it is not known.
        log_prior_BG: Log-probability of each modality group given the query.
        share: Share of the collection's files that such queries ask for.
    """

    item_B: IndexArray
    media: Mapping[str, FloatArray]
    caption_BW: FloatArray
    beams: Sequence[Beams]
    caption_NW: FloatArray
    known_N: MaskArray
    caption_hub_N: FloatArray
    log_prior_BG: FloatArray
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Items:
    """The items that are searched.

    Attributes:
        x_ND: Media vectors.
        space_N: Number of each item's media space; -1 where no query vector reaches it.
        rows_NL: Identifiers, with the disambiguation token.
        file_N: Number of each item's file.
        hub_N: Hubness of the media vectors; NaN where it is not known.
        group_N: Number of each item's modality group.
    """

    x_ND: FloatArray
    space_N: IndexArray
    rows_NL: IntArray
    file_N: IndexArray
    hub_N: FloatArray
    group_N: IndexArray

    def of_space(self, number: int) -> tuple[IndexArray | slice, FloatArray]:
        """Rows of the items in a media space, and their vectors; not copied if they are all."""
        here = self.space_N == number
        if here.all():
            return slice(None), self.x_ND
        rows = np.flatnonzero(here)
        return rows, self.x_ND[rows]


@dataclass(frozen=True, slots=True)
class Retrieved:
    """What a search would find for one query.

    Attributes:
        candidates: Features of the candidates.
        file_C: Number of each candidate's file.
        file: Number of the right item's file, which need not be among them.
    """

    candidates: CandidateFeatures
    file_C: IndexArray
    file: int


@dataclass(frozen=True, slots=True)
class Examples:
    """Held-out queries of all strata, each with its candidates: what a calibration is fitted to.

    Attributes:
        candidates: Features of each query's candidates, with the right item, and without other
            segments of its file, which are neither wrong answers nor what is asked for.
        features: The same as matrices (C, F).
        targets: Row of the right item among the candidates of each query.
        retrieved: What a search finds for each query.
        retrieved_B: Whether that includes the right item.
        stratum_B: Name of each query's stratum.
        file_B: Number of the file that each query asks for.
        weight_B: Weight of each query in the fits of weights: each stratum weighs the same, and
            each modality group as the square root of its number of queries. Weighed by their shares
            of the collection, the few items without a caption would lose their first ranks to the
            many that have one (docs/experiments.md).
        asked_B: Probability of each query if every file of the collection is asked for as often as
            any other.
    """

    candidates: list[CandidateFeatures]
    features: list[FloatArray]
    targets: list[int]
    retrieved: list[Retrieved]
    retrieved_B: MaskArray
    stratum_B: npt.NDArray[np.str_]
    file_B: IndexArray
    weight_B: FloatArray
    asked_B: FloatArray

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def best_captions(self) -> FloatArray:
        """Cosine of each query's best caption; -1 where no candidate has one."""
        return np.asarray([one.best_caption for one in self.candidates])

    def take(self, rows: IndexArray) -> Examples:
        """Some of the queries."""
        several = rows.tolist()
        return Examples(
            [self.candidates[n] for n in several], [self.features[n] for n in several],
            [self.targets[n] for n in several], [self.retrieved[n] for n in several],
            self.retrieved_B[rows], self.stratum_B[rows], self.file_B[rows], self.weight_B[rows],
            self.asked_B[rows],
        )  # fmt: skip


@dataclass(slots=True)
class _Collected:
    """The queries so far."""

    candidates: list[CandidateFeatures] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    retrieved: list[Retrieved] = field(default_factory=list)
    found: list[bool] = field(default_factory=list)


def collect_examples(
    strata: Mapping[str, HeldOut], items: Items, base: Calibration
) -> Examples | None:
    """The queries of all strata with their candidates; None where nothing is held out."""
    if not sum(len(one.item_B) for one in strata.values()):
        return None
    item_of = positions(items.rows_NL)
    spaces = [items.of_space(number) for number in range(len(base.spaces))]
    out = _Collected()
    for held_out in strata.values():
        for query, media_N, caption_N in _scores(held_out, items, base.spaces, spaces):
            _collect(out, held_out, query, items, item_of, media_N, caption_N)
    counts = [len(one.item_B) for one in strata.values()]
    names = np.repeat(list(strata), counts)
    file_B = items.file_N[np.concatenate([one.item_B for one in strata.values()])]
    groups = [int(e.group_C[t]) for e, t in zip(out.candidates, out.targets, strict=True)]
    return Examples(
        out.candidates,
        [one.matrix(base.hub_means) for one in out.candidates],
        out.targets,
        out.retrieved,
        np.asarray(out.found),
        names,
        file_B,
        np.repeat([1 / max(1, n) for n in counts], counts) * _group_weights(np.asarray(groups)),
        np.concatenate([_asked(one, items.file_N) for one in strata.values()]),
    )


def _scores(
    held_out: HeldOut,
    items: Items,
    names: Sequence[str],
    spaces: Sequence[tuple[IndexArray | slice, FloatArray]],
) -> Iterator[tuple[int, FloatArray, FloatArray]]:
    """Each query with the cosines (N,) of media and caption vectors; NaN where there is none.

    Blocks of queries share one reading of the vectors.
    """
    n = len(items.x_ND)
    size = max(1, _SCORES // max(1, n))
    for begin in range(0, len(held_out.item_B), size):
        here = slice(begin, min(begin + size, len(held_out.item_B)))
        media_bN = np.full((here.stop - begin, n), np.nan, dtype=np.float32)
        for name, (rows, x_MD) in zip(names, spaces, strict=True):
            if name in held_out.media:
                media_bN[:, rows] = held_out.media[name][here] @ x_MD.T
        caption_bN = held_out.caption_BW[here] @ held_out.caption_NW.T
        caption_bN[:, ~held_out.known_N] = np.nan
        for b in range(len(media_bN)):
            yield begin + b, media_bN[b], caption_bN[b]


def _collect(
    out: _Collected,
    held_out: HeldOut,
    query: int,
    items: Items,
    item_of: Mapping[bytes, int],
    media_N: FloatArray,
    caption_N: FloatArray,
) -> None:
    """Add a held-out query with its candidates as a search would find them."""
    known = held_out.known_N
    beam_N = np.full(len(media_N), np.nan, dtype=np.float32)
    beams = held_out.beams[query]
    named = beams.items(item_of)
    beam_N[named] = beams.log_probs()
    found = [_top(caption_N, CANDIDATES), named[:CANDIDATES]]
    for group in np.unique(items.group_N):
        here = np.where(items.group_N == group, media_N, np.nan)
        found += [_top(here, CANDIDATES), _top(np.where(known, np.nan, here), CANDIDATES)]
    pool = np.unique(np.concatenate(found))

    def features(rows: IndexArray) -> CandidateFeatures:
        return CandidateFeatures(
            media_N[rows], caption_N[rows], beam_N[rows], items.space_N[rows],
            items.hub_N[rows], held_out.caption_hub_N[rows],
            # The store's BM25 scores would know the captions that are held out.
            np.full(len(rows), np.nan, dtype=np.float32),
            items.group_N[rows], held_out.log_prior_BG[query],
        )  # fmt: skip

    right = int(held_out.item_B[query])
    file = int(items.file_N[right])
    chosen = np.union1d(pool, [right])
    chosen = chosen[(items.file_N[chosen] != file) | (chosen == right)]
    out.candidates.append(features(chosen))
    out.targets.append(int(np.searchsorted(chosen, right)))
    out.retrieved.append(Retrieved(features(pool), items.file_N[pool], file))
    out.found.append(bool(np.isin(right, pool)))


def _top(scores_N: FloatArray, k: int) -> IndexArray:
    """The k items of highest score, in any order; items with a score of NaN are left out."""
    filled = np.where(np.isnan(scores_N), -np.inf, scores_N)
    k = min(k, len(filled))
    rows = np.argpartition(-filled, k - 1)[:k]
    return rows[np.isfinite(filled[rows])]


def _group_weights(group_B: IndexArray) -> FloatArray:
    """Weights (B,) that make a modality group count as the square root of its queries."""
    _, number, count = np.unique(group_B, return_inverse=True, return_counts=True)
    weight = 1 / np.sqrt(count[number])
    return np.asarray(weight / weight.mean(), dtype=np.float32)


def _asked(held_out: HeldOut, file_N: IndexArray) -> FloatArray:
    """Probability (B,) of each query of a stratum, if its files are asked for equally often."""
    _, number, count = np.unique(file_N[held_out.item_B], return_inverse=True, return_counts=True)
    return np.asarray(held_out.share / (len(count) * count[number]), dtype=np.float32)
