"""Third stage: identifiers in the metric of the queries, and the bank that hubness is measured by.

The later stages learn from a view of the index without its held-out captions: an item that is held
out counts as one without a caption, and a caption that is held out is left out of its item's mean.
The identifiers that are stored are made by the same codebooks of all captions.
Shape legend: N items, P pairs, D vector width, W caption vector width, L levels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cart_qdrant.arrays.spill import SpillBuffer
from cart_qdrant.arrays.types import FloatArray, IndexArray, MaskArray
from cart_qdrant.identifiers.codec import DisambiguationTokens, IdentifierConfig, fit_codec
from cart_qdrant.identifiers.hubness import BANK, CAPTION, FileArray, QueryBank, media_space
from cart_qdrant.identifiers.parts import MEDIA_ALONE, Parts, captioned, uncaptioned
from cart_qdrant.identifiers.quantizer import Codec
from cart_qdrant.identifiers.trie import Trie
from cart_qdrant.index.collection import TEXT_DIM
from cart_qdrant.index.identifier_writes import encode
from cart_qdrant.index.identify import prepare
from cart_qdrant.index.points import BLOCK
from cart_qdrant.training.corpus import Corpus, caption_vectors
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
"""Queries of an identifier space from which their covariance gives the metric of its
identifiers."""
METRIC_QUERIES = 50_000
"""Queries that the covariance is made of, at most."""
CAPTIONED_FROM = 20
"""Items with captions of a media space from which they have identifiers of their own."""
CAPTIONED_CODES = 256
"""Codes of a residual level, at least, of identifiers that are made of captions: their order of the
items that they name gains much by finer codes, where that of media vectors does not
(docs/experiments.md)."""


def fit_identifiers(
    run: Run, data: TrainingData, tower: TrainedTower, captions: StoredCaptions
) -> FittedIdentifiers:
    """Fit identifiers and write them, with hubness, under the next payload field."""
    run.reporter.phase("identifiers", None)
    vectors = data.corpus.vectors
    caption_NW, known_N = training_captions(run, data, captions)
    codec = _codec(run, data, tower, caption_NW, known_N)
    bank = _query_bank(run.options.seed, data, tower)
    prepared = prepare(run.index, vectors, codec, bank, captions.vector)
    rows_NL, trie = prepared.items.row_CL, prepared.trie
    if codec.reads_captions:
        codes_NL = encode(codec, vectors.x_ND, vectors.spaces, caption_NW)
        rows_NL = DisambiguationTokens().complete(codes_NL)
        trie = Trie.build(rows_NL, hub_N=prepared.items.media_hub_C)
    caption_hub_N = bank.hubness(caption_NW, CAPTION, vectors.file_N)
    caption_hub_N[~known_N] = np.nan
    return FittedIdentifiers(
        prepared.info, codec, trie, bank, codec.names(vectors.spaces, known_N), rows_NL,
        prepared.items.media_hub_C, caption_NW, known_N, caption_hub_N,
    )  # fmt: skip


def training_captions(
    run: Run, data: TrainingData, captions: StoredCaptions
) -> tuple[FloatArray, MaskArray]:
    """Mean caption vector of each item (N, W), of the captions that train, and which items have one
    (N,): zero and none in an index that keeps no captions, or for labels that are not stored."""
    corpus = data.corpus
    keep_P = np.zeros(len(corpus.texts), dtype=bool)
    if run.index.keeps_captions:
        keep_P[data.split.train_P] = True
        keep_P &= corpus.captioned[corpus.item_P]
    if not keep_P.any():
        return np.zeros((len(corpus), TEXT_DIM), np.float32), np.zeros(len(corpus), bool)
    return caption_vectors(corpus, captions.text_PW, keep_P)


def _codec(
    run: Run,
    data: TrainingData,
    tower: TrainedTower,
    caption_NW: FloatArray,
    known_N: MaskArray,
) -> Codec:
    """Codebooks fitted in the metric of the queries, so that codes lie where queries lie: of all
    media vectors, and of the items with captions by what `TrainOptions.identifiers_from` says."""
    vectors, train_P = data.corpus.vectors, data.split.train_P
    fitted = vectors.by_space()
    parts = dict.fromkeys(fitted, MEDIA_ALONE)
    own = _parts(run, data, tower)
    for space in list(fitted):
        rows = np.flatnonzero(known_N & (vectors.spaces == space))
        if own is not None and len(rows) >= CAPTIONED_FROM:
            parts[captioned(space)] = own
            fitted[captioned(space)] = _joint(data.corpus, own, caption_NW, rows)
    rng = np.random.default_rng(run.options.seed)
    metrics: dict[str, FloatArray] = {}
    spaces_P = vectors.spaces[data.corpus.item_P[train_P]]
    for name, one in parts.items():
        pairs = train_P[spaces_P == uncaptioned(name)]
        if len(pairs) >= METRIC_FROM:
            some = np.sort(rng.permutation(pairs)[:METRIC_QUERIES])
            caption_BW = tower.queries.caption(some) if one.caption else None
            u_BD = one.of_queries(tower.query_PD[some], caption_BW, fitted[name].shape[1])
            assert u_BD is not None
            metrics[name] = _metric(u_BD)
    config = IdentifierConfig(seed=run.options.seed, method="rkmeans")
    finer = dict.fromkeys(
        (name for name, one in parts.items() if one.caption),
        replace(config, least_codes=CAPTIONED_CODES),
    )
    codec = fit_codec(fitted, config, metrics, finer)
    quantizers = {name: replace(q, parts=parts[name]) for name, q in codec.quantizers.items()}
    return Codec(quantizers)


def _parts(run: Run, data: TrainingData, tower: TrainedTower) -> Parts | None:
    """What identifiers of items with captions are made of; None for that of all items. A search
    scores them by the factors that the query encoder was trained with."""
    made_of = run.options.identifiers_from
    if made_of == "media":
        return None
    scales = {name: float(one.detach()) for name, one in data.encoder.scales().items()}
    beside = scales["beside"] if made_of == "both" else 0.0
    return Parts(caption=scales["caption"] / tower.scale, media=beside / tower.scale)


def _joint(corpus: Corpus, parts: Parts, caption_NW: FloatArray, rows: IndexArray) -> FloatArray:
    """What the identifiers of some items are made of; in a file where it is much."""
    x_ND = corpus.vectors.x_ND
    width = parts.of_items(x_ND[:1], caption_NW[:1]).shape[1]
    made = SpillBuffer(width, corpus.vectors.folder)
    for begin in range(0, len(rows), BLOCK):
        some = rows[begin : begin + BLOCK]
        made.add(parts.of_items(x_ND[some], caption_NW[some]))
    return made.array()


def _metric(q_BD: FloatArray) -> FloatArray:
    """Square root (D, D) of the covariance of queries, with a floor."""
    wide = q_BD.astype(np.float64)
    values, axes = np.linalg.eigh(wide.T @ wide / len(wide))
    floor = 0.05 * values.mean()
    root = axes * np.sqrt(np.maximum(values, 0) + floor) @ axes.T
    return np.asarray(root, np.float32)


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
