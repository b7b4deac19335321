"""The query encoder: text vectors in the caption space and the media spaces, and hidden states.

The lower half of MiniLM is shared and frozen. Its upper half exists twice: frozen, for the
untrained sentence vectors; and tuned, for the *query tower*. The tuned sentence vectors are
compared with caption vectors that the same encoder made, and heads map them into the fixed media
spaces, so that a search never loads the embedder.
Shape legend: B batch, S tokens, D vector width, W encoder width, F width of the heads' features.
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
LOG_SCALES = {"media": 3.0, "caption": 3.0, "beside": 2.5}
"""Logarithms of the factors of cosines before training: of media vectors alone, of captions, and of
media vectors beside captions."""
_STEEPEST = 100.0
"""Greatest factor of a cosine."""


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


def pooled(states_BSW: Tensor, mask_BS: Tensor) -> Tensor:
    """Sentence vectors (B, W): mean states of the tokens, at unit length."""
    weight = mask_BS[:, :, None].float()
    return F.normalize((states_BSW.float() * weight).sum(1) / weight.sum(1), dim=-1)


class QueryEncoder(nn.Module):
    """Encodes texts as queries; its upper half and its heads are trained.

    Args:
        text: The pretrained text encoder.
        spaces: Width D of each media space that gets a head.
        compute: Where it lies, and in which number format it computes.

    Attributes:
        tunes_captions: Whether the caption space is that of the tuned sentence vectors, in which
            stored captions are then encoded anew; else that of the untrained ones.
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
        self.log_scales = nn.ParameterDict(
            {name: nn.Parameter(torch.tensor(start)) for name, start in LOG_SCALES.items()}
        )
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
        return pooled(x_BSW, mask_BS)

    def tune(self, x_BSW: Tensor, mask_BS: Tensor) -> list[Tensor]:
        """Hidden states (B, S, W) after each layer of the tuned upper half."""
        states = []
        for layer in self.tuned:
            x_BSW = layer(x_BSW, mask_BS[:, None, None, :])
            states.append(x_BSW)
        return states

    def scales(self) -> dict[str, Tensor]:
        """The learned factors of cosines, by the names of `LOG_SCALES`."""
        return {name: log.exp().clamp(max=_STEEPEST) for name, log in self.log_scales.items()}

    def features(self, tuned_BW: Tensor, text_BW: Tensor, noise: float = 0.0) -> Tensor:
        """Features (B, F) that the heads read: tuned and frozen sentence vectors, F = 2W.

        Args:
            noise: Length of the Gaussian noise that is added to both unit vectors; the strongest
                regulariser that was found (docs/experiments.md).
        """
        parts = [tuned_BW, text_BW]
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
            tuned = pooled(states[-1], mask_BS)
            features = self.features(tuned, text)
            media = {space: head(features) for space, head in self.heads.items()}
            caption = tuned if self.tunes_captions else text
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
