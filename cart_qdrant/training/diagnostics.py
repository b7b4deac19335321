"""Training diagnostics: what is measured at the end of a training.

`evaluation.training_diagnostics` says what it means. Shape legend: B queries, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cart_qdrant.arrays.types import IndexArray
from cart_qdrant.generator.network import Generator, GeneratorScorer
from cart_qdrant.identifiers.trie import Trie
from cart_qdrant.training.generator_data import GeneratorData, read_hidden_states
from cart_qdrant.training.generator_fit import pair_loss

PAIRS = 400
"""Pairs of each sort that are measured."""


def measure_diagnostics(
    generator: Generator, data: GeneratorData, trie: Trie, gates: Sequence[float], seed: int
) -> dict[str, Any]:
    """Losses on training pairs and on held-out ones, and how often free decoding, without the tree,
    writes a stored identifier.

    Args:
        generator: The trained network.
        data: What it was trained on.
        trie: The stored identifiers.
        gates: Weight of the correction at each level.
        seed: Of the sample of pairs.
    """
    rng = np.random.default_rng(seed)
    split = data.split
    unseen_P = split.report.unseen_P
    strata = {"train": split.train_P, **split.report.strata}
    losses = {
        name: round(pair_loss(generator, data, rng.permutation(rows)[:PAIRS]), 4)
        for name, rows in strata.items()
        if len(rows)
    }
    asked = rng.permutation(unseen_P if len(unseen_P) else split.train_P)[:PAIRS]
    valid = _valid(generator, data, trie, gates, asked) if len(asked) else None
    return {"loss": losses, "valid_identifiers": valid}


def _valid(
    generator: Generator,
    data: GeneratorData,
    trie: Trie,
    gates: Sequence[float],
    rows: IndexArray,
) -> float:
    """Share of queries whose likeliest codes, chosen level by level without the tree, are the codes
    of a stored identifier."""
    stored = {row.tobytes() for row in np.ascontiguousarray(trie.rows()[:, :-1])}
    found = 0
    for name, positions in data.blocks(rows):
        part = rows[positions]
        q_BD, levels = data.query_PD[part], data.levels(name, part)
        hidden_states, mask = read_hidden_states(data, part)
        scorer = GeneratorScorer.of(generator, hidden_states, mask, q_BD, levels, gates)
        each = np.arange(len(part))
        codes_BL = np.empty((len(part), 0), dtype=np.int32)
        for level in range(len(levels)):
            best_B1 = scorer(level, each, codes_BL, each).argmax(axis=1)[:, None]
            codes_BL = np.concatenate([codes_BL, best_B1.astype(np.int32)], axis=1)
        found += sum(row.tobytes() in stored for row in np.ascontiguousarray(codes_BL))
    return round(found / len(rows), 4)
