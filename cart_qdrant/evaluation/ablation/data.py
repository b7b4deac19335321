"""What an ablation learns from and asks: a sample of what the index was trained on.

Shape legend: P pairs, D vector width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.compute import ComputeOptions, Work, choose
from cart_qdrant.embedders.text.folder import text_encoder_folder
from cart_qdrant.errors import UsageError
from cart_qdrant.evaluation.ablation.variants import AblationOptions
from cart_qdrant.generator.encoder import OnnxQueryEncoder
from cart_qdrant.index.identifier_files import load_codec
from cart_qdrant.index.index import Index
from cart_qdrant.progress import Reporter
from cart_qdrant.search.fusion import MEANINGFUL
from cart_qdrant.training.corpus import Corpus, read_corpus
from cart_qdrant.training.query_encoder import QueryEncoder
from cart_qdrant.training.query_vectors import QueryVectors
from cart_qdrant.training.split import HeldOutPairs, Split, split_pairs
from cart_qdrant.training.text_states import TextStates
from cart_qdrant.training.trained_model import Model


@dataclass(frozen=True, slots=True)
class AblationData:
    """A trained index's captions, and what all variants share.

    Attributes:
        encoder: The query encoder as it was trained.
        states: The sampled texts, as the encoder reads them.
        query_PD: Query vector of each pair in its item's space.
        scale: Multiplies the prior's inner products.
        sizes: Of the index's identifiers, see `Variant.sizes`.
        metrics: Metric that identifiers are fitted in, by media space.
    """

    corpus: Corpus
    split: Split
    encoder: QueryEncoder
    states: TextStates
    query_PD: FloatArray
    scale: float
    sizes: tuple[int, int, int]
    metrics: Mapping[str, FloatArray | None]


def read_ablation_data(index: Index, options: AblationOptions, reporter: Reporter) -> AblationData:
    """Sample the captions of a trained index, and encode them.

    Raises:
        UsageError: The index is not trained, it has changed since, or nothing was held out.
    """
    generator, codec = index.manifest.generator, load_codec(index)
    if generator is None or codec is None:
        raise UsageError("The index is not trained.", "Train it first: `cartq train`.")
    compute = choose(ComputeOptions(), Work.TRAINING)
    model = Model.load(index.folder.path(generator.folder), index.text_encoder(), compute)
    whole, split = _read_split(index)
    corpus, split = _sample(whole, split, options)
    if not len(split.report.unseen_P):
        raise UsageError(
            "Nothing was held out of training: fewer than 20 files have texts of their own.",
            "Caption more of the media, then train again: `cartq train`.",
        )
    if len(split.report.unseen_P) < MEANINGFUL:
        reporter.say(
            f"Only {len(split.report.unseen_P)} queries were held out: recalls say little below "
            f"{MEANINGFUL}."
        )
    reporter.phase("reading captions", None)
    states = TextStates(model.encoder, corpus.texts)
    share = model.calibration.zero_shot
    anchors = index.distilled_anchors() if share else None
    queries = QueryVectors.encode(
        OnnxQueryEncoder(model.graph, text_encoder_folder()), corpus.texts, reporter
    )
    if anchors is not None:
        queries = queries.by_anchors(anchors, share)
    # Variants are made of media vectors, as in the paper.
    media = {name: q for name, q in codec.quantizers.items() if not q.parts.caption}
    largest = max(media.values(), key=lambda q: q.fitted_on)
    residual_levels, codes, _ = largest.books_MVD.shape
    return AblationData(
        corpus=corpus,
        split=split,
        encoder=model.encoder,
        states=states,
        query_PD=queries.of_pairs(corpus),
        scale=model.calibration.scale,
        sizes=(len(largest.centers_KD), codes, residual_levels),
        metrics={space: q.metric_DD for space, q in media.items()},
    )


def _read_split(index: Index) -> tuple[Corpus, Split]:
    """The corpus and its split, as the last training saw them."""
    generator = index.manifest.generator
    assert generator is not None
    anchors = index.text_anchors()
    corpus = read_corpus(index, None if anchors is None else anchors.name)
    split = split_pairs(corpus, int(generator.summary["seed"]))
    trained_on = (generator.summary["corpus"], generator.summary["split"])
    if trained_on != (corpus.digest(), split.digest()):
        # Another corpus is split in another way: training may have seen what would be asked here.
        raise UsageError(
            "The index, or cart-qdrant, has changed since it was trained: what was held out is "
            "not known.",
            "Train again: `cartq train`.",
        )
    return corpus, split


def _sample(corpus: Corpus, split: Split, options: AblationOptions) -> tuple[Corpus, Split]:
    """Whole items' captions up to `options.pairs`, and held-out queries; pairs are renumbered."""
    rng = np.random.default_rng(0)
    owners = rng.permutation(np.unique(corpus.item_P[split.train_P]))
    asked = split.report
    seen = corpus.item_P[asked.seen_P]
    # The items that a held-out caption asks for come first: they must be among the trained ones.
    owners = np.concatenate([owners[np.isin(owners, seen)], owners[~np.isin(owners, seen)]])
    counts = np.bincount(corpus.item_P[split.train_P], minlength=len(corpus))[owners]
    kept = owners[: int(np.searchsorted(np.cumsum(counts), options.pairs, side="right"))]
    train = split.train_P[np.isin(corpus.item_P[split.train_P], kept)]
    held = [
        rng.permutation(rows)[: options.queries]
        for rows in (asked.unseen_P, asked.seen_P[np.isin(seen, kept)])
    ]
    rows = np.concatenate([train, *held])
    ends = np.cumsum([len(train), len(held[0]), len(held[1])])
    n = np.arange(len(rows))
    small = replace(
        corpus, texts=[corpus.texts[row] for row in rows], item_P=corpus.item_P[rows],
        trust_P=corpus.trust_P[rows],
    )  # fmt: skip
    held_out = HeldOutPairs(n[ends[0] : ends[1]], n[ends[1] :])
    return small, Split(
        n[: ends[0]], HeldOutPairs.none(), held_out, split.held_items, split.cross_fitted
    )
