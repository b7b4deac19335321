"""Token ids and frozen hidden states of texts, computed once for all epochs.

Shape legend: P texts, S tokens, W encoder width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from cart_qdrant.arrays.types import IndexArray
from cart_qdrant.training.query_encoder import QueryEncoder, pad

CACHED_BYTES = 1_500_000_000
"""More hidden states (of 2 million tokens in bfloat16) are not kept, but computed in each epoch."""


class TextStates:
    """Hidden states after the encoder's frozen lower half, and sentence vectors, of many texts."""

    def __init__(self, encoder: QueryEncoder, texts: Sequence[str]) -> None:
        self._encoder = encoder
        self.ids = encoder.tokenize(texts)
        self.lengths = np.asarray([len(i) for i in self.ids], dtype=np.intp)
        self.text_PW = np.zeros((len(texts), encoder.width), dtype=np.float32)
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])
        total = int(self._starts[-1])
        self._cache: Tensor | None = None
        if total * encoder.width * encoder.compute.format.itemsize <= CACHED_BYTES:
            compute = encoder.compute
            self._cache = torch.empty(
                total, encoder.width, dtype=compute.format, device=compute.device
            )
        for rows in self.batches(np.arange(len(texts)), 256, None):
            low, mask = self._compute(rows)
            with encoder.compute.autocast():
                self.text_PW[rows] = encoder.sentence(low, mask).cpu().numpy()
            if self._cache is not None:
                for n, row in enumerate(rows):
                    begin, count = self._starts[row], self.lengths[row]
                    self._cache[begin : begin + count] = low[n, :count]

    def _compute(self, rows: IndexArray) -> tuple[Tensor, Tensor]:
        compute = self._encoder.compute
        ids_BS, mask_BS = (x.to(compute.device) for x in pad([self.ids[r] for r in rows]))
        with compute.autocast():
            return self._encoder.shared(ids_BS, mask_BS), mask_BS

    def get(self, rows: IndexArray) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states (B, S, W), mask (B, S) and sentence vectors (B, W) of some texts."""
        compute = self._encoder.compute
        text = compute.tensor(self.text_PW[rows])
        if self._cache is None:
            low, mask = self._compute(rows)
            return low, mask, text
        longest = int(self.lengths[rows].max())
        low = self._cache.new_zeros(len(rows), longest, self._encoder.width)
        mask = torch.zeros(len(rows), longest, dtype=torch.bool)
        for n, row in enumerate(rows):
            count = self.lengths[row]
            low[n, :count] = self._cache[self._starts[row] : self._starts[row] + count]
            mask[n, :count] = True
        return low, mask.to(compute.device), text

    def batches(
        self, rows: IndexArray, size: int, rng: np.random.Generator | None
    ) -> Iterator[IndexArray]:
        """Batches of texts of similar length; with `rng` they are shuffled, and lengths mix."""
        jitter = rng.random(len(rows)) * 3 if rng is not None else 0
        order = rows[np.argsort(self.lengths[rows] + jitter, kind="stable")]
        blocks = [order[n : n + size] for n in range(0, len(order), size)]
        if rng is not None:
            rng.shuffle(blocks)
        yield from blocks
