"""Signs of a generator that fails, measured at the end of training; `read_signs` judges them.

Shape legend: B queries, L levels, V codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cart_qdrant.arrays.types import IndexArray
from cart_qdrant.generator.network import Generator, GeneratorScorer
from cart_qdrant.generator.prior import prior_logits
from cart_qdrant.identifiers.trie import Trie
from cart_qdrant.training.generator_fit import GeneratorData, pair_loss, read_hidden_states
from cart_qdrant.training.query_encoder import QueryEncoder

LOOKED_AT = 400
"""Pairs of each kind."""


def measure_diagnostics(
    generator: Generator,
    encoder: QueryEncoder,
    data: GeneratorData,
    trie: Trie,
    gates: Sequence[float],
    seed: int,
) -> dict[str, Any]:
    """Losses on seen and unseen pairs, and how often free decoding writes a stored identifier.

    Args:
        gates: Weight of the correction at each level.
    """
    rng = np.random.default_rng(seed)
    split = data.split
    losses = {
        name: round(pair_loss(generator, encoder, data, rng.permutation(rows)[:LOOKED_AT]), 4)
        for name, rows in (("train", split.train_P), ("new", split.new_P), ("known", split.known_P))
        if len(rows)
    }
    asked = rng.permutation(split.new_P if len(split.new_P) else split.train_P)[:LOOKED_AT]
    valid = _valid(generator, encoder, data, trie, gates, asked) if len(asked) else None
    return {"loss": losses, "valid": valid}


def _valid(
    generator: Generator,
    encoder: QueryEncoder,
    data: GeneratorData,
    trie: Trie,
    gates: Sequence[float],
    rows: IndexArray,
) -> float:
    """Share of queries whose likeliest codes, chosen level by level without the tree, are the
    semantic part of a stored identifier."""
    stored = {row.tobytes() for row in np.ascontiguousarray(trie.rows()[:, :-1])}
    found = 0
    for space, places in data.blocks(rows):
        if space not in data.codec.quantizers:
            continue
        part = rows[places]
        q_BD = data.query_PD[part]
        levels = prior_logits(data.codec, {space: q_BD}, space, data.scale)
        hidden_states, mask = read_hidden_states(encoder, data, part)
        scorer = GeneratorScorer.of(generator, hidden_states, mask, q_BD, levels, gates)
        each = np.arange(len(part))
        codes_BL = np.empty((len(part), 0), dtype=np.int32)
        for level in range(len(levels)):
            best_B1 = scorer(level, each, codes_BL, each).argmax(axis=1)[:, None]
            codes_BL = np.concatenate([codes_BL, best_B1.astype(np.int32)], axis=1)
        found += sum(row.tobytes() in stored for row in np.ascontiguousarray(codes_BL))
    return round(found / len(rows), 4)
