"""Training, start to flip: tower, identifiers in the queries' metric, generator, calibration.

Until the last step the old version answers searches: new identifiers are written under the next
payload field, and one replacement of the manifest puts everything in force together.
Shape legend: P pairs, N items, D vector width, L levels.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cart_qdrant.arrays.types import FloatArray, IndexArray
from cart_qdrant.embedders.zero_shot import TextAnchors
from cart_qdrant.errors import IndexMissingError
from cart_qdrant.files import folder_hash, rename_durably
from cart_qdrant.generator.network import Generator, GeneratorConfig
from cart_qdrant.generator.prior import HUB, NodeGains, level_sizes
from cart_qdrant.identifiers.codec import Codec, IdentifierConfig, fit_codec
from cart_qdrant.identifiers.hubness import BANK, CAPTION, QueryBank, media_space
from cart_qdrant.identifiers.trie import Trie
from cart_qdrant.index.identify import prepare, remove_stale
from cart_qdrant.index.index import TEXT_DIM, Index
from cart_qdrant.index.manifest import Artifact, GeneratorInfo, IdentifierInfo
from cart_qdrant.index.models import DISTILLED
from cart_qdrant.progress import Reporter, Silent
from cart_qdrant.search.fusion import Calibration, untrained
from cart_qdrant.search.modality_prior import ModalityPrior
from cart_qdrant.training.calibration.calibrate import calibrate
from cart_qdrant.training.calibration.candidate_features import HeldOut, Items
from cart_qdrant.training.calibration.gate_selection import GateSelection, Stratum, fit_gates
from cart_qdrant.training.corpus import Corpus, Split, caption_vectors, read_corpus, split_pairs
from cart_qdrant.training.diagnostics import measure_diagnostics
from cart_qdrant.training.distillation import learn_from
from cart_qdrant.training.generator_fit import GeneratorData, corrections, fit_generator
from cart_qdrant.training.options import TrainOptions
from cart_qdrant.training.query_encoder import QueryEncoder
from cart_qdrant.training.query_vectors import blended_vectors, pair_vectors
from cart_qdrant.training.report import TrainReport
from cart_qdrant.training.text_states import TextStates
from cart_qdrant.training.tower import DISTILL_UNTIL, Distillation, TowerTrainer, tower_vectors
from cart_qdrant.training.trained_model import Model, parameters

BEAMS = 200
"""Beam width in each space (docs/experiments.md)."""
ZERO_SHOT = 0.6
"""Share of the embedder's own text vectors in a query vector after training on next to nothing; it
falls to none at `DISTILL_UNTIL` captions (docs/experiments.md)."""
PARTS = 2
"""Counts changes of what the networks are made of."""
SHARPNESS = 1.5
"""Of hubness in media spaces, over the tower's own scale (docs/experiments.md)."""
JUDGED = 1_000
"""Held-out queries of each stratum that calibration looks at."""


def train(
    index: Index, options: TrainOptions | None = None, reporter: Reporter | None = None
) -> TrainReport:
    """Train on everything in an index and put the result in force.

    The caller holds `index.folder.lock()`. A killed run is resumed by the next one with the
    same data and options.

    Raises:
        IndexMissingError: The index has no item.
    """
    return _Training(index, options or TrainOptions(), reporter or Silent()).run()


@dataclass(frozen=True, slots=True)
class _Written:
    """What is stored of each item: identifier (N, L + 1), hubness; NaN where there is none."""

    rows_NL: npt.NDArray[np.int32]
    hub_N: FloatArray
    caption_hub_N: FloatArray


class _Training:
    def __init__(self, index: Index, options: TrainOptions, reporter: Reporter) -> None:
        self.index, self.options, self.reporter = index, options, reporter
        self.tower_config, self.fit_config = options.settings
        self.history: list[dict[str, float | str]] = []
        self.remarks: list[str] = []
        self.work = index.folder.work / "train"
        self.zero_shot = 0.0
        self.text_anchors: TextAnchors | None = None

    def log(self, row: dict[str, float | str]) -> None:
        """Keep and show one epoch."""
        self.history.append(row)
        self.reporter.say(" ".join(f"{k}={v}" for k, v in row.items()))

    def run(self) -> TrainReport:
        begin = time.perf_counter()
        index, options = self.index, self.options
        remove_stale(index)
        text_anchors = index.text_anchors()
        corpus = read_corpus(index, None if text_anchors is None else text_anchors.name)
        if not len(corpus):
            raise IndexMissingError("The index is empty.", "Fill it: `cartq ingest FOLDER`.")
        self.text_anchors = text_anchors
        if text_anchors is None:
            self.text_anchors = learn_from(index, corpus.texts, options.seed, self.reporter)
        split = split_pairs(corpus, options.seed)
        self._remark(corpus, split)
        self.zero_shot = ZERO_SHOT * max(0.0, 1 - len(split.train_P) / DISTILL_UNTIL)
        if not options.resume:
            index.clear_work(["train"])
        torch.manual_seed(options.seed)
        spaces = {
            str(space): index.manifest.embedder.dim
            for space in np.unique(corpus.vectors.spaces[corpus.item_P])
        }
        encoder = QueryEncoder(index.text_encoder(), spaces)
        self.reporter.phase("reading captions", None)
        states = TextStates(encoder, corpus.texts)
        mark = self._fingerprint(corpus, split)
        trainer = TowerTrainer(
            encoder, corpus, split, states, self.tower_config,
            self._distillation(encoder, list(spaces)), options.seed,
        )  # fmt: skip
        val_r10 = 0.0
        if spaces:
            val_r10 = trainer.train(self.reporter, self.work / "tower.safetensors", mark, self.log)
        known = self.text_anchors if self.zero_shot else None
        query_PD = pair_vectors(encoder, corpus, states, known, self.zero_shot)
        self.reporter.phase("identifiers", None)
        codec = self._codec(corpus, split, query_PD)
        scale = float(encoder.log_scale.detach().exp().clamp(max=100)) if spaces else 20.0
        bank = self._query_bank(encoder, corpus, split, states, query_PD, scale)
        info = prepare(index, corpus.vectors, codec, bank)
        trie = Trie.load(index.folder.root / info.trie.name)
        written = self._written(info, corpus)
        rows_NL = written.rows_NL
        data = GeneratorData(
            corpus, split, states, codec, query_PD, np.ascontiguousarray(rows_NL[:, :-1]), scale
        )
        torch.manual_seed(options.seed + 1)
        generator = Generator(
            GeneratorConfig(
                sizes=tuple(level_sizes(codec)),
                media_dim=index.manifest.embedder.dim,
                text_width=encoder.width,
            )
        )
        fit_generator(
            generator, encoder, data, self.fit_config, seed=options.seed,
            checkpoint=self.work / "generator.safetensors",
            fingerprint=f"{mark} {hashlib.blake2b(rows_NL.tobytes(), digest_size=8).hexdigest()}",
            reporter=self.reporter, log=self.log,
        )  # fmt: skip
        self.reporter.phase("calibration", None)
        modality_prior = self._modality_prior(encoder, data)
        calibration = self._calibrate(
            encoder, generator, data, bank, trie, written, list(spaces), modality_prior
        )
        signs = measure_diagnostics(generator, encoder, data, trie, calibration.gates, options.seed)
        self._activate(
            Model(encoder, generator, calibration, modality_prior), bank, info,
            {
                "val_r10": round(val_r10, 4), "pairs": len(split.train_P), "signs": signs,
                "corpus": corpus.digest(), "split": split.digest(),
            },
        )  # fmt: skip
        return TrainReport(
            profile=options.profile,
            items=len(corpus),
            pairs=len(split.train_P),
            val_r10=round(val_r10, 4),
            unique_ratio=info.unique_ratio,
            seconds=time.perf_counter() - begin,
            calibration=calibration,
            history=self.history,
            remarks=self.remarks,
        )

    def _remark(self, corpus: Corpus, split: Split) -> None:
        if not corpus.captioned.any():
            self.remarks.append(
                "no captions: trained on the items' own vectors"
                + (" and weak labels" if corpus.texts else "")
            )
        if not len(split.new_P):
            self.remarks.append(
                "fewer than 20 files have texts that no other file has: nothing was held out, "
                "recall is not measured and the router keeps its defaults"
            )

    def _fingerprint(self, corpus: Corpus, split: Split) -> str:
        """Of data, options and parts; a checkpoint of another one is not resumed."""
        seen = f"{corpus.digest()} {split.digest()}"
        return f"{PARTS} {self.options.settings} {self.options.seed} {seen}"

    def _distillation(self, encoder: QueryEncoder, spaces: list[str]) -> Distillation | None:
        """Texts that the embedder knows vectors of, where there are some."""
        text_anchors = self.text_anchors
        if text_anchors is None or not len(text_anchors.texts):
            return None
        short = [f"a photo of a {text}" for text in text_anchors.texts if len(text.split()) <= 3]
        states = TextStates(encoder, [*text_anchors.texts, *short])
        vectors = {space: text_anchors.embed(states.text_PW, space) for space in spaces}
        targets = {space: x for space, x in vectors.items() if x is not None}
        return Distillation(states, targets) if targets else None

    def _query_bank(
        self,
        encoder: QueryEncoder,
        corpus: Corpus,
        split: Split,
        states: TextStates,
        query_PD: FloatArray,
        scale: float,
    ) -> QueryBank:
        """Training queries, as a search makes them, in every space."""
        train_P = split.train_P
        banks: dict[str, FloatArray] = {}
        sharpness: dict[str, float] = {}
        for space in encoder.heads:
            rows = train_P[corpus.vectors.spaces[corpus.item_P[train_P]] == space]
            banks[media_space(space)] = query_PD[rows]
            sharpness[media_space(space)] = SHARPNESS * scale
        rng = np.random.default_rng(self.options.seed)
        rows = np.sort(rng.permutation(train_P)[:BANK])
        banks[CAPTION] = tower_vectors(encoder, states, rows, None)
        sharpness[CAPTION] = float(encoder.log_caption_scale.detach().exp().clamp(max=100))
        return QueryBank.sample(banks, sharpness, self.options.seed)

    def _codec(self, corpus: Corpus, split: Split, query_PD: FloatArray) -> Codec:
        """Identifiers fitted in the metric of the queries: codes are spent where queries look."""
        metrics: dict[str, FloatArray] = {}
        for space in np.unique(corpus.vectors.spaces):
            rows = split.train_P[corpus.vectors.spaces[corpus.item_P[split.train_P]] == space]
            if len(rows) >= 500:
                q = query_PD[rows].astype(np.float64)
                covariance = q.T @ q / len(q)
                values, axes = np.linalg.eigh(covariance)
                floor = 0.05 * values.mean()
                root = axes * np.sqrt(np.maximum(values, 0) + floor) @ axes.T
                metrics[str(space)] = root.astype(np.float32)
        config = IdentifierConfig(seed=self.options.seed, method="rkmeans")
        return fit_codec(corpus.vectors.by_space(), config, metrics)

    def _written(self, info: IdentifierInfo, corpus: Corpus) -> _Written:
        """Identifiers and hubness as stored, in the corpus's order."""
        row = {one: n for n, one in enumerate(corpus.vectors.ids)}
        rows_NL = np.zeros((len(corpus), info.levels + 1), dtype=np.int32)
        hub_N2 = np.full((len(corpus), 2), np.nan, dtype=np.float32)
        for record in self.index.store.scroll(with_payload=[info.field]):
            n = row.get(str(record.id))
            if n is not None:
                cart = (record.payload or {})[info.field]
                rows_NL[n] = [*cart["codes"], cart["disambiguation"]]
                hub_N2[n] = [cart["hub"].get(name, np.nan) for name in ("media", "caption")]
        return _Written(rows_NL, hub_N2[:, 0], hub_N2[:, 1])

    def _modality_prior(self, encoder: QueryEncoder, data: GeneratorData) -> ModalityPrior:
        """Which kind of media a query is for, learned from the training texts."""
        corpus, train_P = data.corpus, data.split.train_P
        modality_P = corpus.modality_N[corpus.item_P[train_P]]
        pairs = set(zip(corpus.modality_N.tolist(), corpus.file_N.tolist(), strict=True))
        files = Counter(modality for modality, _ in pairs)
        return ModalityPrior.fit(
            [corpus.texts[p] for p in train_P],
            modality_P.tolist(),
            lambda rows: tower_vectors(encoder, data.states, train_P[rows], None),
            dict(self.index.manifest.embedder.spaces),
            files,
            TEXT_DIM,
            self.options.seed,
        )

    def _calibrate(
        self,
        encoder: QueryEncoder,
        generator: Generator,
        data: GeneratorData,
        bank: QueryBank,
        trie: Trie,
        written: _Written,
        spaces: list[str],
        modality_prior: ModalityPrior,
    ) -> Calibration:
        corpus, split, codec = data.corpus, data.split, data.codec
        captions = bool(corpus.captioned.any()) and self.index.keeps_captions
        means = [_mean(written.hub_N[corpus.vectors.spaces == space]) for space in spaces]
        means.append(_mean(written.caption_hub_N))
        base = replace(
            untrained(spaces, codec.levels, captions),
            scale=data.scale, beams=BEAMS, zero_shot=self.zero_shot, hub_means=means,
        )  # fmt: skip
        rng = np.random.default_rng(self.options.seed)
        judged = {
            name: rng.permutation(rows)[:JUDGED]
            for name, rows in (("new", split.new_P), ("known", split.known_P))
            if len(rows)
        }
        if not judged:
            return base
        bare = float((~corpus.captioned).mean())
        shares = {"new": max(bare, 0.05) if bare else 0.01, "known": 1.0 - bare}
        with torch.inference_mode():
            base = replace(base, gates=self._gates(encoder, generator, data, judged, shares))
        # What each stratum may know of captions: held-out items none, held-out captions the rest.
        keep = np.ones(len(corpus.texts), dtype=bool)
        keep[split.known_P] = False
        keep[split.new_P] = False
        if not self.index.keeps_captions:
            keep[:] = False  # as a search finds it
        caption_NW, known_N = caption_vectors(corpus, data.states.text_PW, keep)
        caption_hub_N = bank.hubness(caption_NW, CAPTION)
        gains = NodeGains(trie, base.scale * HUB)
        number = {space: n for n, space in enumerate(spaces)}
        space_N = np.asarray([number.get(str(s), -1) for s in corpus.vectors.spaces], np.intp)
        text_anchors = self.text_anchors if self.zero_shot else None
        asked = {
            name: Stratum(
                rows,
                {
                    space: blended_vectors(
                        encoder, data.states, rows, space, text_anchors, self.zero_shot
                    )
                    for space in spaces
                },
                shares[name],
            )
            for name, rows in judged.items()
        }
        selection = GateSelection(encoder, generator, data, trie, codec, base, gains)
        gates, beams = selection.select(asked, written.rows_NL)
        base = replace(base, gates=gates)
        strata: dict[str, HeldOut] = {}
        for name, rows in judged.items():
            caption_BW = tower_vectors(encoder, data.states, rows, None)
            strata[name] = HeldOut(
                corpus.item_P[rows], asked[name].media, caption_BW, beams[name], caption_NW,
                known_N, caption_hub_N, modality_prior.log_priors(caption_BW),
            )  # fmt: skip
        items = Items(
            corpus.vectors.x_ND, space_N, written.rows_NL, corpus.file_N, written.hub_N,
            np.asarray([modality_prior.of[m] for m in corpus.modality_N.tolist()], np.intp),
        )  # fmt: skip
        return calibrate(strata, items, base)

    @staticmethod
    def _gates(
        encoder: QueryEncoder,
        generator: Generator,
        data: GeneratorData,
        judged: Mapping[str, IndexArray],
        shares: Mapping[str, float],
    ) -> list[float]:
        """Gates that make held-out identifiers likeliest, strata mixed by their shares."""
        total = sum(shares[name] for name in judged)
        rng = np.random.default_rng(0)
        rows = np.concatenate(
            [
                rng.choice(found, max(1, int(JUDGED * shares[name] / total)))
                for name, found in judged.items()
            ]
        )
        logits: list[list[torch.Tensor]] = []
        for begin in range(0, len(rows), 256):
            logits.append(corrections(generator, encoder, data, rows[begin : begin + 256]))
        joined = [torch.cat(level) for level in zip(*logits, strict=True)]
        items = data.corpus.item_P[rows]
        codes = torch.from_numpy(data.codes_NL[items]).long()
        prior = data.prior(data.query_PD[rows], items)
        return fit_gates(joined, prior, list(codes.T))

    def _activate(
        self, model: Model, bank: QueryBank, info: IdentifierInfo, found: Mapping[str, Any]
    ) -> None:
        """Everything new goes into force in one replacement of the manifest."""
        index = self.index
        version = info.version
        folder = index.folder.root / f"generator-{version}"
        draft = index.folder.work / folder.name
        model.save(draft, bank)
        if self.text_anchors is not None and index.text_anchors() is None:
            self.text_anchors.save(draft / DISTILLED)
        if folder.exists():
            shutil.rmtree(folder)  # of a run that was killed before the manifest named it
        rename_durably(draft, folder)
        old = index.manifest.identifiers
        generator = GeneratorInfo(
            version=version,
            folder=Artifact(folder.name, folder_hash(folder)),
            identifiers=info.version,
            summary={
                "profile": self.options.profile,
                "seed": self.options.seed,
                "parameters": parameters(model),
                "held_out": model.calibration.held_out,
                "ece": model.calibration.ece,
                **found,
            },
        )
        stale = [*index.manifest.stale_fields, *([old.field] if old is not None else [])]
        index.put(
            replace(index.manifest, identifiers=info, generator=generator, stale_fields=stale)
        )
        remove_stale(index)
        index.clear_work(["train"])


def _mean(values: FloatArray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0
