"""First stage: the query tower, and its graph, through which all later stages read texts."""

from __future__ import annotations

from cart_qdrant.embedders.text.folder import text_encoder_folder
from cart_qdrant.generator.encoder import OnnxQueryEncoder
from cart_qdrant.training.distillation import DistillationTargets
from cart_qdrant.training.export import query_graph
from cart_qdrant.training.query_source import choose_source
from cart_qdrant.training.query_vectors import QueryVectors
from cart_qdrant.training.stages.state import Run, TrainedTower, TrainingData
from cart_qdrant.training.tower import TowerTrainer

UNTRAINED_SCALE = 20.0
"""Scale of the cosines where no text reaches a media space."""


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
        scale = float(data.encoder.log_scale.detach().exp().clamp(max=100))
    graph = query_graph(data.encoder)
    tower = QueryVectors.encode(
        OnnxQueryEncoder(graph, text_encoder_folder()), data.corpus.texts, run.reporter
    )
    queries = choose_source(
        run.index, data.corpus, data.split, tower, data.text_anchors, data.zero_shot,
        run.options.seed,
    )  # fmt: skip
    return TrainedTower(graph, queries, queries.of_pairs(data.corpus), scale, val_r10)
