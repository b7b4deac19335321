"""Queries to beams: one decoding per media space, merged per query.

Shape legend: B queries, D vector width, L levels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cart_qdrant.arrays.types import FloatArray, MaskArray
from cart_qdrant.extras import require
from cart_qdrant.generator.beam_search import Beams, PriorScorer, beam_search
from cart_qdrant.generator.prior import NodeGains, prior_logits
from cart_qdrant.identifiers.codec import Codec
from cart_qdrant.identifiers.trie import Trie

if TYPE_CHECKING:
    from torch import Tensor

    from cart_qdrant.generator.network import Generator


WIDEST = 2_000
"""Beams of the prior at most; so many take it about two milliseconds."""


CALIBRATED = 10_000
"""Items up to which the calibrated number of beams is enough."""


def beams_for(calibrated: int, items: int) -> int:
    """Beams for a collection: more with the cube root of its size, or ever less of what is near
    would be named (docs/experiments.md)."""
    growth = float(max(1.0, items / CALIBRATED) ** (1 / 3))
    return max(calibrated, min(WIDEST, round(calibrated * growth)))


def decode(
    trie: Trie,
    codec: Codec,
    media: Mapping[str, FloatArray],
    *,
    scale: float,
    width: int,
    gates: Sequence[float],
    generator: Callable[[], Generator] | None = None,
    hidden_states: Sequence[FloatArray] | Sequence[Tensor] | None = None,
    mask_BS: MaskArray | Tensor | None = None,
    gains: NodeGains | None = None,
    widen: float = 1.0,
) -> list[Beams]:
    """Identifiers for each query, best first.

    Args:
        media: Query vectors (B, D) in each space that is reached.
        scale: Multiplies inner products.
        width: Beams of a query in each space, by the prior and again by the correction.
        gates: Weight of the generator's correction per level; all zero never runs it.
        generator: Gives the generator when it is to run.
        taps: Text states of the queries; without them a generator reads their vectors alone.
        gains: Of the tree's nodes.
        widen: Multiplies the prior's beams, up to `WIDEST`: where a filter lets only a part of the
            items through, most beams name none of them.
    """
    per_space: list[list[Beams]] = []
    wide = max(width, min(WIDEST, round(width * widen)))
    for space, q_BD in media.items():
        if space not in codec.quantizers:
            continue
        levels = prior_logits(codec, media, space, scale)
        found = beam_search(trie, PriorScorer(levels), len(q_BD), wide, gains)
        if generator is not None and any(gates):
            require("train", "torch")
            from cart_qdrant.generator.network import GeneratorScorer

            scorer = GeneratorScorer.of(generator(), hidden_states, mask_BS, q_BD, levels, gates)
            corrected = beam_search(trie, scorer, len(q_BD), width, gains)
            found = [_union(a, b) for a, b in zip(corrected, found, strict=True)]
        per_space.append(found)
    if not per_space:
        return []
    return [_merge(found) for found in zip(*per_space, strict=True)]


def _union(corrected: Beams, prior: Beams) -> Beams:
    """Beams of both, each with the greater of its shares.

    Items whose captions were learned would otherwise push new ones off the beams.
    """
    both = Beams.joined([corrected, prior])
    _, first = np.unique(both.leaf_K, return_index=True)
    kept = np.sort(first)
    return Beams(both.rows_KL[kept], both.scores_K[kept], both.leaf_K[kept])


def _merge(found: Sequence[Beams]) -> Beams:
    """Beams of several spaces: each space's shares count equally."""
    return found[0] if len(found) == 1 else Beams.joined(found)
