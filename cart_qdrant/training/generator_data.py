"""What the generator is trained and measured on: pairs, codes of items, and the prior's logits.

Shape legend: B batch, P pairs, N items, L levels, V codes, S tokens, W encoder width,
D vector width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cart_qdrant.arrays.types import FloatArray, IndexArray, IntArray
from cart_qdrant.generator.prior import prior_logits
from cart_qdrant.identifiers.quantizer import Codec
from cart_qdrant.training.corpus import Corpus
from cart_qdrant.training.query_encoder import QueryEncoder
from cart_qdrant.training.split import Split
from cart_qdrant.training.text_states import TextStates

MISSING = -30.0
"""Prior logit of codes of other spaces, and of clusters that are too far from the query to be
looked at; finite, so that losses stay so."""


@dataclass(frozen=True, slots=True)
class GeneratorData:
    """What the generator is trained and measured on.

    Attributes:
        encoder: The trained query encoder, whose hidden states the generator reads.
        corpus: Items and texts.
        split: Which pairs train.
        states: The texts, as the encoder reads them.
        codec: Codebooks of the identifiers.
        query_PD: Query vector of each pair in its item's space.
        codes_NL: Codes of each item.
        scale: Multiplies the prior's inner products.
    """

    encoder: QueryEncoder
    corpus: Corpus
    split: Split
    states: TextStates
    codec: Codec
    query_PD: FloatArray
    codes_NL: IntArray
    scale: float

    def blocks(self, rows: IndexArray, size: int = 64) -> Iterator[tuple[str, IndexArray]]:
        """Blocks of pairs whose items are of one space: the space, and positions in `rows`."""
        spaces = self.corpus.vectors.spaces[self.corpus.item_P[rows]]
        for space in np.unique(spaces):
            mine = np.flatnonzero(spaces == space)
            for begin in range(0, len(mine), size):
                yield str(space), mine[begin : begin + size]

    def prior(self, q_BD: FloatArray, item_B: IndexArray) -> list[Tensor]:
        """Prior logits (B, V) of each level, each row in its item's space."""
        spaces = self.corpus.vectors.spaces[item_B]
        out: list[FloatArray] = []
        for space in np.unique(spaces):
            rows = spaces == space
            levels = prior_logits(self.codec, {str(space): q_BD[rows]}, str(space), self.scale)
            if not out:
                out = [np.empty((len(q_BD), x.shape[1]), dtype=np.float32) for x in levels]
            for target, level in zip(out, levels, strict=True):
                target[rows] = np.maximum(level, MISSING)
        return [self.encoder.compute.tensor(level) for level in out]


@torch.no_grad()
def read_hidden_states(data: GeneratorData, rows: IndexArray) -> tuple[tuple[Tensor, ...], Tensor]:
    """Hidden states (B, S, W) of the pairs' texts, one a fused layer, and their mask (B, S)."""
    low, mask, _ = data.states.get(rows)
    with data.encoder.compute.autocast():
        states = data.encoder.tune(low, mask)
    return (low.float(), states[-2].float(), states[-1].float()), mask


def reachable(prior_BV: Tensor, code_B: Tensor) -> Tensor:
    """Whether a search may take the right code of each row (B,)."""
    return prior_BV.gather(1, code_B[:, None])[:, 0] > MISSING
