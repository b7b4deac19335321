"""Held-out queries with the candidates that a search would rank for them, and their features.

Shape legend: B queries, N items, C candidates, D vector width, W caption vector width, L levels,
G modality groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cart_qdrant.arrays.types import FloatArray, IndexArray, IntArray, MaskArray
from cart_qdrant.generator.beam_search import Beams, positions
from cart_qdrant.search.candidate_features import CandidateFeatures
from cart_qdrant.search.fusion import Calibration

CANDIDATES = 100
"""Candidates taken from each ranking."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Encoded held-out queries of one stratum.

    Attributes:
        item_B: The right item of each query.
        media: Query vectors (B, D) by media space.
        caption_BW: Query vectors in the caption space.
        beams: Decoded identifiers of each query, over all spaces.
        caption_NW: Caption vectors of the items, without the captions that this stratum holds out.
        known_N: Whether an item has such a caption vector.
        caption_hub_N: Hubness of these caption vectors; NaN where it is not known.
        log_prior_BG: Log-probability of each modality group given the query.
    """

    item_B: IndexArray
    media: Mapping[str, FloatArray]
    caption_BW: FloatArray
    beams: Sequence[Beams]
    caption_NW: FloatArray
    known_N: MaskArray
    caption_hub_N: FloatArray
    log_prior_BG: FloatArray


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


@dataclass(frozen=True, slots=True)
class Examples:
    """Held-out queries of all strata, each with its candidates: what a calibration is fitted to.

    Attributes:
        candidates: Features of each query's candidates, as a search computes them.
        features: The same as matrices (C, F).
        targets: Row of the right item among the candidates of each query.
        stratum_B: Name of each query's stratum.
        weight_B: Weight of each query.
    """

    candidates: list[CandidateFeatures]
    features: list[FloatArray]
    targets: list[int]
    stratum_B: npt.NDArray[np.str_]
    weight_B: FloatArray

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def best_captions(self) -> FloatArray:
        """Cosine of each query's best caption; -1 where no candidate has one."""
        return np.asarray([one.best_caption for one in self.candidates])


def collect_examples(
    strata: Mapping[str, HeldOut], items: Items, base: Calibration
) -> Examples | None:
    """The queries of all strata with their candidates; None where nothing is held out.

    Each stratum weighs the same, and each modality group as the square root of its number of
    queries. Weighed by their shares of the collection, the few items without a caption would lose
    their first ranks to the many that have one (docs/experiments.md).
    """
    item_of = positions(items.rows_NL)
    candidates: list[CandidateFeatures] = []
    targets: list[int] = []
    names: list[str] = []
    for name, held_out in strata.items():
        for query in range(len(held_out.item_B)):
            found, target = candidate_features(held_out, query, items, base.spaces, item_of)
            candidates.append(found)
            targets.append(target)
            names.append(name)
    if not targets:
        return None
    weight_B = np.asarray([1 / len(strata[name].item_B) for name in names])
    groups = [int(e.group_C[t]) for e, t in zip(candidates, targets, strict=True)]
    weight_B *= _group_weights(np.asarray(groups))
    features = [one.matrix(base.hub_means) for one in candidates]
    return Examples(candidates, features, targets, np.asarray(names), weight_B)


def candidate_features(
    held_out: HeldOut,
    query: int,
    items: Items,
    spaces: Sequence[str],
    item_of: Mapping[bytes, int],
) -> tuple[CandidateFeatures, int]:
    """Candidates of a held-out query as a search would find them, with the right item added.

    Args:
        held_out: The stratum of the query.
        query: Number of the query in its stratum.
        items: What is searched.
        spaces: Media spaces, in the order of the features.
        item_of: Number of the item by identifier.

    Returns:
        The candidates' features, and the row of the right item among them.
    """
    n = len(items.x_ND)
    media = np.full(n, np.nan, dtype=np.float32)
    for number, space in enumerate(spaces):
        if space in held_out.media:
            rows = items.space_N == number
            media[rows] = items.x_ND[rows] @ held_out.media[space][query]
    caption = np.full(n, np.nan, dtype=np.float32)
    known = held_out.known_N
    caption[known] = held_out.caption_NW[known] @ held_out.caption_BW[query]
    beam = np.full(n, np.nan, dtype=np.float32)
    beams = held_out.beams[query]
    named = beams.items(item_of)
    beam[named] = beams.log_probs()
    found = [_top(caption, CANDIDATES), named[:CANDIDATES]]
    for group in np.unique(items.group_N):
        here = np.where(items.group_N == group, media, np.nan)
        found += [_top(here, CANDIDATES), _top(np.where(known, np.nan, here), CANDIDATES)]
    right = int(held_out.item_B[query])
    chosen = np.unique(np.concatenate([*found, [right]]))
    # Other segments of the right file are neither wrong answers nor the item that is asked for.
    chosen = chosen[(items.file_N[chosen] != items.file_N[right]) | (chosen == right)]
    candidates = CandidateFeatures(
        media[chosen], caption[chosen], beam[chosen], items.space_N[chosen],
        items.hub_N[chosen], held_out.caption_hub_N[chosen],
        # The store's BM25 scores would know the captions that are held out.
        np.full(len(chosen), np.nan, dtype=np.float32),
        items.group_N[chosen], held_out.log_prior_BG[query],
    )  # fmt: skip
    return candidates, int(np.searchsorted(chosen, right))


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
