"""Calibration on held-out pairs: gates, fusion weights, router, temperature.

The guarantee: on the held-out queries of each stratum (new items, known items) the routed result
is never worse in R@1 and R@10 than the dense lane; where it would be, the router says dense.
Shape legend: B queries, N items, C candidates, L levels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from cart_qdrant.learn.beam import Beams
from cart_qdrant.learn.fusion import LANES, Calibration, Evidence, fit_weights

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.intp]

POOL = 100
"""Candidates taken from each lane."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Held-out queries of one stratum, encoded.

    Attributes:
        item_B: The right item of each.
        media: Query vectors (B, D) per space.
        text_BW: Sentence vectors.
        beams: Decoded identifiers of each query (over all spaces).
        caption_NW: Caption vectors of the items as this stratum may know them.
        known_N: Which items have one.
    """

    item_B: IntArray
    media: Mapping[str, FloatArray]
    text_BW: FloatArray
    beams: Sequence[Beams]
    caption_NW: FloatArray
    known_N: npt.NDArray[np.bool_]


def fit_gates(
    states: Sequence[torch.Tensor],
    priors: Sequence[torch.Tensor],
    targets: Sequence[torch.Tensor],
) -> list[float]:
    """Gate of each level that makes held-out identifiers likeliest, within [0, 1].

    Args:
        states: Correction logits (B, V) of each level, prefixes given.
        priors: Prior logits (B, V).
        targets: Right codes (B,).
    """
    gates = []
    for correction, prior, target in zip(states, priors, targets, strict=True):
        losses = [
            float(F.cross_entropy(prior + gate * correction, target))
            for gate in np.linspace(0, 1, 11)
        ]
        gates.append(float(np.argmin(losses)) / 10)
    return gates


def evidence_of(
    held: HeldOut,
    query: int,
    x_ND: FloatArray,
    space_N: npt.NDArray[np.intp],
    spaces: Sequence[str],
    row_of: Mapping[bytes, int],
    file_N: IntArray,
) -> tuple[IntArray, Evidence, int]:
    """Candidates of a held-out query as a search would find them, with the right one added.

    Returns:
        Items (C,), their evidence, and the row of the right item.
    """
    n = len(x_ND)
    media = np.full(n, np.nan, dtype=np.float32)
    for number, space in enumerate(spaces):
        if space in held.media:
            rows = space_N == number
            media[rows] = x_ND[rows] @ held.media[space][query]
    caption = np.full(n, np.nan, dtype=np.float32)
    known = held.known_N
    caption[known] = held.caption_NW[known] @ held.text_BW[query]
    beam = np.full(n, np.nan, dtype=np.float32)
    beams = held.beams[query]
    named = [row_of[row.tobytes()] for row in np.ascontiguousarray(beams.rows_KL)]
    beam[named] = beams.log_probs()
    found = [_top(media, POOL), _top(caption, POOL), np.asarray(named[:POOL], dtype=np.intp)]
    right = int(held.item_B[query])
    items = np.unique(np.concatenate([*found, [right]]))
    # Other segments of the right file are no wrong answers, nor the one asked for.
    items = items[(file_N[items] != file_N[right]) | (items == right)]
    evidence = Evidence(media[items], caption[items], beam[items], space_N[items])
    return items, evidence, int(np.searchsorted(items, right))


def _top(scores_N: FloatArray, k: int) -> IntArray:
    filled = np.where(np.isnan(scores_N), -np.inf, scores_N)
    k = min(k, len(filled))
    rows = np.argpartition(-filled, k - 1)[:k]
    return rows[np.isfinite(filled[rows])]


def calibrate(
    strata: Mapping[str, HeldOut],
    shares: Mapping[str, float],
    x_ND: FloatArray,
    space_N: npt.NDArray[np.intp],
    rows_NL: npt.NDArray[np.int32],
    file_N: IntArray,
    base: Calibration,
) -> Calibration:
    """Fit weights, router and temperature on the strata that have queries.

    Args:
        strata: Held-out queries by name.
        shares: How much each stratum weighs.
        rows_NL: Identifier of each item, counter included.
        file_N: File of each item.
        base: Spaces, scale, gates and beam width; returned with the rest filled in.
    """
    row_of = {row.tobytes(): n for n, row in enumerate(np.ascontiguousarray(rows_NL))}
    features: list[FloatArray] = []
    targets: list[int] = []
    weights: list[float] = []
    names: list[str] = []
    evidences: list[Evidence] = []
    for name, held in strata.items():
        for query in range(len(held.item_B)):
            _, evidence, right = evidence_of(
                held, query, x_ND, space_N, base.spaces, row_of, file_N
            )
            features.append(evidence.features(len(base.spaces)))
            targets.append(right)
            weights.append(shares[name] / len(held.item_B))
            names.append(name)
            evidences.append(evidence)
    if not features:
        return base
    width = features[0].shape[1]
    media = np.zeros(width, dtype=bool)
    media[: 2 * len(base.spaces)] = True
    every = np.ones(width, dtype=bool)
    rising = np.ones(width, dtype=bool)
    rising[1 : 2 * len(base.spaces) : 2] = False  # presence of a space, of a caption
    rising[-2] = False
    fitted = {
        "dense": fit_weights(features, targets, weights, media, rising),
        "fused": fit_weights(features, targets, weights, every, rising),
    }
    if len(base.spaces) == 1:
        fitted["dense"] = np.zeros(width, dtype=np.float32)
        fitted["dense"][0] = base.scale  # one cosine ranks the same under every weight
    fitted["generative"] = fitted["fused"]
    calibration = replace(base, weights={k: [float(v) for v in w] for k, w in fitted.items()})
    ranks = {
        lane: np.asarray(
            [_rank(calibration, lane, e, t) for e, t in zip(evidences, targets, strict=True)]
        )
        for lane in LANES
    }
    best_caption = np.asarray([_best_caption(e) for e in evidences])
    strong, weak, threshold = _router(ranks, best_caption, np.asarray(names), dict(shares))
    routed = np.where(best_caption >= threshold, ranks[strong], ranks[weak])
    report = {
        name: {
            lane: {"R@1": _recall(r, np.asarray(names) == name, 1),
                   "R@10": _recall(r, np.asarray(names) == name, 10)}
            for lane, r in (*ranks.items(), ("auto", routed))
        }
        for name in strata
        if len(strata[name].item_B)
    }  # fmt: skip
    return replace(calibration, strong=strong, weak=weak, threshold=threshold, held_out=report)


def _best_caption(evidence: Evidence) -> float:
    known = evidence.caption_C[~np.isnan(evidence.caption_C)]
    return float(known.max()) if len(known) else -1.0


def _rank(calibration: Calibration, lane: str, evidence: Evidence, right: int) -> int:
    scores = calibration.score(lane, evidence)
    if lane == "generative":
        scores = np.where(evidence.named, scores, -np.inf)
        if not np.isfinite(scores[right]):
            return len(scores)
    return int((scores > scores[right]).sum())


def _recall(rank_B: IntArray, rows: npt.NDArray[np.bool_], k: int) -> float:
    return round(float((rank_B[rows] < k).mean()), 4) if rows.any() else 0.0


def _router(
    ranks: Mapping[str, IntArray],
    best_caption: FloatArray,
    names: npt.NDArray[np.str_],
    shares: Mapping[str, float],
) -> tuple[str, str, float]:
    """The lane pair and threshold of highest gain that lose nowhere against dense."""
    choice, best = ("dense", "dense", 2.0), 0.0
    edges = [-2.0, *np.quantile(best_caption, np.linspace(0.05, 0.95, 19)), 2.0]
    measure: Callable[[IntArray, npt.NDArray[np.bool_]], tuple[float, float]] = lambda r, m: (  # noqa: E731
        float((r[m] < 1).mean()),
        float((r[m] < 10).mean()),
    )
    groups = {name: names == name for name in np.unique(names)}
    dense = {name: measure(ranks["dense"], rows) for name, rows in groups.items()}
    for strong in LANES:
        for weak in LANES:
            for edge in edges:
                routed = np.where(best_caption >= edge, ranks[strong], ranks[weak])
                gain, safe = 0.0, True
                for name, rows in groups.items():
                    got = measure(routed, rows)
                    safe &= got[0] >= dense[name][0] and got[1] >= dense[name][1]
                    gain += shares[name] * (got[0] - dense[name][0] + got[1] - dense[name][1])
                if safe and gain > best + 1e-9:
                    choice, best = (strong, weak, float(edge)), gain
    return choice
