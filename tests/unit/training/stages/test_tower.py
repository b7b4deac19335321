"""Captions are tuned where held-out ones show that it pays."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.search.fusion import MEANINGFUL
from cart_qdrant.training.split import HeldOutPairs
from cart_qdrant.training.stages.tower import may_tune_captions, tuning_pays
from tests.unit.training.made_corpus import made_corpus

ITEMS = 80
"""More than the queries that are compared with all items at once."""
APART = np.eye(ITEMS, dtype=np.float32).repeat(2, axis=0)
"""Two captions of each item, unlike all others."""
ALIKE = np.ones((2 * ITEMS, ITEMS), np.float32) / np.sqrt(ITEMS, dtype=np.float32)
ALIKE[::2] += np.roll(APART, 2, axis=0)[::2]  # nearest to another item's


def data(untrained: FloatArray, held_out: int = ITEMS, *, cross_fitted: bool = False) -> Any:
    """Each item has two captions, of which `held_out` second ones are held out."""
    corpus = made_corpus([f"text {n}" for n in range(2 * ITEMS)],
                         [n // 2 for n in range(2 * ITEMS)], list(range(ITEMS)))  # fmt: skip
    asked = np.arange(1, 2 * held_out, 2)
    pairs = HeldOutPairs(np.empty(0, np.intp), asked[:0] if cross_fitted else asked)
    split = SimpleNamespace(train_P=np.arange(0, 2 * ITEMS, 2), epoch_pairs=pairs)
    return SimpleNamespace(corpus=corpus, split=split, states=SimpleNamespace(text_PW=untrained))


def queries(tuned: FloatArray) -> Any:
    return SimpleNamespace(caption=lambda rows: tuned[rows])


@pytest.mark.parametrize(
    ("tuned", "untrained", "pays"),
    [(APART, ALIKE, True), (ALIKE, APART, False), (APART, APART, False)],
)
def test_tuning_pays_where_more_is_found(
    tuned: FloatArray, untrained: FloatArray, *, pays: bool
) -> None:
    assert tuning_pays(data(untrained), queries(tuned)) is pays


def test_few_held_out_captions_do_not_show_it() -> None:
    assert may_tune_captions(data(APART, MEANINGFUL))
    assert not may_tune_captions(data(APART, MEANINGFUL - 1))
    assert not may_tune_captions(data(APART, cross_fitted=True))
