"""The fitted weights of the fusion."""

from __future__ import annotations

import numpy as np

from cart_qdrant.training.calibration.maximum_likelihood import fit_weights


def test_weights_find_the_informative_feature() -> None:
    rng = np.random.default_rng(0)
    features, targets = [], []
    for _ in range(200):
        x = rng.normal(size=(20, 3)).astype(np.float32)
        target = int(rng.integers(20))
        x[target, 0] += 3
        features.append(x)
        targets.append(target)
    w = fit_weights(features, targets, [1.0] * 200, np.asarray([True, True, False]))
    assert w[0] > 1 > abs(w[1])
    assert w[2] == 0


def test_a_likeness_never_counts_against_an_item() -> None:
    rng = np.random.default_rng(0)
    features, targets = [], []
    for _ in range(50):
        x = rng.normal(size=(10, 2)).astype(np.float32)
        target = int(rng.integers(10))
        x[target] = [2, -2]
        features.append(x)
        targets.append(target)
    every = np.ones(2, bool)
    assert fit_weights(features, targets, [1.0] * 50, every)[1] < 0
    assert fit_weights(features, targets, [1.0] * 50, every, every)[1] == 0
