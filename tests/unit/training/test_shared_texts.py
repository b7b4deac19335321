"""Texts that several items have."""

from __future__ import annotations

import numpy as np

from cart_qdrant.training.shared_texts import SharedTexts
from tests.unit.training.made_corpus import made_corpus


def test_items_of_one_text_are_no_wrong_answers_to_it() -> None:
    found = made_corpus(["rain", "sea", " Rain ", "rain"], [0, 1, 2, 3], [0, 1, 2, 3])
    shared = SharedTexts.of(found, np.arange(4))
    same_text = shared.shares_text(np.asarray([0, 1, 2]), np.arange(4), np.asarray([0, 1, 3]))
    assert same_text.tolist() == [[True, False, True], [False] * 3, [True, False, True]]
    # Item 3 is of another space: its number there is none of this one.
    numbers = np.asarray([0, 1, 2, -1])
    same_text = shared.shares_text(np.asarray([0]), numbers, np.asarray([0, 1, 2, 3]))
    assert same_text.tolist() == [[True, False, True, False]]
    # A text that training does not see is shared with nobody.
    assert SharedTexts.of(found, np.asarray([0, 1])).items == {}
