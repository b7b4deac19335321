"""Query vectors of training texts, as a search makes them.

Shape legend: P pairs, B of them, D vector width, W caption vector width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cart_qdrant.arrays.types import FloatArray, IndexArray
from cart_qdrant.embedders.zero_shot import TextAnchors
from cart_qdrant.search.fusion import blend
from cart_qdrant.training.corpus import Corpus
from cart_qdrant.training.query_encoder import QueryEncoder
from cart_qdrant.training.text_states import TextStates
from cart_qdrant.training.tower import tower_vectors


@dataclass(frozen=True, slots=True)
class QueryVectors:
    """Makes the query vectors of texts.

    Attributes:
        encoder: The trained query encoder.
        states: The texts.
        text_anchors: Gives the untrained query vectors; None where the tower's are used alone.
        zero_shot: Share of the untrained query vectors, see `fusion.blend`.
    """

    encoder: QueryEncoder
    states: TextStates
    text_anchors: TextAnchors | None
    zero_shot: float

    def media(self, rows: IndexArray, space: str) -> FloatArray:
        """Query vectors (B, D) of texts `rows` in a media space."""
        untrained = None
        if self.text_anchors is not None and self.zero_shot:
            untrained = self.text_anchors.embed(self.states.text_PW[rows], space)
        return blend(tower_vectors(self.encoder, self.states, rows, space), untrained,
                     self.zero_shot)  # fmt: skip

    def caption(self, rows: IndexArray) -> FloatArray:
        """Query vectors (B, W) of texts `rows` in the caption space."""
        return tower_vectors(self.encoder, self.states, rows, None)

    def of_pairs(self, corpus: Corpus) -> FloatArray:
        """Query vector (P, D) of each pair in its item's space; zeros in a space that the tower
        does not reach."""
        out = np.zeros((len(corpus.texts), corpus.vectors.x_ND.shape[1]), dtype=np.float32)
        for space in self.encoder.heads:
            rows = np.flatnonzero(corpus.vectors.spaces[corpus.item_P] == space)
            if len(rows):
                out[rows] = self.media(rows, space)
        return out
