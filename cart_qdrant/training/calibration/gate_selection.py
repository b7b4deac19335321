"""Whether the generator's correction of the prior is worth its time, by held-out queries.

Gates are fitted to make held-out identifiers likely. What a search returns is reranked by vector,
so a likelier identifier may change nothing, and the correction takes most of a decoding.
Shape legend: B queries, N items, L levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cart_qdrant.arrays.types import FloatArray, IndexArray
from cart_qdrant.generator.beam_search import Beams, places
from cart_qdrant.generator.decode import decode
from cart_qdrant.generator.network import Generator
from cart_qdrant.generator.prior import NodeGains
from cart_qdrant.identifiers.codec import Codec
from cart_qdrant.identifiers.trie import Trie
from cart_qdrant.search.fusion import Calibration
from cart_qdrant.training.generator_fit import GeneratorData, read_hidden_states
from cart_qdrant.training.query_encoder import QueryEncoder

LEAST = 0.01
"""Recall at 10 that the correction must add."""
BLOCK = 64


@dataclass(frozen=True, slots=True)
class Stratum:
    """Held-out queries of one kind.

    Attributes:
        rows: Their pairs (B).
        media: Their vectors (B, D) in each media space.
        share: How often such queries are asked.
    """

    rows: IndexArray
    media: Mapping[str, FloatArray]
    share: float


@dataclass(frozen=True, slots=True)
class Decoder:
    """Decodes held-out queries as searches will."""

    encoder: QueryEncoder
    generator: Generator
    data: GeneratorData
    trie: Trie
    codec: Codec
    base: Calibration
    gains: NodeGains

    def beams(self, stratum: Stratum, gates: Sequence[float]) -> list[Beams]:
        """Beams of each query of a stratum."""
        out: list[Beams] = []
        for begin in range(0, len(stratum.rows), BLOCK):
            here = slice(begin, begin + BLOCK)
            hidden_states, mask = read_hidden_states(self.encoder, self.data, stratum.rows[here])
            out += decode(
                self.trie, self.codec, {space: q[here] for space, q in stratum.media.items()},
                scale=self.base.scale, width=self.base.beams, gates=gates,
                generator=lambda: self.generator, hidden_states=hidden_states, mask_BS=mask,
                gains=self.gains,
            )  # fmt: skip
        return out

    def judge(
        self, strata: Mapping[str, Stratum], rows_NL: npt.NDArray[np.int32]
    ) -> tuple[list[float], dict[str, list[Beams]]]:
        """The gates that searches use, those fitted or none, and the beams of each stratum.

        Args:
            strata: Held-out queries.
            rows_NL: Identifier of each item.
        """
        gates = self.base.gates
        beams = {name: self.beams(one, gates) for name, one in strata.items()}
        if not any(gates):
            return gates, beams
        none = [0.0] * len(gates)
        prior = {name: self.beams(one, none) for name, one in strata.items()}
        place_of = places(rows_NL)
        gain = sum(
            one.share
            * (self._recall(one, beams[name], place_of) - self._recall(one, prior[name], place_of))
            for name, one in strata.items()
        )
        if gain < LEAST * sum(one.share for one in strata.values()):
            return none, prior
        return gates, beams

    def _recall(
        self, stratum: Stratum, beams: Sequence[Beams], place_of: Mapping[bytes, int]
    ) -> float:
        """Recall at 10 of what beams name, in the order of its cosines."""
        vectors = self.data.corpus.vectors
        right_B = self.data.corpus.item_P[stratum.rows]
        hits = 0
        for b, (found, right) in enumerate(zip(beams, right_B, strict=True)):
            space = str(vectors.spaces[right])
            named = found.items(place_of)
            named = named[vectors.spaces[named] == space]
            if space in stratum.media and right in named:
                cosines = vectors.x_ND[named] @ stratum.media[space][b]
                hits += int((cosines > cosines[named == right]).sum() < 10)
        return hits / len(right_B)
