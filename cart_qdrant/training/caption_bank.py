"""Caption vectors of the training pairs while their encoder is trained, and their means by item.

Encoding all captions anew after each step would cost more than the training. The bank keeps the
vector that each caption had when a step last read it: those of the running epoch replace the older
ones. Shape legend: N items, M of them, P pairs, B of them, W caption vector width.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cart_qdrant.arrays.types import FloatArray, IndexArray
from cart_qdrant.compute import Compute
from cart_qdrant.training.corpus import Corpus


class CaptionBank:
    """Caption vectors of the training pairs, and their sums by item.

    Args:
        corpus: Items and texts.
        pairs: The training pairs, whose texts are the captions.
        text_PW: Vectors to begin with, of all pairs of the corpus.
        compute: Where the bank lies.

    Attributes:
        several_N: Whether an item has several captions.
    """

    def __init__(
        self, corpus: Corpus, pairs: IndexArray, text_PW: FloatArray, compute: Compute
    ) -> None:
        self._compute = compute
        count_N = np.bincount(corpus.item_P[pairs], minlength=len(corpus))
        self.several_N = count_N > 1
        self._pairs = compute.tensor(pairs)
        self._item_P = compute.tensor(corpus.item_P)
        self._vector_PW = compute.tensor(text_PW).clone()
        self._sum_NW = self._vector_PW.new_zeros(len(corpus), text_PW.shape[1])
        self.settle()

    def settle(self) -> None:
        """Sum the vectors again: many small replacements would add up their rounding errors."""
        self._sum_NW.zero_()
        self._sum_NW.index_add_(0, self._item_P[self._pairs], self._vector_PW[self._pairs])

    def means(self, items: IndexArray) -> Tensor:
        """Mean of the captions of some items, unit vectors (M, W); zero where one has none."""
        return F.normalize(self._sum_NW[self._compute.tensor(items)], dim=-1)

    def others(self, pairs: IndexArray) -> Tensor:
        """Mean of the *other* captions of each pair's item, unit vectors (B, W)."""
        rows = self._compute.tensor(pairs)
        return F.normalize(self._sum_NW[self._item_P[rows]] - self._vector_PW[rows], dim=-1)

    @torch.no_grad()
    def replace(self, pairs: IndexArray, vector_BW: Tensor) -> None:
        """Replace the vectors of some pairs, each of them once, by newer ones (B, W)."""
        rows, new = self._compute.tensor(pairs), vector_BW.detach().float()
        self._sum_NW.index_add_(0, self._item_P[rows], new - self._vector_PW[rows])
        self._vector_PW[rows] = new
