"""Prior of identifiers: what the code vectors say about a query vector, and the tree's nodes
about every query.

Shape legend: B queries, V codes, D vector width, R nodes of one level.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cart_qdrant.arrays.types import FloatArray, IndexArray
from cart_qdrant.identifiers.codec import Codec
from cart_qdrant.identifiers.trie import Trie

HUB = 0.8
"""Share of hubness that is taken from an inner product in decoding (docs/experiments.md)."""


def level_sizes(codec: Codec) -> list[int]:
    """Codes per semantic level over all spaces."""
    return [codec.coarse, *([codec.codes] * (codec.levels - 1))]


def prior_logits(
    codec: Codec, queries: Mapping[str, FloatArray], space: str, scale: float
) -> list[FloatArray]:
    """Logits (B, V) of each level for decoding within one space.

    Codes of other spaces and spare codes are -inf.
    """
    quantizer = codec.quantizers[space]
    q_BD = queries[space]
    out: list[FloatArray] = []
    for level, (size, scores) in enumerate(
        zip(level_sizes(codec), quantizer.level_scores(q_BD), strict=True)
    ):
        logits = np.full((len(q_BD), size), -np.inf, dtype=np.float32)
        begin = quantizer.offset if level == 0 else 0
        logits[:, begin : begin + scores.shape[1]] = scale * scores
        out.append(logits)
    return out


@dataclass(frozen=True, slots=True)
class NodeGains:
    """What each node of a tree adds to a beam that enters it.

    Along a path they sum to `-weight * (hubness - mean of all)` of the identifier; on the way, to
    that of the mean identifier under the node. A beam thus knows early which branches every query
    leads to, which the code vectors alone do not tell (docs/experiments.md). They are told of the
    nodes that are asked about: those of all would take longer than a search.
    """

    trie: Trie
    weight: float

    def hub(self, level: int, node_R: IndexArray) -> FloatArray:
        """Mean hubness (R,) under nodes of a level; of all under the root, whose level is -1."""
        if level < 0:
            return np.full(len(node_R), self.trie.hub_mean or 0.0, dtype=np.float32)
        return self.trie.hub(level, node_R)

    def enter(self, hub_R: FloatArray, before_R: FloatArray) -> FloatArray:
        """Gains (R,) of nodes of this hubness under nodes of that."""
        gain = hub_R - before_R
        gain *= -self.weight
        return gain
