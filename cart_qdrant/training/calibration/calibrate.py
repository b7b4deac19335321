"""Calibration on held-out pairs: gates, fusion weights, router.

The guarantee: on the held-out queries of each stratum (new items, known items) the routed result
is never worse in R@1 and R@10 than the dense lane; where it would be, the router says dense.
Shape legend: B queries, N items, C candidates, L levels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from cart_qdrant.arrays.types import FloatArray, IndexArray
from cart_qdrant.generator.beam_search import Beams, places
from cart_qdrant.search.fusion import (
    CAPTIONED,
    LANES,
    MEANINGFUL,
    Calibration,
    Columns,
    Evidence,
    belief_features,
    best_of,
    default_weights,
    log_odds,
    log_sum,
)
from cart_qdrant.training.calibration.maximum_likelihood import fit_belief, fit_weights
from cart_qdrant.training.generator_fit import reachable

Mask = npt.NDArray[np.bool_]

POOL = 100
"""Candidates taken from each lane."""
SHIFTS = (0.0, *(sign * step / 2 for step in range(1, 11) for sign in (-1, 1)))
"""Tried on the belief's log-odds: the one of highest gain that is safe for either expert."""
CLEAR = 0.02
"""Gain (recall at 1 and 10 of each stratum, summed) from which a costlier routing is taken."""
HITS = 10
"""Hits of a query whose confidence is calibrated."""
FEW = 20
"""Held-out queries under which nothing is fitted to them."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Held-out queries of one stratum, encoded.

    Attributes:
        item_B: The right item of each.
        media: Query vectors (B, D) per space.
        caption_BW: Query vectors in the caption space.
        beams: Decoded identifiers of each query (over all spaces).
        caption_NW: Caption vectors of the items as this stratum may know them.
        known_N: Which items have one.
        caption_hub_N: Hubness of these caption vectors; NaN where it is not known.
        belief_BG: log pi of each vertical.
    """

    item_B: IndexArray
    media: Mapping[str, FloatArray]
    caption_BW: FloatArray
    beams: Sequence[Beams]
    caption_NW: FloatArray
    known_N: npt.NDArray[np.bool_]
    caption_hub_N: FloatArray
    belief_BG: FloatArray


@dataclass(frozen=True, slots=True)
class Items:
    """The items that are searched.

    Attributes:
        x_ND: Media vectors.
        space_N: Number of each one's space; -1 where queries do not reach it.
        rows_NL: Identifiers, counter included.
        file_N: File of each.
        hub_N: Hubness of the media vectors; NaN where it is not known.
        vertical_N: Number of each one's vertical.
    """

    x_ND: FloatArray
    space_N: IndexArray
    rows_NL: npt.NDArray[np.int32]
    file_N: IndexArray
    hub_N: FloatArray
    vertical_N: IndexArray


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
        reached = reachable(prior, target)
        if not reached.any():
            gates.append(0.0)
            continue
        losses = [
            float(F.cross_entropy((prior + gate * correction)[reached], target[reached]))
            for gate in np.linspace(0, 1, 11)
        ]
        gates.append(float(np.argmin(losses)) / 10)
    return gates


def evidence_of(
    held: HeldOut,
    query: int,
    all_items: Items,
    spaces: Sequence[str],
    place_of: Mapping[bytes, int],
) -> tuple[IndexArray, Evidence, int]:
    """Candidates of a held-out query as a search would find them, with the right one added.

    Returns:
        Items (C,), their evidence, and the row of the right item.
    """
    n, file_N = len(all_items.x_ND), all_items.file_N
    media = np.full(n, np.nan, dtype=np.float32)
    for number, space in enumerate(spaces):
        if space in held.media:
            rows = all_items.space_N == number
            media[rows] = all_items.x_ND[rows] @ held.media[space][query]
    caption = np.full(n, np.nan, dtype=np.float32)
    known = held.known_N
    caption[known] = held.caption_NW[known] @ held.caption_BW[query]
    beam = np.full(n, np.nan, dtype=np.float32)
    beams = held.beams[query]
    named = beams.items(place_of)
    beam[named] = beams.log_probs()
    vertical_N = all_items.vertical_N
    found = [_top(caption, POOL), named[:POOL]]
    for v in np.unique(vertical_N):
        here = np.where(vertical_N == v, media, np.nan)
        found += [_top(here, POOL), _top(np.where(known, np.nan, here), POOL)]
    right = int(held.item_B[query])
    items = np.unique(np.concatenate([*found, [right]]))
    # Other segments of the right file are no wrong answers, nor the one asked for.
    items = items[(file_N[items] != file_N[right]) | (items == right)]
    evidence = Evidence(
        media[items], caption[items], beam[items], all_items.space_N[items],
        all_items.hub_N[items], held.caption_hub_N[items],
        # Word scores of the store would know the captions that are held out.
        np.full(len(items), np.nan, dtype=np.float32),
        vertical_N[items], held.belief_BG[query],
    )  # fmt: skip
    return items, evidence, int(np.searchsorted(items, right))


def _top(scores_N: FloatArray, k: int) -> IndexArray:
    filled = np.where(np.isnan(scores_N), -np.inf, scores_N)
    k = min(k, len(filled))
    rows = np.argpartition(-filled, k - 1)[:k]
    return rows[np.isfinite(filled[rows])]


def calibrate(strata: Mapping[str, HeldOut], items: Items, base: Calibration) -> Calibration:
    """Fit weights and router on the strata that have queries; each stratum weighs the same.

    By their shares, the few items without a caption would lose their first places to the many that
    have one (docs/experiments.md).

    Args:
        strata: Held-out queries by name.
        items: What is searched.
        base: Spaces, scale, gates, beam width and mean hubness; returned with the rest filled in.
    """
    place_of = places(items.rows_NL)
    features: list[FloatArray] = []
    targets: list[int] = []
    names: list[str] = []
    evidences: list[Evidence] = []
    for name, held in strata.items():
        for query in range(len(held.item_B)):
            _, evidence, right = evidence_of(held, query, items, base.spaces, place_of)
            features.append(evidence.features(base.hub_means))
            targets.append(right)
            names.append(name)
            evidences.append(evidence)
    if not features:
        return base
    wanted = np.asarray([1 / len(strata[n].item_B) for n in names])
    meant = [int(e.vertical_C[t]) for e, t in zip(evidences, targets, strict=True)]
    wanted *= _balance(np.asarray(meant))
    best_caption = np.asarray([e.best_caption for e in evidences])
    mixed = any(e.captioned.any() and not e.captioned.all() for e in evidences)
    best: tuple[float, Calibration, dict[str, IndexArray]] | None = None
    many = len(features) >= MEANINGFUL
    for beams in (False, True) if many else (False,):
        fitted = _fit(base, features, targets, wanted, evidences, beams=beams)
        dense = [
            _rank(fitted.score("dense", e), t) for e, t in zip(evidences, targets, strict=True)
        ]
        for shift in SHIFTS if mixed and many else SHIFTS[:1]:
            one = replace(fitted, belief=[fitted.belief[0] + shift, *fitted.belief[1:]])
            fused, named = [], []
            for evidence, right in zip(evidences, targets, strict=True):
                scores = one.score("fused", evidence)
                fused.append(_rank(scores, right))
                named.append(_rank(np.where(evidence.named, scores, -np.inf), right))
            found = {"dense": dense, "fused": fused, "generative": named}
            ranks = {lane: np.asarray(found[lane]) for lane in LANES}
            gain, strong, weak, threshold = _router(
                ranks, best_caption, np.asarray(names), None if many else base.strong
            )
            # Decoding beams for their score alone costs more than all else together.
            if best is None or gain > best[0] + (
                CLEAR if beams and not best[1].reads_beams() else 1e-9
            ):
                one = replace(one, strong=strong, weak=weak, threshold=threshold)
                best = (gain, one, ranks)
    assert best is not None
    _, calibration, ranks = best
    if many:
        calibration = _fit_confidence(calibration, evidences, targets, wanted)
    routed = np.where(
        best_caption >= calibration.threshold, ranks[calibration.strong], ranks[calibration.weak]
    )
    report: dict[str, dict[str, Any]] = {}
    fewer = _fewer_candidates(calibration, evidences, targets)
    for name, held in strata.items():
        rows = np.asarray(names) == name
        report[name] = {"queries": len(held.item_B)}
        for lane, r in (*ranks.items(), ("auto", routed)):
            report[name][lane] = {"R@1": _recall(r, rows, 1), "R@10": _recall(r, rows, 10)}
            if lane in fewer:
                report[name][lane]["R@10 of an eighth"] = _recall(fewer[lane], rows, 10)
    return replace(calibration, held_out=report)


def _balance(vertical_B: IndexArray) -> FloatArray:
    """Weights (B,) by which verticals count as the square roots of their numbers of queries."""
    _, number, count = np.unique(vertical_B, return_inverse=True, return_counts=True)
    weight = 1 / np.sqrt(count[number])
    return np.asarray(weight / weight.mean(), dtype=np.float32)


def _fit(
    base: Calibration,
    features: list[FloatArray],
    targets: list[int],
    weights: FloatArray,
    evidences: list[Evidence],
    *,
    beams: bool,
) -> Calibration:
    """Weights of the dense lane, of the two experts, and of the belief between them.

    Args:
        beams: Whether the experts may weigh the beams' probability.
    """
    spaces = len(base.spaces)
    column = Columns.of(spaces)
    rising = ~column.presence
    own = [e.vertical_C == e.vertical_C[t] for e, t in zip(evidences, targets, strict=True)]
    space_B = np.asarray([e.space_C[t] for e, t in zip(evidences, targets, strict=True)])
    asked = np.bincount(space_B[space_B >= 0], minlength=spaces)
    has = [e.captioned for e in evidences]
    meant = np.asarray([h[t] for h, t in zip(has, targets, strict=True)])

    def fit(rows: IndexArray, kept: list[npt.NDArray[np.bool_]], allowed: Mask) -> list[float]:
        """Fitted to queries, each among the candidates of its vertical that are kept."""
        mine = [_tie(features[n][keep], asked) for n, keep in zip(rows.tolist(), kept, strict=True)]
        right = [int(keep[: targets[n]].sum()) for n, keep in zip(rows.tolist(), kept, strict=True)]
        return _untie(fit_weights(mine, right, weights[rows], allowed, rising), asked)

    dense = default_weights(1, base.scale)  # one cosine ranks the same under every weight
    if len(evidences[0].belief_G) > 1:
        dense = fit(np.arange(len(features)), own, column.media & ~column.hub & ~column.presence)

    def expert(captioned: bool, allowed: Mask) -> list[float] | None:
        """Fitted to the queries that mean such items, among such candidates alone."""
        rows = np.flatnonzero(meant == captioned)
        if len(rows) < FEW:
            return None
        return fit(rows, [own[n] & (has[n] == captioned) for n in rows], allowed)

    # Presence of a caption is the same for all items of an expert.
    free = ~column.beam | beams
    captioned = expert(True, free & ~(column.caption & column.presence))
    bare = expert(False, free & ~column.caption)
    calibration = replace(
        base,
        dense=dense,
        captioned=captioned or default_weights(spaces, *CAPTIONED),
        bare=bare or dense,
    )
    if min(meant.sum(), (~meant).sum()) < FEW:
        return calibration
    belief, used = [], []
    for n, (f, h, e) in enumerate(zip(features, has, evidences, strict=True)):
        f, h, caption = f[own[n]], h[own[n]], e.caption_C[own[n]]
        if h.any() and not h.all():
            scores = calibration.expert_scores(f, h)
            best = best_of(caption)
            belief.append(belief_features(best, log_sum(scores[h]), log_sum(scores[~h])))
            used.append(n)
    if len(np.unique(meant[used])) < 2:
        return calibration
    return replace(calibration, belief=fit_belief(np.stack(belief), meant[used], weights[used]))


def _tie(features_CF: FloatArray, asked: IndexArray) -> FloatArray:
    """Features whose media columns of seldom asked spaces are those of the most asked one: a dozen
    queries say little of a space's own weights."""
    most = int(asked.argmax())
    out = features_CF.copy()
    for n in np.flatnonzero(asked < FEW).tolist():
        if n != most:
            out[:, 3 * most : 3 * most + 3] += out[:, 3 * n : 3 * n + 3]
            out[:, 3 * n : 3 * n + 3] = 0
    return out


def _untie(weights_F: FloatArray, asked: IndexArray) -> list[float]:
    """Weights for the features before `_tie`."""
    most = int(asked.argmax())
    out = weights_F.copy()
    for n in np.flatnonzero(asked < FEW).tolist():
        out[3 * n : 3 * n + 3] = out[3 * most : 3 * most + 3]
    return [float(w) for w in out]


def _fewer_candidates(
    calibration: Calibration, evidences: list[Evidence], targets: list[int]
) -> dict[str, IndexArray]:
    """Ranks of the right items among every eighth candidate, dense and generative."""
    rng = np.random.default_rng(0)
    found: dict[str, list[int]] = {"dense": [], "generative": []}
    for evidence, right in zip(evidences, targets, strict=True):
        kept = rng.random(len(evidence.space_C)) < 1 / 8
        kept[right] = True
        named = kept & evidence.named
        for lane, among in (("dense", kept), ("generative", named)):
            scores = np.where(among, calibration.score(lane, evidence), -np.inf)
            found[lane].append(_rank(scores, right))
    return {lane: np.asarray(r) for lane, r in found.items()}


def _fit_confidence(
    calibration: Calibration, evidences: list[Evidence], targets: list[int], weights: FloatArray
) -> Calibration:
    """How sure a hit is (Platt scaling), and how far off that is on queries it did not see."""
    from sklearn.linear_model import LogisticRegression

    odds, right, owner = [], [], []
    for n, (evidence, target) in enumerate(zip(evidences, targets, strict=True)):
        lane = calibration.route(evidence)
        top = calibration.order(lane, evidence, fill=True)[0][:HITS]
        odds.append(log_odds(calibration.score("fused", evidence))[top])
        right.append(top == target)
        owner.append(np.full(len(top), n))
    x, y, query = np.concatenate(odds)[:, None], np.concatenate(right), np.concatenate(owner)
    if y.all() or not y.any():
        return calibration
    w = weights[query] * (len(query) / weights[query].sum())

    def fit(rows: npt.NDArray[np.bool_]) -> LogisticRegression:
        return LogisticRegression(C=100.0).fit(x[rows], y[rows], sample_weight=w[rows])

    ece = None
    halves = [query % 2 == 0, query % 2 == 1]
    if all(len(np.unique(y[half])) == 2 for half in halves):
        p = np.empty(len(x))
        for half, other in (halves, halves[::-1]):
            p[other] = fit(half).predict_proba(x[other])[:, 1]
        ece = round(expected_calibration_error(p, y, w), 4)
    model = fit(np.ones(len(x), dtype=bool))
    line = [float(model.coef_[0, 0]), float(model.intercept_[0])]
    return replace(calibration, confidence=line, ece=ece)


def expected_calibration_error(
    p_N: npt.NDArray[np.float64],
    right_N: npt.NDArray[np.bool_],
    weight_N: npt.NDArray[Any],
    bins: int = 10,
) -> float:
    """Mean distance of stated and observed probability, over bins of equal width weighted by what
    is in them (Guo et al., arXiv 1706.04599)."""
    place = np.minimum((p_N * bins).astype(int), bins - 1)
    total = 0.0
    for n in range(bins):
        rows = place == n
        if rows.any():
            w = weight_N[rows]
            total += abs(float((w * (p_N[rows] - right_N[rows])).sum()))
    return total / float(weight_N.sum())


def _rank(scores_C: FloatArray, right: int) -> int:
    """Candidates before the right one; all of them where a lane leaves it out."""
    if not np.isfinite(scores_C[right]):
        return len(scores_C)
    return int((scores_C > scores_C[right]).sum())


def _recall(rank_B: IndexArray, rows: npt.NDArray[np.bool_], k: int) -> float:
    return round(float((rank_B[rows] < k).mean()), 4) if rows.any() else 0.0


def _router(
    ranks: Mapping[str, IndexArray],
    best_caption: FloatArray,
    names: npt.NDArray[np.str_],
    usual: str | None,
) -> tuple[float, str, str, float]:
    """The highest gain without a loss against dense anywhere: lane pair and threshold.

    Args:
        usual: Where queries are too few to choose by: the lane that is taken if it loses nowhere.
    """
    choice, best = (0.0, "dense", "dense", 2.0), 0.0
    edges = [-2.0, *np.quantile(best_caption, np.linspace(0.05, 0.95, 19)), 2.0]
    measure: Callable[[IndexArray, npt.NDArray[np.bool_]], tuple[float, float]] = lambda r, m: (  # noqa: E731
        float((r[m] < 1).mean()),
        float((r[m] < 10).mean()),
    )
    groups = {name: names == name for name in np.unique(names)}
    dense = {name: measure(ranks["dense"], rows) for name, rows in groups.items()}
    pairs = sorted(product(LANES, LANES), key=lambda pair: pair[0] != pair[1])
    if usual is not None:
        pairs = [(usual, usual)]
    for strong, weak in pairs:
        for edge in edges[:1] if strong == weak else edges:
            routed = np.where(best_caption >= edge, ranks[strong], ranks[weak])
            gain, safe = 0.0, True
            for name, rows in groups.items():
                got = measure(routed, rows)
                safe &= got[0] >= dense[name][0] and got[1] >= dense[name][1]
                gain += got[0] - dense[name][0] + got[1] - dense[name][1]
            # Two lanes, or beams, must earn their cost; a small gain is noise.
            plain = strong == weak and strong != "generative"
            if safe and (usual is not None or gain > best + (1e-9 if plain else CLEAR)):
                choice, best = (gain, strong, weak, float(edge)), gain
    return choice
