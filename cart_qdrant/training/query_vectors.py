"""Query vectors of training texts, by the graph that searches run.

A graph of int8 weights gives other vectors than the encoder that it was made of, by a cosine of
.995: what is fitted to vectors is fitted to those that a search will have.
Shape legend: P pairs, B of them, U different texts, D vector width, W caption vector width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cart_qdrant.arrays.types import FloatArray, IndexArray
from cart_qdrant.embedders.zero_shot import TextAnchors
from cart_qdrant.generator.encoder import EncodedTexts, OnnxQueryEncoder
from cart_qdrant.progress import Reporter
from cart_qdrant.search.fusion import blend
from cart_qdrant.training.corpus import Corpus

_BLOCK = 1_024


@dataclass(frozen=True, slots=True)
class QueryVectors:
    """The vectors of the pairs' texts, each different text encoded once.

    Attributes:
        encoder: Runs the graph.
        texts: The different texts (U).
        text_P: Number of each pair's text.
        caption_UW: Their vectors in the caption space.
        tower: Their vectors (U, D) by the trained tower, by media space.
        untrained: Their vectors (U, D) by the embedder's own texts; empty where it has none.
        zero_shot: Share of the untrained query vectors, see `fusion.blend`.
    """

    encoder: OnnxQueryEncoder
    texts: Sequence[str]
    text_P: IndexArray
    caption_UW: FloatArray
    tower: Mapping[str, FloatArray]
    untrained: Mapping[str, FloatArray]
    zero_shot: float

    @classmethod
    def encode(
        cls,
        encoder: OnnxQueryEncoder,
        texts: Sequence[str],
        anchors: TextAnchors | None,
        zero_shot: float,
        reporter: Reporter,
    ) -> QueryVectors:
        """Encode the texts of all pairs (P).

        Args:
            anchors: Give the untrained vectors; None where the tower's are used alone.
        """
        number: dict[str, int] = {}
        text_P = np.asarray([number.setdefault(text, len(number)) for text in texts], np.intp)
        different = list(number)
        reporter.phase("encoding captions as queries", len(different))
        blocks: list[EncodedTexts] = []
        for begin in range(0, len(different), _BLOCK):
            blocks.append(encoder.encode(different[begin : begin + _BLOCK]))
            reporter.advance(len(blocks[-1].text_BW))
        if not blocks:
            none = np.empty((0, 0), np.float32)
            return cls(encoder, [], text_P, none, {}, {}, zero_shot)
        untrained: dict[str, FloatArray] = {}
        if anchors is not None and zero_shot:
            for space in encoder.spaces:
                found = [anchors.embed(block.text_BW, space) for block in blocks]
                known = [q_BD for q_BD in found if q_BD is not None]
                if known:
                    untrained[space] = np.concatenate(known)
        return cls(
            encoder,
            different,
            text_P,
            np.concatenate([block.caption_BW for block in blocks]),
            {s: np.concatenate([block.media[s] for block in blocks]) for s in encoder.spaces},
            untrained,
            zero_shot,
        )

    def media(self, rows: IndexArray, space: str) -> FloatArray:
        """Query vectors (B, D) of the texts of pairs `rows` in a media space."""
        texts = self.text_P[rows]
        untrained = self.untrained.get(space)
        return blend(
            self.tower[space][texts],
            None if untrained is None else untrained[texts],
            self.zero_shot,
        )

    def caption(self, rows: IndexArray) -> FloatArray:
        """Query vectors (B, W) of the texts of pairs `rows` in the caption space."""
        return self.caption_UW[self.text_P[rows]]

    def of_pairs(self, corpus: Corpus) -> FloatArray:
        """Query vector (P, D) of each pair in its item's space; zeros in a space that the tower
        does not reach."""
        out = np.zeros((len(corpus.texts), corpus.vectors.x_ND.shape[1]), dtype=np.float32)
        for space in self.tower:
            rows = np.flatnonzero(corpus.vectors.spaces[corpus.item_P] == space)
            if len(rows):
                out[rows] = self.media(rows, space)
        return out

    def with_hidden_states(self, rows: IndexArray) -> EncodedTexts:
        """The texts of pairs `rows` encoded again, with the states that the generator reads; the
        states of all texts would take a gigabyte for each ten thousand."""
        texts = [self.texts[n] for n in self.text_P[rows].tolist()]
        return self.encoder.encode(texts, hidden_states=True)
