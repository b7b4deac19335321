"""Third stage: identifiers in the metric of the queries, and the bank that hubness is measured by.

Shape legend: N items, P pairs, D vector width, L levels.
"""

from __future__ import annotations

import numpy as np

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.identifiers.codec import IdentifierConfig, fit_codec
from cart_qdrant.identifiers.hubness import BANK, CAPTION, FileArray, QueryBank, media_space
from cart_qdrant.identifiers.quantizer import Codec
from cart_qdrant.index.identify import prepare
from cart_qdrant.training.stages.state import (
    FittedIdentifiers,
    Run,
    StoredCaptions,
    TrainedTower,
    TrainingData,
)

SHARPNESS = 1.5
"""Sharpness of hubness in media spaces, in units of the tower's scale (docs/experiments.md)."""
METRIC_FROM = 500
"""Queries of a media space from which their covariance gives the metric of its identifiers."""


def fit_identifiers(
    run: Run, data: TrainingData, tower: TrainedTower, captions: StoredCaptions
) -> FittedIdentifiers:
    """Fit identifiers and write them, with hubness, under the next payload field."""
    run.reporter.phase("identifiers", None)
    codec = _codec(run.options.seed, data, tower)
    bank = _query_bank(run.options.seed, data, tower)
    prepared = prepare(run.index, data.corpus.vectors, codec, bank, captions.vector)
    items = prepared.items
    return FittedIdentifiers(
        prepared.info, codec, prepared.trie, bank, items.row_CL, items.media_hub_C,
        items.caption_hub_C,
    )  # fmt: skip


def _codec(seed: int, data: TrainingData, tower: TrainedTower) -> Codec:
    """Identifiers fitted in the metric of the queries, so that codes lie where queries lie."""
    corpus, train_P = data.corpus, data.split.train_P
    metrics: dict[str, FloatArray] = {}
    for space in np.unique(corpus.vectors.spaces):
        rows = train_P[corpus.vectors.spaces[corpus.item_P[train_P]] == space]
        if len(rows) >= METRIC_FROM:
            q = tower.query_PD[rows].astype(np.float64)
            covariance = q.T @ q / len(q)
            values, axes = np.linalg.eigh(covariance)
            floor = 0.05 * values.mean()
            root = axes * np.sqrt(np.maximum(values, 0) + floor) @ axes.T
            metrics[str(space)] = root.astype(np.float32)
    config = IdentifierConfig(seed=seed, method="rkmeans")
    return fit_codec(corpus.vectors.by_space(), config, metrics)


def _query_bank(seed: int, data: TrainingData, tower: TrainedTower) -> QueryBank:
    """Training queries, as a search makes them, in every space."""
    corpus, encoder, train_P = data.corpus, data.encoder, data.split.train_P
    file_P = corpus.vectors.file_N[corpus.item_P]
    banks: dict[str, FloatArray] = {}
    sharpness: dict[str, float] = {}
    owners: dict[str, FileArray] = {}
    for space in encoder.heads:
        rows = train_P[corpus.vectors.spaces[corpus.item_P[train_P]] == space]
        banks[media_space(space)] = tower.query_PD[rows]
        owners[media_space(space)] = file_P[rows]
        sharpness[media_space(space)] = SHARPNESS * tower.scale
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(train_P)[:BANK])
    banks[CAPTION], owners[CAPTION] = tower.queries.caption(chosen), file_P[chosen]
    sharpness[CAPTION] = float(encoder.scales()["caption"].detach())
    return QueryBank.sample(banks, sharpness, owners, seed)
