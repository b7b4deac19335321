"""Prior of identifiers: what the code vectors say about a query vector, and the tree's nodes
about every query.

Shape legend: B queries, V codes, D vector width.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from cart_qdrant.index.identifiers import Codec
from cart_qdrant.index.trie import Trie

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]

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


def node_gains(trie: Trie, weight: float) -> list[FloatArray]:
    """What each node adds to a beam that enters it, level by level.

    Along a path they sum to `-weight * (hubness - mean of all)` of the identifier; on the way, to
    that of the mean identifier under the node. A beam thus knows early which branches every query
    leads to, which the code vectors alone do not tell (docs/experiments.md).
    """
    hubs = trie.node_hubs()
    out: list[FloatArray] = []
    for n, hub in enumerate(hubs):
        before: FloatArray | float = float(trie.hub_mean())
        if n:
            first = trie.levels[n - 1].first
            before = np.repeat(hubs[n - 1], np.diff(first))
        out.append((-weight * (hub - before)).astype(np.float32))
    return out
