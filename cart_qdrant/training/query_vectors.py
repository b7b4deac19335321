"""Query vectors of training texts, by the graph that searches run.

A graph of int8 weights gives other vectors than the encoder that it was made of, by a cosine of
.995: what is fitted to vectors is fitted to those that a search will have.
Shape legend: P pairs, B of them, U different texts, D vector width, W caption vector width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from cart_qdrant.arrays.types import FloatArray, IndexArray
from cart_qdrant.embedders.zero_shot import TextAnchors
from cart_qdrant.generator.encoder import EncodedTexts, OnnxQueryEncoder
from cart_qdrant.progress import Reporter
from cart_qdrant.search.fusion import ANCHORS, EMBEDDER, blend
from cart_qdrant.training.corpus import Corpus

_BLOCK = 1_024


@dataclass(frozen=True, slots=True)
class QueryVectors:
    """The vectors of the pairs' texts, each different text encoded once.

    Attributes:
        encoder: Runs the graph.
        texts: The different texts (U).
        text_P: Number of each pair's text.
        text_UW: Their sentence vectors by the frozen encoder.
        caption_UW: Their vectors in the caption space.
        tower: Their vectors (U, D) by the trained tower, by media space.
        untrained: Their vectors (U, D) by the embedder's own texts; empty where they are not used.
        zero_shot: Share of the untrained query vectors, see `fusion.blend`.
        zero_shot_by: What gives these, see `fusion.Calibration`.
    """

    encoder: OnnxQueryEncoder
    texts: Sequence[str]
    text_P: IndexArray
    text_UW: FloatArray
    caption_UW: FloatArray
    tower: Mapping[str, FloatArray]
    untrained: Mapping[str, FloatArray] = field(default_factory=dict)
    zero_shot: float = 0.0
    zero_shot_by: str = ANCHORS

    @classmethod
    def encode(
        cls, encoder: OnnxQueryEncoder, texts: Sequence[str], reporter: Reporter
    ) -> QueryVectors:
        """Encode the texts of all pairs (P), by the tower alone."""
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
            return cls(encoder, [], text_P, none, none, {})
        return cls(
            encoder,
            different,
            text_P,
            np.concatenate([block.text_BW for block in blocks]),
            np.concatenate([block.caption_BW for block in blocks]),
            {s: np.concatenate([block.media[s] for block in blocks]) for s in encoder.spaces},
        )

    def by_sentences(self, encoder: OnnxQueryEncoder) -> QueryVectors:
        """The same where the caption space is that of sentence vectors.

        Args:
            encoder: Runs a graph that differs in this alone.
        """
        return replace(self, encoder=encoder, caption_UW=self.text_UW)

    def by_anchors(self, anchors: TextAnchors, zero_shot: float) -> QueryVectors:
        """The same with a share of the vectors that anchors give."""
        untrained: dict[str, FloatArray] = {}
        for space in self.tower:
            found = [
                anchors.embed(self.text_UW[begin : begin + _BLOCK], space)
                for begin in range(0, len(self.texts), _BLOCK)
            ]
            known = [q_BD for q_BD in found if q_BD is not None]
            if known:
                untrained[space] = np.concatenate(known)
        return replace(self, untrained=untrained, zero_shot=zero_shot, zero_shot_by=ANCHORS)

    def by_embedder(
        self,
        exact: Mapping[str, FloatArray],
        rows: IndexArray,
        anchors: TextAnchors,
        zero_shot: float,
    ) -> QueryVectors:
        """The same with a share of the embedder's own vectors, where they are known: of pairs
        `rows` (B, D) and of the texts that are anchors. Those of other texts stay as they are."""
        number = {text: n for n, text in enumerate(anchors.texts)}
        here = [n for n, text in enumerate(self.texts) if text in number]
        untrained: dict[str, FloatArray] = {}
        for space, q_UD in self.untrained.items():
            untrained[space] = q_UD.copy()
            untrained[space][here] = anchors.values[space][[number[self.texts[n]] for n in here]]
            untrained[space][self.text_P[rows]] = exact[space]
        return replace(self, untrained=untrained, zero_shot=zero_shot, zero_shot_by=EMBEDDER)

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
