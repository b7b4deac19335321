"""Fourth stage: the generator, on the identifiers of the third."""

from __future__ import annotations

import hashlib

import numpy as np

from cart_qdrant.generator.network import Generator, GeneratorConfig
from cart_qdrant.generator.prior import level_sizes
from cart_qdrant.training.generator_data import GeneratorData
from cart_qdrant.training.generator_fit import GeneratorTrainer
from cart_qdrant.training.seeding import seeded
from cart_qdrant.training.stages.state import (
    FittedIdentifiers,
    Run,
    TrainedGenerator,
    TrainedTower,
    TrainingData,
)


def train_generator(
    run: Run, data: TrainingData, tower: TrainedTower, identifiers: FittedIdentifiers
) -> TrainedGenerator:
    """Train the correction of the prior that the query vectors and the identifiers give."""
    codes_NL = np.ascontiguousarray(identifiers.rows_NL[:, :-1])
    pairs = GeneratorData(
        data.encoder, data.corpus, data.split, data.states, identifiers.codec, tower.query_PD,
        identifiers.name_N, codes_NL, tower.scale, tower.queries.caption,
    )  # fmt: skip
    with seeded(run.options.seed + 1):
        network = Generator(
            GeneratorConfig(
                sizes=tuple(level_sizes(identifiers.codec)),
                media_dim=run.index.manifest.embedder.dim,
                text_width=data.encoder.width,
            ),
            run.compute,
        )
    _, config = run.options.settings
    digest = hashlib.blake2b(identifiers.rows_NL.tobytes(), digest_size=8).hexdigest()
    trainer = GeneratorTrainer(network, pairs, config, run.options.seed)
    trainer.train(run.resumable("generator", f"{data.fingerprint} {digest}"))
    return TrainedGenerator(network, pairs)
