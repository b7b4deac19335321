"""The prior of identifiers: what code vectors say about a query, and tree nodes about every query.

Shape legend: B queries, V codes, D vector width, R nodes of one level.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cart_qdrant.arrays.types import FloatArray, IndexArray
from cart_qdrant.identifiers.quantizer import Codec
from cart_qdrant.identifiers.trie import Trie

HUB = 0.8
"""Share of the hubness that decoding subtracts from an inner product (docs/experiments.md)."""


def level_sizes(codec: Codec) -> list[int]:
    """Number of codes at each semantic level, over all identifier spaces."""
    return [codec.coarse, *([codec.codes] * (codec.levels - 1))]


def prior_logits(
    codec: Codec, queries: Mapping[str, FloatArray], space: str, scale: float
) -> list[FloatArray]:
    """Logits (B, V) of each level for decoding within one identifier space.

    Codes of other spaces and spare codes are -inf.

    Args:
        queries: Query vectors (B, D) in each identifier space, see `Codec.queries`.
        scale: Factor of the inner products.
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
class NodeBonus:
    """What each node of a tree adds to the score of a beam that enters it, whatever the query.

    Along a path the bonuses sum to `-weight * (hubness - mean hubness)` of the identifier; at an
    inner node, to that of the mean identifier under it. A beam thus knows early which branches
    every query leads to, which the code vectors alone do not tell (docs/experiments.md). Bonuses
    are computed for the nodes that a search visits: those of all nodes would take longer than the
    search.

    Attributes:
        trie: The tree, with the hubness of its identifiers.
        weight: Factor of the hubness.
    """

    trie: Trie
    weight: float

    def hub(self, level: int, node_R: IndexArray) -> FloatArray:
        """Mean hubness (R,) under nodes of a level; of all under the root, whose level is -1."""
        if level < 0:
            return np.full(len(node_R), self.trie.hub_mean or 0.0, dtype=np.float32)
        return self.trie.hub(level, node_R)

    def enter(self, hub_R: FloatArray, parent_hub_R: FloatArray) -> FloatArray:
        """Bonuses (R,) of nodes, from their mean hubness and that of their parents."""
        bonus = hub_R - parent_hub_R
        bonus *= -self.weight
        return bonus
