"""Training, from the captions of an index to a model in force, in five stages.

The query tower, the stored captions, the identifiers in the metric of the queries, the generator,
and the calibration. Until the end the old version answers searches: new identifiers are written
under the next payload field, new caption vectors beside the old ones, and one replacement of the
manifest puts everything in force together.
"""

from __future__ import annotations

import time

import torch

from cart_qdrant.compute import Work, choose
from cart_qdrant.index.identify import made_of, remove_stale
from cart_qdrant.index.index import Index
from cart_qdrant.progress import Reporter, Silent
from cart_qdrant.training.diagnostics import measure_diagnostics
from cart_qdrant.training.options import TrainOptions
from cart_qdrant.training.report import TrainReport
from cart_qdrant.training.stages.activation import activate
from cart_qdrant.training.stages.calibration import calibrate_search
from cart_qdrant.training.stages.captions import store_captions
from cart_qdrant.training.stages.data import read_data
from cart_qdrant.training.stages.generator import train_generator
from cart_qdrant.training.stages.identifiers import fit_identifiers
from cart_qdrant.training.stages.state import Run
from cart_qdrant.training.stages.tower import train_tower
from cart_qdrant.training.trained_model import Model


@torch.enable_grad()
def train(
    index: Index, options: TrainOptions | None = None, reporter: Reporter | None = None
) -> TrainReport:
    """Train on everything in an index and put the result in force.

    The caller holds `index.folder.lock()`. A killed run is resumed by the next one with the same
    data and options. The caller's random numbers and settings of torch are not touched.

    Raises:
        IndexMissingError: The index has no item.
        UsageError: This machine does not have the device, or the device not the number format.
    """
    begin = time.perf_counter()
    options = options or TrainOptions()
    compute = choose(options.compute, Work.TRAINING)
    run = Run(index, options, reporter or Silent(), compute)
    remove_stale(index)
    data = read_data(run)
    tower = train_tower(run, data)
    captions = store_captions(run, data, tower)
    identifiers = fit_identifiers(run, data, tower, captions)
    generator = train_generator(run, data, tower, identifiers)
    calibration, prior = calibrate_search(run, data, tower, identifiers, generator)
    summary = {
        "val_r10": round(tower.val_r10, 4),
        "pairs": len(data.split.train_P),
        "diagnostics": measure_diagnostics(
            generator.network, generator.data, identifiers.trie, calibration.gates,
            run.options.seed,
        ),
        "corpus": data.corpus.digest(),
        "split": data.split.digest(),
        "compute": compute.to_json(),
    }  # fmt: skip
    model = Model(data.encoder, tower.graph, generator.network, calibration, prior)
    activate(run, model, identifiers, captions, data.text_anchors, summary)
    return TrainReport(
        profile=run.options.profile,
        items=len(data.corpus),
        pairs=len(data.split.train_P),
        chosen_by=len(data.split.choose),
        val_r10=round(tower.val_r10, 4),
        unique_ratio=identifiers.info.unique_ratio,
        identifiers_from=made_of(identifiers.info),
        seconds=time.perf_counter() - begin,
        compute=compute,
        calibration=calibration,
        history=run.history,
        remarks=data.remarks,
    )
