"""Texts that several items have: none of these items is a wrong answer to them.

Shape legend: B batch, N items, M of them, P pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cart_qdrant.arrays.types import IndexArray
from cart_qdrant.records import text_key
from cart_qdrant.training.corpus import Corpus


def text_numbers(corpus: Corpus) -> IndexArray:
    """A number for the text of each pair (P,); case and spaces do not count."""
    number: dict[str, int] = {}
    return np.asarray([number.setdefault(text_key(text), len(number)) for text in corpus.texts],
                      dtype=np.intp)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SharedTexts:
    """Texts that several items have: none of these items is a wrong answer to them.

    Attributes:
        text_P: Number of each pair's text.
        items: Items of each text that several have.
    """

    text_P: IndexArray
    items: Mapping[int, IndexArray]

    @classmethod
    def of(cls, corpus: Corpus, train_P: IndexArray) -> SharedTexts:
        """Those of the training pairs `train_P`."""
        text_P = text_numbers(corpus)
        pairs = np.unique(np.stack([text_P[train_P], corpus.item_P[train_P]], axis=1), axis=0)
        texts, begin, count = np.unique(pairs[:, 0], return_index=True, return_counts=True)
        return cls(
            text_P,
            {
                int(text): pairs[first : first + n, 1]
                for text, first, n in zip(texts, begin, count, strict=True)
                if n > 1
            },
        )

    def shares_text(
        self, batch: IndexArray, row_N: IndexArray, among: IndexArray
    ) -> npt.NDArray[np.bool_]:
        """Whether an item of `among` has the text of a pair (B, M); the pair's own item does.

        Args:
            batch: Pairs (B,).
            row_N: Number of each item; negative for items that do not count.
            among: Numbers (M,) of the items, each once.
        """
        out = np.zeros((len(batch), len(among)), dtype=bool)
        for b, text in enumerate(self.text_P[batch].tolist()):
            items = self.items.get(text)
            if items is not None:
                rows = row_N[items]
                out[b] = np.isin(among, rows[rows >= 0], assume_unique=True)
        return out
