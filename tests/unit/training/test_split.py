"""Which pairs train and which are held out: splits by file."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cart_qdrant.training.split import split_pairs
from tests.unit.training.made_corpus import made_corpus


@given(st.integers(0, 2**31), st.integers(0, 60), st.integers(0, 60))
def test_no_file_is_held_out_whose_text_another_has(seed: int, own: int, labelled: int) -> None:
    texts = [f"caption {n}" for n in range(own)] + [f"Label {n % 3}" for n in range(labelled)]
    count = own + labelled
    found = made_corpus(texts, list(range(count)), list(range(count)))
    split = split_pairs(found, seed)
    judging = [texts[p] for p in (*split.unseen_P, *split.seen_P)]
    alone = {text for text, n in Counter(texts).items() if n == 1}
    assert set(judging) <= alone
    assert bool(judging) == (len(alone) >= 20)
    assert set(split.train_P) == set(range(count)) - {*split.unseen_P, *split.seen_P}
    assert not np.isin(found.item_P[split.train_P], np.flatnonzero(split.held_items)).any()


def test_segments_of_a_file_share_its_text_and_are_held_out_together() -> None:
    # Thirty files of two segments; each file has one text, on both.
    texts = [f"film {n // 2}" for n in range(60)]
    found = made_corpus(texts, list(range(60)), [n // 2 for n in range(60)])
    split = split_pairs(found, 0)
    assert len(split.unseen_P) == 2 * 3
    held = np.flatnonzero(split.held_items)
    assert set(held // 2 * 2) | set(held // 2 * 2 + 1) == set(held)
