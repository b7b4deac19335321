"""Gate selection: how much of the generator's correction of the prior a search uses, if any.

Gates are fitted to make held-out identifiers likely. The candidates of a search are reranked by
their vectors, so a likelier identifier may change nothing, while the correction takes most of the
time of decoding: it is kept only where it adds recall.
Shape legend: B queries, N items, L levels, V codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from cart_qdrant.arrays.types import FloatArray, IndexArray, IntArray
from cart_qdrant.generator.beam_search import Beams, positions
from cart_qdrant.generator.decode import IdentifierDecoder
from cart_qdrant.generator.network import Generator
from cart_qdrant.generator.prior import NodeBonus
from cart_qdrant.identifiers.trie import Trie
from cart_qdrant.search.fusion import Calibration
from cart_qdrant.training.generator_data import GeneratorData, reachable
from cart_qdrant.training.query_vectors import QueryVectors

LEAST_GAIN = 0.01
"""Recall at 10 that the correction must add."""
BLOCK = 64
"""Queries that are decoded together."""


def fit_gates(
    corrections: Sequence[torch.Tensor],
    priors: Sequence[torch.Tensor],
    targets: Sequence[torch.Tensor],
) -> list[float]:
    """Gate of each level, within [0, 1], that makes held-out identifiers likeliest.

    Args:
        corrections: Correction logits (B, V) of each level, given the right prefixes.
        priors: Prior logits (B, V) of each level.
        targets: Right codes (B,) of each level.
    """
    gates = []
    for correction, prior, target in zip(corrections, priors, targets, strict=True):
        reached = reachable(prior, target)
        if not reached.any():
            gates.append(0.0)
            continue
        losses = [
            float(F.cross_entropy((prior + gate * correction)[reached], target[reached]))
            for gate in np.linspace(0, 1, 11)
        ]
        gates.append(float(np.argmin(losses)) / 10)
    return gates


@dataclass(frozen=True, slots=True)
class Stratum:
    """Held-out queries for items without, or with, training captions.

    Attributes:
        rows: Pairs that the queries are the texts of (B,).
        media: Query vectors (B, D) by media space.
        share: Assumed share of such queries among all.
    """

    rows: IndexArray
    media: Mapping[str, FloatArray]
    share: float


@dataclass(frozen=True, slots=True)
class GateSelection:
    """Decodes held-out queries as searches will, with and without the correction.

    Attributes:
        queries: The queries, as searches encode them.
        base: Scale of the prior, beam width and fitted gates.
        node_bonus: Node bonus of the tree.
    """

    generator: Generator
    data: GeneratorData
    queries: QueryVectors
    trie: Trie
    base: Calibration
    node_bonus: NodeBonus

    def beams(self, stratum: Stratum, gates: Sequence[float]) -> list[Beams]:
        """Beams of each query of a stratum, decoded with some gates."""
        decoder = IdentifierDecoder(
            trie=self.trie, codec=self.data.codec, scale=self.base.scale, width=self.base.beams,
            gates=gates, generator=lambda: self.generator, node_bonus=self.node_bonus,
        )  # fmt: skip
        out: list[Beams] = []
        for begin in range(0, len(stratum.rows), BLOCK):
            here = slice(begin, begin + BLOCK)
            media = {space: q[here] for space, q in stratum.media.items()}
            caption_BW = self.queries.caption(stratum.rows[here])
            if any(gates):
                found = self.queries.with_hidden_states(stratum.rows[here])
                states = (found.hidden_states, found.mask_BS)
                out += decoder.decode(media, *states, caption_BW=caption_BW)
            else:
                out += decoder.decode(media, caption_BW=caption_BW)
        return out

    def select(
        self, strata: Mapping[str, Stratum], rows_NL: IntArray
    ) -> tuple[list[float], dict[str, list[Beams]]]:
        """The gates that searches use, which are those fitted or zeros, and each stratum's beams.

        Args:
            strata: Held-out queries by name.
            rows_NL: Identifier of each item.
        """
        gates = self.base.gates
        beams = {name: self.beams(one, gates) for name, one in strata.items()}
        if not any(gates):
            return gates, beams
        none = [0.0] * len(gates)
        prior = {name: self.beams(one, none) for name, one in strata.items()}
        item_of = positions(rows_NL)
        gain = sum(
            one.share
            * (self._recall(one, beams[name], item_of) - self._recall(one, prior[name], item_of))
            for name, one in strata.items()
        )
        if gain < LEAST_GAIN * sum(one.share for one in strata.values()):
            return none, prior
        return gates, beams

    def _recall(
        self, stratum: Stratum, beams: Sequence[Beams], item_of: Mapping[bytes, int]
    ) -> float:
        """Recall at 10 of the items that the beams name, ordered by cosine."""
        vectors = self.data.corpus.vectors
        right_B = self.data.corpus.item_P[stratum.rows]
        hits = 0
        for b, (found, right) in enumerate(zip(beams, right_B, strict=True)):
            space = str(vectors.spaces[right])
            named = found.items(item_of)
            named = named[vectors.spaces[named] == space]
            if space in stratum.media and right in named:
                cosines = vectors.x_ND[named] @ stratum.media[space][b]
                hits += int((cosines > cosines[named == right]).sum() < 10)
        return hits / len(right_B)
