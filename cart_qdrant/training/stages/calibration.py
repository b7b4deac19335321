"""Fifth stage: modality prior, gates, fusion weights, router and confidence.

Shape legend: B queries, N items, P pairs, W caption vector width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.generator.beam_search import Beams
from cart_qdrant.generator.prior import HUB, NodeBonus
from cart_qdrant.index.collection import TEXT_DIM
from cart_qdrant.search.fusion import Calibration, untrained
from cart_qdrant.search.modality_prior import ModalityPrior
from cart_qdrant.training.calibration.calibrate import calibrate
from cart_qdrant.training.calibration.candidate_features import HeldOut, Items
from cart_qdrant.training.calibration.gate_selection import GateSelection, Stratum, fit_gates
from cart_qdrant.training.calibration.modality_prior import fit_modality_prior
from cart_qdrant.training.generator_fit import corrections
from cart_qdrant.training.split import HeldOutPairs
from cart_qdrant.training.stages.state import (
    FittedIdentifiers,
    Run,
    TrainedGenerator,
    TrainedTower,
    TrainingData,
)

BEAMS = 200
"""Beam width in each space (docs/experiments.md)."""
QUERIES = 1_000
"""Held-out queries of each stratum, of each set, that calibration uses at most."""


def calibrate_search(
    run: Run,
    data: TrainingData,
    tower: TrainedTower,
    identifiers: FittedIdentifiers,
    generator: TrainedGenerator,
) -> tuple[Calibration, ModalityPrior]:
    """Fit how a search weighs what the other stages made, on held-out queries; the calibration
    keeps its defaults where none were held out.

    Where these are cross-fitted, the gates stay closed: decoding them anew for each fold would take
    longer than the training, and a few hundred queries do not show what a gate adds.
    """
    run.reporter.phase("calibration", None)
    prior = _modality_prior(run, data, tower)
    return _Stage(run, data, tower, identifiers, generator).calibrate(prior), prior


def _modality_prior(run: Run, data: TrainingData, tower: TrainedTower) -> ModalityPrior:
    """The prior of the modality that a query asks for, fitted to the training texts."""
    corpus, train_P = data.corpus, data.split.train_P
    modality_P = corpus.modality_N[corpus.item_P[train_P]]
    pairs = set(zip(corpus.modality_N.tolist(), corpus.file_N.tolist(), strict=True))
    files = Counter(modality for modality, _ in pairs)
    return fit_modality_prior(
        [corpus.texts[p] for p in train_P],
        modality_P.tolist(),
        lambda rows: tower.queries.caption(train_P[rows]),
        dict(run.index.manifest.embedder.spaces),
        files,
        TEXT_DIM,
        run.options.seed,
    )


@dataclass(frozen=True, slots=True)
class _Stage:
    run: Run
    data: TrainingData
    tower: TrainedTower
    identifiers: FittedIdentifiers
    generator: TrainedGenerator

    def calibrate(self, prior: ModalityPrior) -> Calibration:
        base = self._defaults()
        split = self.data.split
        choose = self._strata(split.choose)
        if choose and not split.cross_fitted:
            with torch.inference_mode():
                base = replace(base, gates=self._gates(choose))
        identifiers, generator = self.identifiers, self.generator
        selection = GateSelection(
            generator.network, generator.data, self.tower.queries, identifiers.trie, base,
            NodeBonus(identifiers.trie, base.scale * HUB),
        )  # fmt: skip
        gates, beams = selection.select(choose, identifiers.rows_NL)
        report: dict[str, HeldOut] | None = None
        if not split.cross_fitted:
            strata = self._strata(split.report)
            decoded = {name: selection.beams(one, gates) for name, one in strata.items()}
            report = self._held_out(strata, decoded, prior)
        return calibrate(
            self._held_out(choose, beams, prior), report, self._items(prior),
            replace(base, gates=gates),
        )  # fmt: skip

    def _strata(self, pairs: HeldOutPairs) -> dict[str, Stratum]:
        """Queries of held-out pairs, by what they ask for."""
        rng = np.random.default_rng(self.run.options.seed)
        shares, queries = self._shares(), self.tower.queries
        out: dict[str, Stratum] = {}
        for name, found in pairs.strata.items():
            rows = rng.permutation(found)[:QUERIES]
            media = {space: queries.media(rows, space) for space in self.data.spaces}
            out[name] = Stratum(rows, media, shares[name])
        return out

    def _defaults(self) -> Calibration:
        """The calibration before anything is fitted to held-out queries."""
        corpus, identifiers = self.data.corpus, self.identifiers
        captions = bool(corpus.captioned.any()) and self.run.index.keeps_captions
        means = [
            _mean(identifiers.hub_N[corpus.vectors.spaces == space]) for space in self.data.spaces
        ]
        return replace(
            untrained(self.data.spaces, identifiers.codec.levels, captions),
            scale=self.tower.scale,
            beams=BEAMS,
            zero_shot=self.tower.queries.zero_shot,
            zero_shot_by=self.tower.queries.zero_shot_by,
            hub_means=[*means, _mean(identifiers.caption_hub_N)],
        )

    def _shares(self) -> dict[str, float]:
        """Assumed share of queries for items that training saw no caption of, and of the others."""
        without = float((~self.data.corpus.captioned).mean())
        return {"unseen": max(without, 0.05) if without else 0.01, "seen": 1.0 - without}

    def _gates(self, strata: Mapping[str, Stratum]) -> list[float]:
        """Gates that make held-out identifiers likeliest, strata mixed by their shares."""
        pairs = self.generator.data
        total = sum(one.share for one in strata.values())
        rng = np.random.default_rng(0)
        rows = np.concatenate(
            [
                rng.choice(one.rows, max(1, int(QUERIES * one.share / total)))
                for one in strata.values()
            ]
        )
        logits: list[list[torch.Tensor]] = []
        for begin in range(0, len(rows), 256):
            logits.append(corrections(self.generator.network, pairs, rows[begin : begin + 256]))
        joined = [torch.cat(level) for level in zip(*logits, strict=True)]
        items = pairs.corpus.item_P[rows]
        codes = pairs.encoder.compute.tensor(pairs.codes_NL[items]).long()
        return fit_gates(joined, pairs.prior(rows), list(codes.T))

    def _held_out(
        self,
        strata: Mapping[str, Stratum],
        beams: Mapping[str, list[Beams]],
        prior: ModalityPrior,
    ) -> dict[str, HeldOut]:
        """The queries of each stratum as a search encodes them. No held-out caption is known to
        the items, and none at all in an index that does not keep captions."""
        corpus, identifiers = self.data.corpus, self.identifiers
        out: dict[str, HeldOut] = {}
        for name, stratum in strata.items():
            caption_BW = self.tower.queries.caption(stratum.rows)
            out[name] = HeldOut(
                corpus.item_P[stratum.rows], stratum.media, caption_BW, beams[name],
                identifiers.caption_NW, identifiers.captioned_N, identifiers.caption_hub_N,
                prior.log_priors(caption_BW), stratum.share,
            )  # fmt: skip
        return out

    def _items(self, prior: ModalityPrior) -> Items:
        corpus = self.data.corpus
        number = {space: n for n, space in enumerate(self.data.spaces)}
        return Items(
            corpus.vectors.x_ND,
            np.asarray([number.get(str(s), -1) for s in corpus.vectors.spaces], np.intp),
            self.identifiers.rows_NL,
            corpus.file_N,
            self.identifiers.hub_N,
            np.asarray([prior.group_of[m] for m in corpus.modality_N.tolist()], np.intp),
        )


def _mean(values: FloatArray) -> float:
    """Mean of what is known; 0 where nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0
