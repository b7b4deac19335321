"""The losses of the query tower: each text is to find its item among all items.

Two conditional logits over the items of a media space (InfoNCE, van den Oord et al.,
arXiv 1807.03748). The *media* loss compares the text with the items' media vectors alone, as a
search for items without a caption does: `softmax_i(s h(q) . x_i)`. The *list-wise* loss compares it
with both vectors of an item, as a search for items with captions does:
`softmax_i(a q . m_i + b h(q) . x_i)`, where `m_i` is the mean of the item's captions by the same
encoder, without the text that asks. So the encoder is tuned for queries and for stored captions at
once. Shape legend: B pairs of a batch, N items, M of them, D vector width, W caption vector width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from cart_qdrant.arrays.types import IndexArray, MaskArray
from cart_qdrant.training.caption_bank import CaptionBank
from cart_qdrant.training.corpus import Corpus
from cart_qdrant.training.query_encoder import QueryEncoder
from cart_qdrant.training.shared_texts import SharedTexts

NEGATIVES = 8_192
"""Items of a larger collection that a batch is contrasted with."""
_EXCLUDED = -1e4
"""Logit of an item that is no wrong answer; finite, so that losses stay so."""


@dataclass(frozen=True, slots=True)
class _Space:
    """The items of one media space that a text is contrasted with.

    Attributes:
        items: Their numbers (M,), ascending.
        row_N: Row of each item of the corpus among them, else -1.
        x_MD: Their media vectors.
    """

    items: IndexArray
    row_N: IndexArray
    x_MD: Tensor


class TowerLoss:
    """The losses of batches of training pairs.

    Args:
        encoder: Is trained.
        corpus: Items and texts.
        train_P: The training pairs.
        bank: Caption vectors of the training pairs.
    """

    def __init__(
        self, encoder: QueryEncoder, corpus: Corpus, train_P: IndexArray, bank: CaptionBank
    ) -> None:
        self._encoder, self._corpus, self._bank = encoder, corpus, bank
        self._shared = SharedTexts.of(corpus, train_P)
        # An item without a training text is no negative: it would be pushed away from all texts,
        # also from those that ask for it.
        has_text = np.zeros(len(corpus), dtype=bool)
        has_text[corpus.item_P[train_P]] = True
        self._spaces: dict[str, _Space] = {}
        for space in encoder.heads:
            items = np.flatnonzero((corpus.vectors.spaces == space) & has_text)
            row = np.full(len(corpus), -1, dtype=np.intp)
            row[items] = np.arange(len(items))
            x_MD = encoder.compute.tensor(corpus.vectors.x_ND[items])
            self._spaces[space] = _Space(items, row, x_MD)

    def __call__(
        self, caption_BW: Tensor, feature_BF: Tensor, batch: IndexArray, rng: np.random.Generator
    ) -> list[Tensor]:
        """Losses of a batch, to be summed.

        Args:
            caption_BW: The texts in the caption space, as the encoder is now.
            feature_BF: What the heads of the media spaces read.
            batch: The pairs.
            rng: Chooses among more than `NEGATIVES` items.
        """
        losses: list[Tensor] = []
        spaces = self._corpus.vectors.spaces[self._corpus.item_P[batch]]
        for name, space in self._spaces.items():
            rows = np.flatnonzero(spaces == name)
            if len(rows):
                q_BD = self._encoder.heads[name](feature_BF[rows])
                for each in self._of_space(space, caption_BW[rows], q_BD, batch[rows], rng):
                    losses.append(each.sum() / len(batch))
        return losses

    def _of_space(
        self,
        space: _Space,
        caption_BW: Tensor,
        q_BD: Tensor,
        batch: IndexArray,
        rng: np.random.Generator,
    ) -> list[Tensor]:
        """Media loss of each pair, and list-wise loss of those whose item has other captions."""
        corpus, tensor = self._corpus, self._encoder.compute.tensor
        scales = self._encoder.scales()
        items = corpus.item_P[batch]
        chosen, target = _contrast(space, items, rng)
        cosine_BM = q_BD @ space.x_MD[tensor(chosen)].T
        excluded = self._shared.shares_text(batch, space.row_N, chosen)
        excluded[np.arange(len(batch)), target] = False
        trust_B = tensor(corpus.trust_P[batch])
        media = scales["media"] * cosine_BM
        losses = [_cross_entropy(media, excluded, target, tensor) * trust_B]
        rows = np.flatnonzero(self._bank.several_N[items])
        if len(rows):
            among = space.items[chosen]
            # Segments of one file share captions: the others are no wrong answers.
            same = corpus.file_N[among][None, :] == corpus.file_N[items[rows]][:, None]
            same[np.arange(len(rows)), target[rows]] = False
            similar_BM = caption_BW[rows] @ self._bank.means(among).T
            own_B = (caption_BW[rows] * self._bank.others(batch[rows])).sum(dim=1)
            similar_BM = similar_BM.scatter(1, tensor(target[rows])[:, None], own_B[:, None])
            both = scales["caption"] * similar_BM + scales["beside"] * cosine_BM[rows]
            found = _cross_entropy(both, excluded[rows] | same, target[rows], tensor)
            losses.append(found * trust_B[rows])
        return losses


def _contrast(
    space: _Space, items: IndexArray, rng: np.random.Generator
) -> tuple[IndexArray, IndexArray]:
    """Rows (M,) of the items of a space that a batch is contrasted with, and the position (B,) of
    each pair's own item among them."""
    target, count = space.row_N[items], len(space.items)
    if count <= NEGATIVES:
        return np.arange(count), target
    chosen = np.union1d(rng.choice(count, NEGATIVES, replace=False), target)
    return chosen, np.searchsorted(chosen, target)


def _cross_entropy(
    logits_BM: Tensor, excluded_BM: MaskArray, target_B: IndexArray, tensor: Callable[[Any], Tensor]
) -> Tensor:
    """Cross-entropy (B,) of each row, without the items that are excluded from it."""
    if excluded_BM.any():
        logits_BM = logits_BM.masked_fill(tensor(excluded_BM), _EXCLUDED)
    return F.cross_entropy(logits_BM, tensor(target_B), reduction="none")
