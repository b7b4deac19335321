"""The bank of caption vectors: its means are those of the vectors that were put in last."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from cart_qdrant.arrays.vectors import unit
from cart_qdrant.compute import Compute
from cart_qdrant.training.caption_bank import CaptionBank
from tests.unit.training.made_corpus import made_corpus

WIDTH = 5


@given(
    items=st.lists(st.integers(0, 5), min_size=1, max_size=20),
    steps=st.lists(st.sets(st.integers(0, 19), min_size=1), max_size=6),
    held=st.sets(st.integers(0, 19)),
    seed=st.integers(0, 2**16),
)
def test_means_are_those_of_the_newest_vectors(
    items: list[int], steps: list[set[int]], held: set[int], seed: int
) -> None:
    corpus = made_corpus([f"text {n}" for n in range(len(items))], items, list(range(6)))
    train = np.setdiff1d(np.arange(len(items)), sorted(held))
    rng = np.random.default_rng(seed)
    newest = rng.standard_normal((len(items), WIDTH)).astype(np.float32)
    bank = CaptionBank(corpus, train, newest, Compute())
    for step in steps:
        pairs = np.intersect1d(train, sorted(step))
        newest[pairs] = rng.standard_normal((len(pairs), WIDTH))
        bank.replace(pairs, torch.from_numpy(newest[pairs]))
    every = np.arange(len(corpus))
    for settled in (False, True):
        if settled:
            bank.settle()
        sums = np.zeros((len(corpus), WIDTH), np.float32)
        np.add.at(sums, corpus.item_P[train], newest[train])
        np.testing.assert_allclose(bank.means(every).numpy(), unit(sums), atol=1e-4)
        count = np.bincount(corpus.item_P[train], minlength=len(corpus))
        several = train[count[corpus.item_P[train]] > 1]
        others = sums[corpus.item_P[several]] - newest[several]
        np.testing.assert_allclose(bank.others(several).numpy(), unit(others), atol=1e-4)
    np.testing.assert_array_equal(bank.several_N, count > 1)
    alone = train[count[corpus.item_P[train]] == 1]
    assert bank.others(alone).abs().max() < 1e-4 if len(alone) else True
    assert not bank.means(np.flatnonzero(count == 0)).any()


def test_what_it_was_made_of_stays_as_it_was() -> None:
    corpus = made_corpus(["a", "b"], [0, 0], [0])
    start = np.ones((2, WIDTH), np.float32)
    bank = CaptionBank(corpus, np.arange(2), start, Compute())
    bank.replace(np.asarray([1]), torch.zeros(1, WIDTH))
    np.testing.assert_array_equal(start, 1)
