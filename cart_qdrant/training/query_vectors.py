"""Query vectors of training texts, as a search makes them.

Shape legend: P pairs, B of them, D vector width.
"""

from __future__ import annotations

import numpy as np

from cart_qdrant.arrays.types import FloatArray, IndexArray
from cart_qdrant.embedders.zero_shot import TextAnchors
from cart_qdrant.search.fusion import blend
from cart_qdrant.training.corpus import Corpus
from cart_qdrant.training.query_encoder import QueryEncoder
from cart_qdrant.training.text_states import TextStates
from cart_qdrant.training.tower import tower_vectors


def blended_vectors(
    encoder: QueryEncoder,
    states: TextStates,
    rows: IndexArray,
    space: str,
    text_anchors: TextAnchors | None,
    share: float,
) -> FloatArray:
    """Query vectors (B, D) of texts `rows` in a media space.

    Args:
        lexicon: Gives the untrained vectors; None for the tower's alone.
        share: Of the untrained vectors, see `fusion.blend`.
    """
    untrained = None if text_anchors is None else text_anchors.embed(states.text_PW[rows], space)
    return blend(tower_vectors(encoder, states, rows, space), untrained, share)


def pair_vectors(
    encoder: QueryEncoder,
    corpus: Corpus,
    states: TextStates,
    text_anchors: TextAnchors | None,
    share: float,
) -> FloatArray:
    """Query vector (P, D) of each pair in its item's space; zero where no text reaches that."""
    out = np.zeros((len(corpus.texts), corpus.vectors.x_ND.shape[1]), dtype=np.float32)
    for space in encoder.heads:
        rows = np.flatnonzero(corpus.vectors.spaces[corpus.item_P] == space)
        if len(rows):
            out[rows] = blended_vectors(encoder, states, rows, space, text_anchors, share)
    return out
