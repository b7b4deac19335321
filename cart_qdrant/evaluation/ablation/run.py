"""The paper's ablations (CART, arXiv 2406.17507, section 4) on any trained index.

The query tower stays as trained. Identifiers and generator are made again for every variant and
seed, on a sample of the captions, and measured on what training had held out: `unseen` queries ask
for items of which no caption trained, `seen` ones are held-out captions of the other items.
Shape legend: N items, D vector width, L levels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from cart_qdrant.arrays.vectors import unique_ratio
from cart_qdrant.evaluation.ablation.data import AblationData, read_ablation_data
from cart_qdrant.evaluation.ablation.measures import (
    FittedVariant,
    measure_growth,
    measure_variant,
)
from cart_qdrant.evaluation.ablation.results import GrowthResult, VariantResult
from cart_qdrant.evaluation.ablation.variants import AblationOptions, Variant, variants
from cart_qdrant.generator.beam_search import positions
from cart_qdrant.generator.network import Generator, GeneratorConfig
from cart_qdrant.generator.prior import level_sizes
from cart_qdrant.identifiers.codec import DisambiguationTokens, QuantizerSize, fit_quantizer
from cart_qdrant.identifiers.quantizer import Codec, Quantizer
from cart_qdrant.identifiers.trie import Trie
from cart_qdrant.index.identifier_writes import encode
from cart_qdrant.index.index import Index
from cart_qdrant.index.points import Vectors
from cart_qdrant.progress import Reporter, Silent
from cart_qdrant.training.checkpoint import Resumable
from cart_qdrant.training.generator_data import GeneratorData
from cart_qdrant.training.generator_fit import GeneratorTrainer
from cart_qdrant.training.options import GeneratorFitConfig
from cart_qdrant.training.seeding import seeded


def ablate(
    index: Index, options: AblationOptions | None = None, reporter: Reporter | None = None
) -> Iterator[VariantResult | GrowthResult]:
    """Run every variant with every seed; results come as they are done.

    Raises:
        UsageError: The index is not trained, it has changed since, or nothing was held out.
    """
    options, reporter = options or AblationOptions(), reporter or Silent()
    data = read_ablation_data(index, options, reporter)
    rows = variants(data.sizes)
    reporter.phase("ablation", len(rows) * options.seeds)
    for seed in range(options.seeds):
        for variant in rows:
            fitted = fit_variant(data, variant, options, seed)
            measured = measure_variant(fitted)
            yield VariantResult(
                variant=variant.name, group=variant.group, seed=seed,
                unique_ratio=round(unique_ratio(fitted.data.codes_NL), 4),
                beams=measured.beams, reranked=measured.reranked, dense=measured.dense,
                decode_ms=measured.decode_ms,
            )  # fmt: skip
            reporter.advance()
            if variant.name == "full":
                yield from measure_growth(fitted, seed)


def fit_variant(
    data: AblationData, variant: Variant, options: AblationOptions, seed: int
) -> FittedVariant:
    """Make the identifiers of a variant, and train its generator if it has one."""
    vectors = _vectors(data, variant, seed)
    codec = _codec(data, vectors, variant, seed)
    codes_NL = encode(codec, vectors.x_ND, vectors.spaces)
    rows_NL = DisambiguationTokens().complete(codes_NL)
    pairs = GeneratorData(
        data.encoder, replace(data.corpus, vectors=vectors), data.split, data.states, codec,
        data.query_PD, vectors.spaces, codes_NL, data.scale if variant.prior else 0.0,
    )  # fmt: skip
    generator = _generator(pairs, variant, options, seed) if variant.correct else None
    return FittedVariant(pairs, Trie.build(rows_NL), positions(rows_NL), generator, options.beams)


def _vectors(data: AblationData, variant: Variant, seed: int) -> Vectors:
    """The media vectors, with noise if the variant has some."""
    vectors = data.corpus.vectors
    if not variant.noise:
        return replace(vectors, folder=None)
    rng = np.random.default_rng((seed, 7))
    noise = rng.normal(size=vectors.x_ND.shape) / np.sqrt(vectors.x_ND.shape[1])
    x_ND = (vectors.x_ND + variant.noise * noise).astype(np.float32)
    x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
    return replace(vectors, x_ND=x_ND, folder=None)


def _codec(data: AblationData, vectors: Vectors, variant: Variant, seed: int) -> Codec:
    k, v, m = variant.sizes or data.sizes
    quantizers: dict[str, Quantizer] = {}
    offset = 0
    for space, x_ND in vectors.by_space().items():
        quantizers[space] = fit_quantizer(
            x_ND, QuantizerSize(min(k, len(x_ND)), v, m), method=variant.method,
            metric_DD=data.metrics.get(space), seed=seed, offset=offset,
        )  # fmt: skip
        offset += len(quantizers[space].centers_KD)
    return Codec(quantizers)


def _generator(
    pairs: GeneratorData, variant: Variant, options: AblationOptions, seed: int
) -> Generator:
    config = GeneratorConfig(
        sizes=tuple(level_sizes(pairs.codec)), media_dim=pairs.corpus.vectors.x_ND.shape[1],
        text_width=pairs.encoder.width, **variant.network,
    )  # fmt: skip
    with seeded(seed):
        generator = Generator(config, pairs.encoder.compute)
    fit = GeneratorFitConfig(epochs=options.epochs, min_steps=0, rdrop=variant.rdrop)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "generator.safetensors"
        GeneratorTrainer(generator, pairs, fit, seed).train(
            Resumable(checkpoint, "", Silent(), lambda _: None)
        )
    return generator
