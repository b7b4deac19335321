"""How long a training takes at most: its phases, forecast from a measurement of this machine.

Costs are counted in *layer tokens*: one token that goes through one layer of the query encoder,
forward and back. `python benchmarks/training_phases.py` records what phases cost.
"""

from __future__ import annotations

import numpy as np

from cart_qdrant.compute import Compute, layer_token_seconds
from cart_qdrant.progress import ExpectedPhase
from cart_qdrant.search.fusion import MEANINGFUL
from cart_qdrant.training.corpus import Corpus
from cart_qdrant.training.distillation import DISTILL_UNTIL
from cart_qdrant.training.options import TrainOptions
from cart_qdrant.training.query_encoder import QueryEncoder
from cart_qdrant.training.split import Split

SAMPLE = 2_000
"""Texts whose length is looked at."""
READ_TOKEN, READ_ANCHORS = 2.7, 39_000.0
"""Of a caption's token that is read once, and of the embedder's own texts."""
TOWER_TOKEN, TOWER_ANCHORS = 3.5, 6_700.0
"""Of a step of the query tower: each token, and texts that are distilled."""
ENCODE_TEXT = 45.0
"""Of a text that is encoded as a query."""
STORE_CAPTIONS = 9.0
"""Of an item whose captions are stored anew."""
IDENTIFIERS, IDENTIFY_ITEM = 1_000.0, 9.0
"""Of identifiers, and of each item that gets one."""
GENERATOR_TOKEN, GENERATOR_ROW = 0.75, 23.0
"""Of a step of the generator: each token, and each caption or item."""
CALIBRATION, CALIBRATE_QUERY = 20_000.0, 200.0
"""Of the calibration, and of each held-out query."""


def forecast(
    corpus: Corpus, split: Split, encoder: QueryEncoder, options: TrainOptions
) -> list[ExpectedPhase]:
    """The phases of a training in their order. A stage that stops early takes less."""
    tower, generator = options.settings
    pairs = len(split.train_P)
    lengths = _lengths(corpus, encoder)
    distilled = pairs < DISTILL_UNTIL
    tower_step = TOWER_TOKEN * _padded(lengths, _rows(pairs, tower.batch))
    tower_step += TOWER_ANCHORS if distilled else 0.0
    batch = _rows(pairs, generator.batch)
    generator_step = GENERATOR_TOKEN * _padded(lengths, batch)
    generator_step += GENERATOR_ROW * (batch + generator.own_share * generator.batch)
    held_out = len(corpus.texts) - pairs
    tunes = len(split.epoch_pairs.seen_P) >= MEANINGFUL  # else stored captions stay as they are
    costs = {
        "reading captions": READ_TOKEN * float(lengths.mean()) * len(corpus.texts)
        + (READ_ANCHORS if distilled else 0.0),
        "query tower": tower_step * _steps(pairs, tower.batch, tower.epochs, tower.min_steps),
        "encoding captions as queries": ENCODE_TEXT * len(set(corpus.texts)),
        **({"caption vectors": STORE_CAPTIONS * len(corpus)} if tunes else {}),
        "identifiers": IDENTIFIERS + IDENTIFY_ITEM * len(corpus),
        "generator": generator_step
        * _steps(pairs, generator.batch, generator.epochs, generator.min_steps),
        "calibration": CALIBRATION + CALIBRATE_QUERY * held_out,
    }
    each = layer_token_seconds(encoder.compute)
    return [ExpectedPhase(name, cost * each) for name, cost in costs.items()]


def in_words(seconds: float, compute: Compute) -> str:
    """A forecast for people: `about 6 minutes at most on cpu, bfloat16`."""
    minutes = round(seconds / 60)
    time = f"{max(10, round(seconds, -1)):.0f} seconds" if seconds < 90 else f"{minutes} minutes"
    return f"about {time} at most on {compute}"


def _lengths(corpus: Corpus, encoder: QueryEncoder) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Tokens of some texts, rising; of one, if there is none."""
    texts = corpus.texts[:: max(1, len(corpus.texts) // SAMPLE)]
    return np.sort([float(len(ids)) for ids in encoder.tokenize(texts)] or [1.0])


def _padded(lengths: np.ndarray[tuple[int], np.dtype[np.float64]], batch: int) -> float:
    """Tokens of a batch, with its padding: texts of similar length are together."""
    blocks = max(1, round(len(lengths) / max(batch, 1)))
    return batch * float(np.mean([block[-1] for block in np.array_split(lengths, blocks)]))


def _rows(pairs: int, batch: int) -> int:
    """Pairs of a step, in the mean."""
    return round(pairs / max(1, -(-pairs // batch)))


def _steps(pairs: int, batch: int, epochs: int, at_least: int) -> int:
    """Steps of whole epochs."""
    per_epoch = max(1, -(-pairs // batch))
    return per_epoch * max(epochs, -(-at_least // per_epoch))
