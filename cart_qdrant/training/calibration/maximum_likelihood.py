"""Maximum-likelihood fits behind the fusion of lanes: conditional logit and logistic regression.

Shape legend: B queries, C candidates of a query, F features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from cart_qdrant.arrays.types import FloatArray, MaskArray


def fit_weights(
    features: Sequence[FloatArray],
    targets: Sequence[int],
    weights: Sequence[float] | FloatArray,
    allowed: MaskArray,
    rising: MaskArray | None = None,
) -> FloatArray:
    """Maximum-likelihood weights (F,) of a conditional logit, lightly shrunk.

    Args:
        features: Matrix (C, F) of each query; C differs.
        targets: Row of the right item of each query.
        weights: Weight of each query.
        allowed: Features that may be used (F,); the others get 0.
        rising: Features whose weight must not be negative (F,): greater similarity never counts
            against an item, however few the held-out queries are.
    """
    w = _fit_unconstrained(features, targets, weights, allowed)
    if rising is not None and (w[rising] < 0).any():
        return fit_weights(features, targets, weights, allowed & ~(rising & (w < 0)), rising)
    return w


def _fit_unconstrained(
    features: Sequence[FloatArray],
    targets: Sequence[int],
    weights: Sequence[float] | FloatArray,
    allowed: MaskArray,
) -> FloatArray:
    """The same without a constraint on signs."""
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


def fit_caption_odds(
    features_B4: FloatArray, captioned_B: MaskArray, weight_B: FloatArray
) -> list[float]:
    """Intercept and weights of a logistic regression on `caption_odds_features`: whether an item
    with a caption is asked for."""
    model = LogisticRegression(C=100.0, max_iter=1000)
    scaled = weight_B * (len(weight_B) / weight_B.sum())
    model.fit(features_B4[:, 1:], captioned_B, sample_weight=scaled)
    return [float(model.intercept_[0]), *(float(w) for w in model.coef_[0])]
