"""Ranks of right items, against a sort."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cart_qdrant.training.ranks import found, ranks_in


@given(
    rows=st.integers(1, 5).flatmap(
        lambda n: st.lists(st.lists(st.integers(0, 9), min_size=n, max_size=n), min_size=1)
    ),
    seed=st.integers(0, 99),
)
def test_a_rank_is_the_number_of_items_before_the_right_one(
    rows: list[list[int]], seed: int
) -> None:
    score_BN = np.asarray(rows, np.float32)
    target_B = np.random.default_rng(seed).integers(0, score_BN.shape[1], len(rows))
    wanted = [
        sorted(row, reverse=True).index(row[target])
        for row, target in zip(rows, target_B.tolist(), strict=True)
    ]
    np.testing.assert_array_equal(ranks_in(score_BN, target_B), wanted)


def test_a_first_item_counts_twice() -> None:
    np.testing.assert_array_equal(found(np.asarray([0, 1, 9, 10])), [2, 1, 1, 0])
