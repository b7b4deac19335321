"""What is learned from and what judges: splits by file, and texts that several items share."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cart_qdrant.index.points import Vectors
from cart_qdrant.training.corpus import Corpus, SharedTexts, Split, split_pairs


def corpus(texts: list[str], items: list[int], files: list[int]) -> Corpus:
    """Items without content; a text and its item for each pair, and the file of each item."""
    n = len(files)
    vectors = Vectors(
        [str(k) for k in range(n)], np.zeros((n, 2), np.float32), np.asarray(["s"] * n)
    )
    return Corpus(
        vectors, texts, np.asarray(items, np.intp), np.ones(len(texts), np.float32),
        np.isin(np.arange(n), items), np.asarray(files, np.intp), np.asarray(["image"] * n),
    )  # fmt: skip


@given(st.integers(0, 2**31), st.integers(0, 60), st.integers(0, 60))
def test_no_file_is_held_out_whose_text_another_has(seed: int, own: int, labelled: int) -> None:
    texts = [f"caption {n}" for n in range(own)] + [f"Label {n % 3}" for n in range(labelled)]
    count = own + labelled
    found = corpus(texts, list(range(count)), list(range(count)))
    split = split_pairs(found, seed)
    judging = [texts[p] for p in (*split.new_P, *split.known_P)]
    alone = {text for text, n in Counter(texts).items() if n == 1}
    assert set(judging) <= alone
    assert bool(judging) == (len(alone) >= 20)
    assert set(split.train_P) == set(range(count)) - {*split.new_P, *split.known_P}
    assert not np.isin(found.item_P[split.train_P], np.flatnonzero(split.held_items)).any()


def test_segments_of_a_file_share_its_text_and_are_held_out_together() -> None:
    # Thirty files of two segments; each file has one text, on both.
    texts = [f"film {n // 2}" for n in range(60)]
    found = corpus(texts, list(range(60)), [n // 2 for n in range(60)])
    split = split_pairs(found, 0)
    assert len(split.new_P) == 2 * 3
    held = np.flatnonzero(split.held_items)
    assert set(held // 2 * 2) | set(held // 2 * 2 + 1) == set(held)


def test_items_of_one_text_are_no_wrong_answers_to_it() -> None:
    found = corpus(["rain", "sea", " Rain ", "rain"], [0, 1, 2, 3], [0, 1, 2, 3])
    everything = Split(np.arange(4), np.empty(0, int), np.empty(0, int), np.zeros(4, bool))
    shared = SharedTexts.of(found, everything)
    alike = shared.alike(np.asarray([0, 1, 2]), np.arange(4), np.asarray([0, 1, 3]))
    assert alike.tolist() == [[True, False, True], [False] * 3, [True, False, True]]
    # Item 3 is of another space: its number there is none of this one.
    alike = shared.alike(np.asarray([0]), np.asarray([0, 1, 2, -1]), np.asarray([0, 1, 2, 3]))
    assert alike.tolist() == [[True, False, True, False]]
    # A text that training does not see is shared with nobody.
    part = Split(np.asarray([0, 1]), np.asarray([2, 3]), np.empty(0, int), np.zeros(4, bool))
    assert SharedTexts.of(found, part).items == {}
