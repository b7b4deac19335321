"""First stage: the query tower, and its graph, through which all later stages read texts."""

from __future__ import annotations

import numpy as np

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.arrays.vectors import unit
from cart_qdrant.embedders.text.folder import text_encoder_folder
from cart_qdrant.generator.encoder import OnnxQueryEncoder
from cart_qdrant.search.fusion import MEANINGFUL
from cart_qdrant.training.corpus import caption_sums
from cart_qdrant.training.distillation import DistillationTargets
from cart_qdrant.training.export import query_graph
from cart_qdrant.training.query_source import choose_source
from cart_qdrant.training.query_vectors import QueryVectors
from cart_qdrant.training.ranks import found, ranks_in
from cart_qdrant.training.stages.state import Run, TrainedTower, TrainingData
from cart_qdrant.training.tower import TowerTrainer

UNTRAINED_SCALE = 20.0
"""Scale of the cosines where no text reaches a media space."""
_BLOCK = 64
"""Queries that are compared with all items at once."""


def train_tower(run: Run, data: TrainingData) -> TrainedTower:
    """Train the encoder of `data`, and make the query vectors of all pairs with its graph."""
    targets = DistillationTargets.of(data.encoder, data.text_anchors, data.spaces)
    config, _ = run.options.settings
    trainer = TowerTrainer(
        data.encoder, data.corpus, data.split, data.states, config, targets, run.options.seed
    )
    scale, val_r10 = UNTRAINED_SCALE, 0.0
    if data.spaces:
        val_r10 = trainer.train(run.resumable("tower", data.fingerprint))
        scale = float(data.encoder.scales()["media"].detach())
    data.encoder.tunes_captions = may_tune_captions(data)
    graph = query_graph(data.encoder)
    queries = QueryVectors.encode(_encoder(graph), data.corpus.texts, run.reporter)
    if data.encoder.tunes_captions and not tuning_pays(data, queries):
        data.encoder.tunes_captions = False
        graph = query_graph(data.encoder)
        queries = queries.by_sentences(_encoder(graph))
    queries = choose_source(
        run.index, data.corpus, data.split, queries, data.text_anchors, data.zero_shot,
        run.options.seed,
    )  # fmt: skip
    return TrainedTower(graph, queries, queries.of_pairs(data.corpus), scale, val_r10)


def _encoder(graph: bytes) -> OnnxQueryEncoder:
    return OnnxQueryEncoder(graph, text_encoder_folder())


def may_tune_captions(data: TrainingData) -> bool:
    """Whether enough captions are held out to see what tuning does to stored captions: else they
    stay as they are."""
    return len(data.split.epoch_pairs.seen_P) >= MEANINGFUL


def tuning_pays(data: TrainingData, queries: QueryVectors) -> bool:
    """Whether held-out captions find their items by the other captions better with the tuned
    vectors than with the untrained ones."""
    every = np.arange(len(data.corpus.texts))
    tuned, untrained = (
        _caption_recall(data, text_PW) for text_PW in (queries.caption(every), data.states.text_PW)
    )
    return tuned > untrained


def _caption_recall(data: TrainingData, text_PW: FloatArray) -> float:
    """R@1 + R@10 of held-out captions by the mean vectors of the items' training captions."""
    corpus, split = data.corpus, data.split
    asked = split.epoch_pairs.seen_P
    sums, _ = caption_sums(corpus, text_PW, split.train_P)
    mean_NW = unit(sums)
    each = [
        found(ranks_in(text_PW[some] @ mean_NW.T, corpus.item_P[some]))
        for some in (asked[begin : begin + _BLOCK] for begin in range(0, len(asked), _BLOCK))
    ]
    return float(np.concatenate(each).mean())
