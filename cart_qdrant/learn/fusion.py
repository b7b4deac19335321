"""Fusion of the lanes into one score, and the router that picks a lane per query.

The score of an item is a linear model over what the lanes say about it, fitted as a conditional
logit (McFadden 1974) on held-out pairs: the probability that an item is the one meant is
`softmax_items(w . f)`. Shape legend: C candidates of a query, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

LANES = ("generative", "dense", "fused")
FLOOR = -12.0
"""Log-probability under which beams are told apart no more, and of an item that none names."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the lanes say about the candidates of one query.

    Attributes:
        media_C: Cosine of query and media vector; NaN where the tower does not reach the space.
        caption_C: Cosine of query and caption vector; NaN where there is no caption.
        beam_C: Log-probability of the identifier; NaN where no beam names it.
        space_C: Number of the item's space.
    """

    media_C: FloatArray
    caption_C: FloatArray
    beam_C: FloatArray
    space_C: npt.NDArray[np.intp]

    @property
    def named(self) -> npt.NDArray[np.bool_]:
        """Items that some beam names (C,), however unlikely it is."""
        return ~np.isnan(self.beam_C)

    def features(self, spaces: int) -> FloatArray:
        """(C, F): per space cosine and presence, caption cosine and presence, beam."""
        columns: list[npt.NDArray[Any]] = []
        for n in range(spaces):
            here = (self.space_C == n) & ~np.isnan(self.media_C)
            columns += [np.where(here, self.media_C, 0), (self.space_C == n).astype(np.float32)]
        known = ~np.isnan(self.caption_C)
        columns += [np.where(known, self.caption_C, 0), known.astype(np.float32)]
        columns.append(np.maximum(np.nan_to_num(self.beam_C, nan=FLOOR), FLOOR) - FLOOR)
        return np.stack(columns, axis=1).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Fitted weights, temperature and router.

    Attributes:
        spaces: Names of the media spaces, in the order of the features.
        weights: Per lane, weights of `Evidence.features`.
        strong: Lane for queries that some caption answers well.
        weak: Lane for the others.
        threshold: Caption cosine from which a query counts as well answered.
        temperature: Divides scores before they become probabilities.
        scale: Multiplies the prior's inner products.
        gates: Weight of the generator's correction at each level.
        beams: Beam width.
        held_out: Recall on held-out queries, per stratum and lane; empty when nothing was held out.
    """

    spaces: list[str]
    weights: dict[str, list[float]]
    strong: str = "dense"
    weak: str = "dense"
    threshold: float = 2.0
    temperature: float = 1.0
    scale: float = 20.0
    gates: list[float] = field(default_factory=list)
    beams: int = 200
    held_out: dict[str, Any] = field(default_factory=dict)

    def score(self, lane: str, evidence: Evidence) -> FloatArray:
        """Scores (C,) of a lane: log-probability up to a constant of the query."""
        w = np.asarray(self.weights[lane], dtype=np.float32)
        return np.asarray(evidence.features(len(self.spaces)) @ w, dtype=np.float32)

    def route(self, evidence: Evidence) -> str:
        """The lane for a query, by its best caption."""
        known = evidence.caption_C[~np.isnan(evidence.caption_C)]
        best = float(known.max()) if len(known) else -1.0
        return self.strong if best >= self.threshold else self.weak

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Calibration:
        """Inverse of `to_json`."""
        return cls(**data)


def untrained(spaces: Sequence[str], levels: int, captions: bool) -> Calibration:
    """Weights before any training: captions first where there are some, media vectors else.

    The untrained text vectors of a media space are far weaker than caption vectors, hence 1 to 3.
    """
    width = 2 * len(spaces) + 3
    dense = [0.0] * width
    for n in range(len(spaces)):
        dense[2 * n] = 1.0
    fused = list(dense)
    fused[-3] = 3.0
    lane = "fused" if captions else "dense"
    return Calibration(
        spaces=list(spaces),
        weights={"dense": dense, "fused": fused, "generative": fused},
        strong=lane,
        weak=lane,
        gates=[0.0] * levels,
    )


def fit_weights(
    features: Sequence[FloatArray],
    targets: Sequence[int],
    weights: Sequence[float],
    allowed: npt.NDArray[np.bool_],
    rising: npt.NDArray[np.bool_] | None = None,
) -> FloatArray:
    """Maximum-likelihood weights of the conditional logit, lightly shrunk.

    Args:
        features: (C, F) of each query; C differs.
        targets: Row of the right item of each query.
        weights: Weight of each query.
        allowed: Features that may be used (F,); the others get 0.
        rising: Features whose weight must not be negative (F,): more likeness never counts
            against an item, however few the held-out queries are.
    """
    w = _fit(features, targets, weights, allowed)
    if rising is not None and (w[rising] < 0).any():
        return fit_weights(features, targets, weights, allowed & ~(rising & (w < 0)), rising)
    return w


def _fit(
    features: Sequence[FloatArray],
    targets: Sequence[int],
    weights: Sequence[float],
    allowed: npt.NDArray[np.bool_],
) -> FloatArray:
    import torch

    counts = [len(f) for f in features]
    x = torch.from_numpy(np.concatenate(features))[:, torch.from_numpy(np.flatnonzero(allowed))]
    owner = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    right = torch.from_numpy(starts + np.asarray(targets))
    weight = torch.tensor(list(weights), dtype=torch.float32)
    w = torch.full((x.shape[1],), 1.0, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        scores = x @ w
        top = torch.full((len(counts),), -1e9).scatter_reduce(0, owner, scores.detach(), "amax")
        total = torch.zeros(len(counts)).index_add(0, owner, (scores - top[owner]).exp())
        likelihood = scores[right] - top - total.log()
        loss = -(weight * likelihood).sum() / weight.sum() + 1e-4 * w.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    out = np.zeros(len(allowed), dtype=np.float32)
    out[allowed] = w.detach().numpy()
    return out
