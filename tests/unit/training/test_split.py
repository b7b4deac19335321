"""Which pairs train and which are held out: splits by file."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cart_qdrant.records import text_key
from cart_qdrant.training.split import THREE_SETS, split_pairs
from tests.unit.training.made_corpus import made_corpus


@given(st.integers(0, 2**31), st.integers(0, 60), st.integers(0, 60))
def test_no_file_is_held_out_whose_text_another_has(seed: int, own: int, labelled: int) -> None:
    texts = [f"caption {n}" for n in range(own)] + [f"Label {n % 3}" for n in range(labelled)]
    count = own + labelled
    found = made_corpus(texts, list(range(count)), list(range(count)))
    split = split_pairs(found, seed)
    judging = [texts[p] for p in split.held_out()]
    alone = {text for text, n in Counter(texts).items() if n == 1}
    assert set(judging) <= alone
    assert bool(judging) == (len(alone) >= 20)
    assert set(split.train_P) == set(range(count)) - set(split.held_out())
    assert not np.isin(found.item_P[split.train_P], np.flatnonzero(split.held_items)).any()


def test_segments_of_a_file_share_its_text_and_are_held_out_together() -> None:
    # Thirty files of two segments; each file has one text, on both.
    texts = [f"film {n // 2}" for n in range(60)]
    found = made_corpus(texts, list(range(60)), [n // 2 for n in range(60)])
    split = split_pairs(found, 0)
    assert len(split.choose.unseen_P) == 2 * 3
    held = np.flatnonzero(split.held_items)
    assert set(held // 2 * 2) | set(held // 2 * 2 + 1) == set(held)


@given(st.integers(0, 2**31), st.integers(0, 40), st.booleans())
def test_what_is_reported_has_chosen_nothing(seed: int, further: int, many: bool) -> None:
    """Each file is in one set, and every text of a file in the set that the file is in."""
    count = THREE_SETS + further if many else 30 + further
    # A file has three texts, the last of which is written twice.
    texts = [f"{word} {n}" for n in range(count) for word in ("a", "b", "The", "the ")]
    found = made_corpus(texts, [n for n in range(count) for _ in range(4)], list(range(count)))
    split = split_pairs(found, seed)
    assert split.cross_fitted == (not many)
    file_P = found.item_P
    choose, report = split.choose, split.report
    if not many:
        assert report is choose and not len(split.epoch_pairs)
        assert len(choose.unseen_P) == 4 * int(count * 0.1)
    else:
        assert split.epoch_pairs is choose
        chosen = {*file_P[choose.unseen_P], *file_P[choose.seen_P]}
        assert chosen.isdisjoint([*file_P[report.unseen_P], *file_P[report.seen_P]])
        assert len(report.unseen_P) == 4 * int(count * 0.05)
    keys = [text_key(text) for text in texts]
    learned = {keys[p] for p in split.train_P}
    assert learned.isdisjoint(keys[p] for p in split.held_out())
    assert len(learned) + len({keys[p] for p in split.held_out()}) == len(set(keys))


def test_labels_that_the_embedder_gave_judge_nothing() -> None:
    found = made_corpus([f"label {n}" for n in range(50)], list(range(50)), list(range(50)))
    unlabelled = replace(found, captioned=np.zeros(50, bool))
    assert len(split_pairs(found, 0).report) and not len(split_pairs(unlabelled, 0).report)
