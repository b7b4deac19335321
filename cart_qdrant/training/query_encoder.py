"""The query encoder: text vectors in the caption space and the media spaces, and hidden states.

The lower half of MiniLM is shared and frozen. Its upper half exists twice: frozen, for the
sentence vectors that caption vectors are made of; and tuned, for the *query tower*, whose heads
land in the fixed media spaces and in the fixed caption space. Stored vectors never change,
and a search never loads the embedder.
Shape legend: B batch, S tokens, D vector width, W encoder width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.compute import Compute
from cart_qdrant.embedders.text.minilm import Bert, TextEncoder

SHARED = 3
"""Layers of the lower, frozen half."""
HIDDEN = 1024


class Head(nn.Module):
    """Maps sentence features into a media space: a linear map plus a small two-layer correction."""

    def __init__(self, width: int, dim: int, dropout: float = 0.3) -> None:
        super().__init__()
        self.skip = nn.Linear(width, dim)
        self.up = nn.Linear(width, HIDDEN)
        self.down = nn.Linear(HIDDEN, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BW: Tensor) -> Tensor:
        """Unit vectors (B, D)."""
        y = self.skip(x_BW) + self.down(self.dropout(F.gelu(self.up(x_BW))))
        return F.normalize(y.float(), dim=-1)


class CaptionHead(nn.Module):
    """Maps sentence features into the caption space: the frozen sentence vector plus a two-layer
    correction that starts at zero."""

    def __init__(self, width: int, dropout: float = 0.3) -> None:
        super().__init__()
        self.up = nn.Linear(2 * width, HIDDEN)
        self.down = nn.Linear(HIDDEN, width)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, x_BW: Tensor) -> Tensor:
        """Unit vectors (B, W) of features (B, 2W) that `QueryEncoder.features` made."""
        text_BW = x_BW[:, x_BW.shape[1] // 2 :].float()
        y = self.down(self.dropout(F.gelu(self.up(x_BW))))
        return F.normalize(text_BW + y.float(), dim=-1)


@dataclass(frozen=True, slots=True)
class Queries:
    """Encoded queries.

    Attributes:
        text_BW: Sentence vectors of the frozen encoder.
        caption_BW: Vectors to compare with caption vectors.
        media: Query vectors (B, D) in each media space that has a head.
        hidden_states: Hidden states E1, E2, E3 (B, S, W) for the generator.
        mask_BS: True where there is a token.
    """

    text_BW: Tensor
    caption_BW: Tensor
    media: Mapping[str, Tensor]
    hidden_states: tuple[Tensor, ...]
    mask_BS: Tensor


def _pooled(states_BSW: Tensor, mask_BS: Tensor) -> Tensor:
    weight = mask_BS[:, :, None].float()
    return F.normalize((states_BSW.float() * weight).sum(1) / weight.sum(1), dim=-1)


class QueryEncoder(nn.Module):
    """Encodes texts as queries; its upper half and its heads are trained.

    Args:
        text: The pretrained text encoder.
        spaces: Width D of each media space that gets a head.
        compute: Where it lies, and in which number format it computes.

    Attributes:
        tunes_captions: Whether stored captions are encoded by the output `caption`, as queries are;
            else they are sentence vectors of the frozen encoder, which `caption` is trained to
            find.
    """

    tunes_captions = False

    def __init__(
        self, text: TextEncoder, spaces: Mapping[str, int], compute: Compute | None = None
    ) -> None:
        super().__init__()
        self.compute = compute or Compute()
        bert = text.bert_on(self.compute.device)
        self.tokenizer = text.tokenizer
        self.tokenize = text.tokenize
        self.width = text.dim
        self._bert = [bert]  # in a list, so that the frozen encoder is no part of our state
        self.tuned = nn.ModuleList(copy.deepcopy(layer) for layer in bert.layers[SHARED:])
        self.tuned.requires_grad_(True)
        self.heads = nn.ModuleDict(
            {space: Head(2 * text.dim, dim) for space, dim in spaces.items()}
        )
        self.caption = CaptionHead(text.dim)
        self.log_scale = nn.Parameter(torch.tensor(3.0))
        self.log_caption_scale = nn.Parameter(torch.tensor(3.0))
        self.to(self.compute.device)

    @property
    def bert(self) -> Bert:
        """The frozen encoder."""
        return self._bert[0]

    @torch.no_grad()
    def shared(self, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        """States (B, S, W) after the frozen lower half."""
        bert = self.bert
        x: Tensor = (
            bert.words(ids_BS) + bert.positions.weight[: ids_BS.shape[1]] + bert.types.weight[0]
        )
        x = bert.norm(x)
        for layer in bert.layers[:SHARED]:
            x = layer(x, mask_BS[:, None, None, :])
        return x

    @torch.no_grad()
    def sentence(self, x_BSW: Tensor, mask_BS: Tensor) -> Tensor:
        """Sentence vectors (B, W) by the frozen upper half."""
        for layer in self.bert.layers[SHARED:]:
            x_BSW = layer(x_BSW, mask_BS[:, None, None, :])
        return _pooled(x_BSW, mask_BS)

    def tune(self, x_BSW: Tensor, mask_BS: Tensor) -> list[Tensor]:
        """Hidden states (B, S, W) after each layer of the tuned upper half."""
        states = []
        for layer in self.tuned:
            x_BSW = layer(x_BSW, mask_BS[:, None, None, :])
            states.append(x_BSW)
        return states

    def features(
        self, top_BSW: Tensor, mask_BS: Tensor, text_BW: Tensor, noise: float = 0.0
    ) -> Tensor:
        """Features (B, 2W) that the heads read: tuned and frozen sentence vectors.

        Args:
            noise: Length of the Gaussian noise that is added to both unit vectors; the strongest
                regulariser that was found (docs/experiments.md).
        """
        parts = [_pooled(top_BSW, mask_BS), text_BW]
        if noise:
            parts = [
                F.normalize(p + noise * torch.randn_like(p) / p.shape[1] ** 0.5, dim=-1)
                for p in parts
            ]
        return torch.cat(parts, dim=-1)

    @torch.inference_mode()
    def encode(self, ids: Sequence[Sequence[int]]) -> Queries:
        """Encode one batch of tokenised queries."""
        ids_BS, mask_BS = (x.to(self.compute.device) for x in pad(ids))
        with self.compute.autocast():
            low = self.shared(ids_BS, mask_BS)
            text = self.sentence(low, mask_BS)
            states = self.tune(low, mask_BS)
            features = self.features(states[-1], mask_BS, text)
            media = {space: head(features) for space, head in self.heads.items()}
            caption = self.caption(features)
        return Queries(text, caption, media, (low, states[-2], states[-1]), mask_BS)

    def batches(
        self, texts: Sequence[str], batch: int = 256
    ) -> Iterator[tuple[list[int], Queries]]:
        """Encode many texts in batches of similar length; yields (positions in `texts`, batch)."""
        ids = self.tokenize(texts)
        order = sorted(range(len(ids)), key=lambda n: len(ids[n]))
        for begin in range(0, len(order), batch):
            rows = order[begin : begin + batch]
            yield rows, self.encode([ids[n] for n in rows])

    def media_vectors(self, texts: Sequence[str], space: str) -> FloatArray:
        """Unit vectors (B, D) of many texts in a media space that has a head."""
        parts = [(rows, found.media[space]) for rows, found in self.batches(texts)]
        order = np.argsort(np.concatenate([rows for rows, _ in parts]))
        x_BD = torch.cat([x for _, x in parts]).float().cpu().numpy()
        return np.asarray(x_BD[order], dtype=np.float32)


def pad(ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids (B, S) and mask (B, S) of sequences of unequal length."""
    longest = max(map(len, ids))
    ids_BS = torch.zeros(len(ids), longest, dtype=torch.long)
    mask_BS = torch.zeros(len(ids), longest, dtype=torch.bool)
    for row, one in enumerate(ids):
        ids_BS[row, : len(one)] = torch.tensor(list(one))
        mask_BS[row, : len(one)] = True
    return ids_BS, mask_BS
