"""The seed paper's ablations (CART, arXiv 2406.17507, section 4) on any trained index.

The query tower stays as trained; identifiers and generator are made anew for every variant and
seed, on a sample of the captions, and judged on what training had held out: `new` queries ask for
items of which no caption was seen, `known` ones are unseen captions of seen items.
Shape legend: B queries, N items, P pairs, K beams, L levels, D vector width.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cart_qdrant.arrays.types import IndexArray
from cart_qdrant.arrays.vectors import unit
from cart_qdrant.errors import UsageError
from cart_qdrant.generator.beam_search import Beams, PriorScorer, Scorer, beam_search, places
from cart_qdrant.generator.network import Generator, GeneratorConfig, GeneratorScorer
from cart_qdrant.generator.prior import level_sizes, prior_logits
from cart_qdrant.identifiers.codec import (
    Codec,
    Counters,
    Method,
    Quantizer,
    fit_quantizer,
    unique_ratio,
)
from cart_qdrant.identifiers.trie import Trie
from cart_qdrant.index.identifier_files import load_codec
from cart_qdrant.index.identify import encode
from cart_qdrant.index.index import Index
from cart_qdrant.index.points import Vectors
from cart_qdrant.progress import Reporter, Silent
from cart_qdrant.search.fusion import MEANINGFUL
from cart_qdrant.training.corpus import Corpus, Split, read_corpus, split_pairs
from cart_qdrant.training.generator_fit import (
    GeneratorData,
    GeneratorFitConfig,
    fit_generator,
    read_hidden_states,
)
from cart_qdrant.training.query_encoder import QueryEncoder
from cart_qdrant.training.query_vectors import pair_vectors
from cart_qdrant.training.text_states import TextStates
from cart_qdrant.training.trained_model import Model

STRATA = ("new", "known")
KS = (1, 5, 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class AblateOptions:
    """How much is run."""

    seeds: int = 3
    pairs: int = 10_000
    """Captions that a generator learns from, at most."""
    queries: int = 300
    """Held-out queries of each stratum."""
    beams: int = 100
    epochs: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One row: what differs from the full method.

    Attributes:
        name: As it is shown.
        group: Experiment that it belongs to.
        network: Fields of `GeneratorConfig` that differ.
        rdrop: Weight of R-Drop.
        sizes: (K, V, M); None takes those of the index, of its largest space.
        method: How the residual books are made.
        prior: Whether logits correct the prior; the paper's generator has none.
        correct: Whether there is a transformer at all.
        noise: Noise on the media vectors, relative to their length.
    """

    name: str
    group: str
    network: Mapping[str, bool] = field(default_factory=dict)
    rdrop: float = 0.0
    sizes: tuple[int, int, int] | None = None
    method: Method = "rkmeans"
    prior: bool = True
    correct: bool = True
    noise: float = 0.0


def variants(sizes: tuple[int, int, int]) -> list[Variant]:
    """All rows, for an index with identifiers of a size (K, V, M)."""
    k, v, m = sizes
    spaces = [n for n in (v // 2, 2 * v, 4 * v) if n > 1]
    return [
        Variant(name="full", group="fusion"),
        Variant(name="no coarse fusion", group="fusion", network={"coarse_fusion": False}),
        Variant(name="no fine fusion", group="fusion", network={"fine_fusion": False}),
        Variant(name="plain average", group="fusion", network={"fine_gates": False}),
        Variant(name="with R-Drop", group="fusion", rdrop=1.0),
        Variant(name="no prior (as the paper)", group="prior", prior=False),
        Variant(name="prior alone", group="prior", correct=False),
        Variant(name="no K-Means", group="identifiers", sizes=(1, v, m)),
        Variant(name="no RQ", group="identifiers", sizes=(k, v, 0)),
        Variant(name="learned RQ", group="identifiers", method="rvq"),
        *(
            Variant(name=f"length {n}", group="length", sizes=(k, v, n - 2))
            for n in (4, 5, 6)
        ),
        *(Variant(name=f"codes {n}", group="codes", sizes=(n, n, m)) for n in spaces),
        *(Variant(name=f"noise {n}", group="noise", noise=n) for n in (0.25, 0.5, 1.0)),
    ]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one variant reached with one seed; recalls by stratum and k."""

    variant: str
    group: str
    seed: int
    unique_ratio: float
    beams: dict[str, dict[int, float]]
    """By the decoder's probability alone."""
    reranked: dict[str, dict[int, float]]
    """The same candidates by the query vector."""
    dense: dict[str, dict[int, float]]
    decode_ms: float
    """Of one query in a batch of 64."""

    def to_json(self) -> dict[str, Any]:
        """One object."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """Accuracy and throughput among a number of candidates, by method."""

    seed: int
    candidates: int
    r10: dict[str, float]
    per_second: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """One object."""
        return asdict(self)


def ablate(
    index: Index, options: AblateOptions | None = None, reporter: Reporter | None = None
) -> Iterator[Row | Growth]:
    """Run every variant with every seed; rows come as they are done.

    Raises:
        UsageError: The index is not trained, or nothing was held out.
    """
    yield from _Ablation(index, options or AblateOptions(), reporter or Silent()).run()


@dataclass(frozen=True, slots=True)
class _Made:
    """Identifiers, tree and generator of a variant.

    Attributes:
        place_of: Item of each identifier.
        generator: None for the prior alone.
    """

    data: GeneratorData
    trie: Trie
    place_of: dict[bytes, int]
    generator: Generator | None


class _Ablation:
    def __init__(self, index: Index, options: AblateOptions, reporter: Reporter) -> None:
        generator, codec = index.manifest.generator, load_codec(index)
        if generator is None or codec is None:
            raise UsageError("The index is not trained.", "Train it first: `cartq train`.")
        self.options, self.reporter = options, reporter
        model = Model.load(index.folder.path(generator.folder), index.text_encoder())
        self.encoder: QueryEncoder = model.encoder
        self.calibration = model.calibration
        text_anchors = index.text_anchors()
        whole = read_corpus(index, None if text_anchors is None else text_anchors.name)
        split = split_pairs(whole, int(generator.summary["seed"]))
        learned = (generator.summary.get("corpus"), generator.summary.get("split"))
        if learned != (whole.digest(), split.digest()):
            # What is held out depends on what there is, and on the version that split it: the
            # tower may have learned what would be asked here.
            raise UsageError(
                "The index, or cart-qdrant, has changed since it was trained: what was held out is "
                "not known.",
                "Train again: `cartq train`.",
            )
        self.corpus, self.split = _sample(whole, split, options)
        if not len(self.split.new_P):
            raise UsageError(
                "Nothing was held out of training: fewer than 20 files have texts of their own.",
                "Describe more of the media, then `cartq train`.",
            )
        if len(self.split.new_P) < MEANINGFUL:
            reporter.say(
                f"{len(self.split.new_P)} queries were held out: recalls mean little under "
                f"{MEANINGFUL}"
            )
        reporter.phase("reading captions", None)
        self.states = TextStates(self.encoder, self.corpus.texts)
        share = self.calibration.zero_shot
        self.query_PD = pair_vectors(
            self.encoder,
            self.corpus,
            self.states,
            index.distilled_anchors() if share else None,
            share,
        )
        quantizer = max(codec.quantizers.values(), key=lambda q: q.fitted_on)
        self.sizes = (
            len(quantizer.centers_KD), quantizer.books_MVD.shape[1], len(quantizer.books_MVD)
        )  # fmt: skip
        self.metrics = {s: q.metric_DD for s, q in codec.quantizers.items()}

    def run(self) -> Iterator[Row | Growth]:
        rows = variants(self.sizes)
        self.reporter.phase("ablation", len(rows) * self.options.seeds)
        for seed in range(self.options.seeds):
            for variant in rows:
                made = self._make(variant, seed)
                yield self._judge(variant, seed, made)
                self.reporter.advance()
                if variant.name == "full":
                    yield from self._grow(seed, made)

    def _make(self, variant: Variant, seed: int) -> _Made:
        corpus = self.corpus
        x_ND = corpus.vectors.x_ND
        if variant.noise:
            rng = np.random.default_rng((seed, 7))
            noise = rng.normal(size=x_ND.shape) / np.sqrt(x_ND.shape[1])
            x_ND = unit((x_ND + variant.noise * noise).astype(np.float32))
        vectors = Vectors(corpus.vectors.ids, x_ND, corpus.vectors.spaces)
        codec = self._codec(vectors, variant, seed)
        codes_NL = encode(codec, x_ND, vectors.spaces)
        rows_NL = Counters().complete(codes_NL)
        trie, place_of = Trie.build(rows_NL), places(rows_NL)
        data = GeneratorData(
            replace(corpus, vectors=vectors), self.split, self.states, codec, self.query_PD,
            codes_NL, self.calibration.scale if variant.prior else 0.0,
        )  # fmt: skip
        if not variant.correct:
            return _Made(data, trie, place_of, None)
        torch.manual_seed(seed)
        generator = Generator(
            GeneratorConfig(
                sizes=tuple(level_sizes(codec)), media_dim=x_ND.shape[1],
                text_width=self.encoder.width, **variant.network,
            )
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            fit_generator(
                generator, self.encoder, data,
                GeneratorFitConfig(
                    epochs=self.options.epochs, min_steps=0, rdrop=variant.rdrop
                ), seed=seed,
                checkpoint=Path(folder) / "generator.safetensors", fingerprint="",
                reporter=Silent(), log=lambda _: None,
            )  # fmt: skip
        return _Made(data, trie, place_of, generator)

    def _codec(self, vectors: Vectors, variant: Variant, seed: int) -> Codec:
        k, v, m = variant.sizes or self.sizes
        quantizers: dict[str, Quantizer] = {}
        offset = 0
        for space, x_ND in vectors.by_space().items():
            quantizers[space] = fit_quantizer(
                x_ND, k=min(k, len(x_ND)), v=v, m=m, method=variant.method,
                metric_DD=self.metrics.get(space), seed=seed, offset=offset,
            )  # fmt: skip
            offset += len(quantizers[space].centers_KD)
        return Codec(quantizers)

    def _judge(self, variant: Variant, seed: int, made: _Made) -> Row:
        beams: dict[str, dict[int, float]] = {}
        reranked: dict[str, dict[int, float]] = {}
        dense: dict[str, dict[int, float]] = {}
        spent, asked = 0.0, 0
        for name, rows in zip(STRATA, (self.split.new_P, self.split.known_P), strict=True):
            found, seconds = self._decode(made.data, made.trie, made.generator, rows)
            spent, asked = spent + seconds, asked + len(rows)
            by_beam, by_vector = self._ranks(made, rows, found)
            beams[name], reranked[name] = _recalls(by_beam), _recalls(by_vector)
            dense[name] = _recalls(self._dense_ranks(made.data, rows))
        return Row(
            variant=variant.name, group=variant.group, seed=seed,
            unique_ratio=round(unique_ratio(made.data.codes_NL), 4),
            beams=beams, reranked=reranked, dense=dense,
            decode_ms=round(1e3 * spent / max(asked, 1), 3),
        )  # fmt: skip

    def _decode(
        self, data: GeneratorData, trie: Trie, net: Generator | None, rows: IndexArray
    ) -> tuple[list[Beams], float]:
        """Beams of queries in their items' space, and the seconds that decoding took."""
        out: dict[int, Beams] = {}
        spent = 0.0
        for space, at in data.blocks(rows):
            part = rows[at]
            hidden_states, mask = read_hidden_states(self.encoder, data, part)
            start = time.perf_counter()
            q_BD = data.query_PD[part]
            levels = prior_logits(data.codec, {space: q_BD}, space, data.scale)
            scorer: Scorer = PriorScorer(levels)
            if net is not None:
                gates = [1.0] * len(levels)
                scorer = GeneratorScorer.of(net, hidden_states, mask, q_BD, levels, gates)
            found = beam_search(trie, scorer, len(part), self.options.beams)
            spent += time.perf_counter() - start
            out |= zip(at.tolist(), found, strict=True)
        return [out[n] for n in range(len(rows))], spent

    @staticmethod
    def _ranks(
        made: _Made, rows: IndexArray, found: Sequence[Beams]
    ) -> tuple[IndexArray, IndexArray]:
        """Rank of the right item by probability and by the query vector; huge if it is lost."""
        data = made.data
        by_beam = np.full(len(rows), np.iinfo(np.intp).max)
        by_vector = by_beam.copy()
        for n, (row, beams) in enumerate(zip(rows, found, strict=True)):
            items = beams.items(made.place_of)
            right = data.corpus.item_P[row]
            at = np.flatnonzero(items == right)
            if len(at):
                scores = data.corpus.vectors.x_ND[items] @ data.query_PD[row]
                by_beam[n] = at[0]
                by_vector[n] = int((scores > scores[at[0]]).sum())
        return by_beam, by_vector

    def _dense_ranks(self, data: GeneratorData, rows: IndexArray) -> IndexArray:
        vectors, items = data.corpus.vectors, data.corpus.item_P[rows]
        out = np.empty(len(rows), dtype=np.intp)
        for space in np.unique(vectors.spaces[items]):
            mine = np.flatnonzero(vectors.spaces[items] == space)
            among = np.flatnonzero(vectors.spaces == space)
            scores = data.query_PD[rows[mine]] @ vectors.x_ND[among].T
            own = (data.query_PD[rows[mine]] * vectors.x_ND[items[mine]]).sum(axis=1)
            out[mine] = (scores > own[:, None] + 1e-6).sum(axis=1)
        return out

    def _grow(self, seed: int, made: _Made) -> Iterator[Growth]:
        """The same queries among ever more candidates; exact dense search beside the decoders."""
        data = made.data
        spaces, rows = data.corpus.vectors.spaces, self.split.new_P
        names, counts = np.unique(spaces[data.corpus.item_P[rows]], return_counts=True)
        space = names[counts.argmax()]  # a query is asked within its item's space
        rows = rows[spaces[data.corpus.item_P[rows]] == space]
        among = np.flatnonzero(spaces == space)
        targets = np.unique(data.corpus.item_P[rows])
        rng = np.random.default_rng(seed)
        others = rng.permutation(np.setdiff1d(among, targets))
        every = np.arange(len(made.trie))
        whole = Beams(made.trie.rows(), np.empty(0, np.float32), every)
        place = whole.items(made.place_of)
        sizes = [n for n in (500, 1_000, 2_000, 4_000) if len(targets) < n < len(among)]
        for size in (*sizes, len(among)):
            chosen = np.concatenate([targets, others[: size - len(targets)]])
            part = Trie.build(whole.rows_KL[np.isin(place, chosen)])
            r10: dict[str, float] = {}
            rate: dict[str, float] = {}
            for name, generator in (("prior", None), ("prior + correction", made.generator)):
                found, seconds = self._decode(data, part, generator, rows)
                _, by_vector = self._ranks(made, rows, found)
                r10[name] = float((by_vector < 10).mean())
                rate[name] = len(rows) / seconds
            x_MD = np.ascontiguousarray(data.corpus.vectors.x_ND[chosen])
            start = time.perf_counter()
            scores = data.query_PD[rows] @ x_MD.T
            np.argpartition(-scores, min(10, len(chosen) - 1), axis=1)
            rate["dual tower"] = len(rows) / (time.perf_counter() - start)
            at = {int(item): n for n, item in enumerate(chosen)}
            right = np.asarray([at[int(item)] for item in data.corpus.item_P[rows]])
            own = scores[np.arange(len(rows)), right]
            r10["dual tower"] = float(((scores > own[:, None]).sum(axis=1) < 10).mean())
            yield Growth(seed=seed, candidates=len(chosen), r10=r10, per_second=rate)


def _recalls(ranks: IndexArray) -> dict[int, float]:
    """By k; none where nothing was asked."""
    return {k: round(float((ranks < k).mean()), 4) for k in KS if len(ranks)}


def _sample(corpus: Corpus, split: Split, options: AblateOptions) -> tuple[Corpus, Split]:
    """Whole items' captions up to `options.pairs`, and held-out queries; pairs renumbered."""
    rng = np.random.default_rng(0)
    owners = rng.permutation(np.unique(corpus.item_P[split.train_P]))
    known = corpus.item_P[split.known_P]
    # Items that a held-out caption asks for come first: they must have been learned.
    owners = np.concatenate([owners[np.isin(owners, known)], owners[~np.isin(owners, known)]])
    counts = np.bincount(corpus.item_P[split.train_P], minlength=len(corpus))[owners]
    kept = owners[: int(np.searchsorted(np.cumsum(counts), options.pairs, side="right"))]
    train = split.train_P[np.isin(corpus.item_P[split.train_P], kept)]
    held = [
        rng.permutation(rows)[: options.queries]
        for rows in (split.new_P, split.known_P[np.isin(known, kept)])
    ]
    rows = np.concatenate([train, *held])
    ends = np.cumsum([len(train), len(held[0]), len(held[1])])
    n = np.arange(len(rows))
    small = replace(
        corpus, texts=[corpus.texts[row] for row in rows], item_P=corpus.item_P[rows],
        trust_P=corpus.trust_P[rows],
    )  # fmt: skip
    return small, Split(n[: ends[0]], n[ends[0] : ends[1]], n[ends[1] :], split.held_items)
