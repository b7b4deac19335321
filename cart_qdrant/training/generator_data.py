"""What the generator is trained and measured on: pairs, codes of items, and the prior's logits.

Shape legend: B batch, P pairs, N items, L levels, V codes, S tokens, W encoder and caption vector
width, D vector width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
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
        query_PD: Query vector of each pair in its item's media space.
        name_N: Identifier space of each item.
        codes_NL: Codes of each item.
        scale: Multiplies the prior's inner products.
        captions: Returns the query vectors (B, W) of pairs in the caption space; None where no
            identifiers are made of captions.
    """

    encoder: QueryEncoder
    corpus: Corpus
    split: Split
    states: TextStates
    codec: Codec
    query_PD: FloatArray
    name_N: npt.NDArray[np.str_]
    codes_NL: IntArray
    scale: float
    captions: Callable[[IndexArray], FloatArray] | None = None

    def blocks(self, rows: IndexArray, size: int = 64) -> Iterator[tuple[str, IndexArray]]:
        """Blocks of pairs whose items are of one identifier space: the space, and positions in
        `rows`."""
        names = self.name_N[self.corpus.item_P[rows]]
        for name in np.unique(names):
            mine = np.flatnonzero(names == name)
            for begin in range(0, len(mine), size):
                yield str(name), mine[begin : begin + size]

    def levels(self, name: str, rows: IndexArray) -> list[FloatArray]:
        """Prior logits (B, V) of each level for pairs whose items are of one identifier space."""
        caption_BW = None if self.captions is None else self.captions(rows)
        return self._levels(name, self.query_PD[rows], caption_BW)

    def prior(self, rows: IndexArray) -> list[Tensor]:
        """Prior logits (B, V) of each level for pairs, each in its item's identifier space."""
        caption_BW = None if self.captions is None else self.captions(rows)
        return self.prior_of(self.query_PD[rows], self.corpus.item_P[rows], caption_BW)

    def prior_of(
        self, q_BD: FloatArray, item_B: IndexArray, caption_BW: FloatArray | None = None
    ) -> list[Tensor]:
        """The same for any query vectors.

        Args:
            q_BD: Query vectors in the items' media spaces.
            item_B: The items.
            caption_BW: Query vectors in the caption space; None where the queries are no texts.
        """
        names = self.name_N[item_B]
        out: list[FloatArray] = []
        for name in np.unique(names):
            rows = names == name
            some = None if caption_BW is None else caption_BW[rows]
            levels = self._levels(str(name), q_BD[rows], some)
            if not out:
                out = [np.empty((len(q_BD), x.shape[1]), dtype=np.float32) for x in levels]
            for target, level in zip(out, levels, strict=True):
                target[rows] = np.maximum(level, MISSING)
        return [self.encoder.compute.tensor(level) for level in out]

    def _levels(
        self, name: str, q_BD: FloatArray, caption_BW: FloatArray | None
    ) -> list[FloatArray]:
        quantizer = self.codec.quantizers[name]
        u_BD = quantizer.parts.of_queries(q_BD, caption_BW, quantizer.dim)
        if u_BD is None:  # identifiers of captions alone say nothing to what is no text
            u_BD = np.zeros((len(q_BD), quantizer.dim), np.float32)
        return prior_logits(self.codec, {name: u_BD}, name, self.scale)


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
