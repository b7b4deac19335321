"""The end of a training: everything new goes into force in one replacement of the manifest."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

from cart_qdrant.embedders.zero_shot import TextAnchors
from cart_qdrant.files import folder_hash, rename_durably
from cart_qdrant.index.identify import activate_identifiers
from cart_qdrant.index.manifest import Artifact, CaptionVectors, GeneratorInfo
from cart_qdrant.index.models import DISTILLED
from cart_qdrant.training.stages.state import FittedIdentifiers, Run, StoredCaptions
from cart_qdrant.training.trained_model import Model, parameters


def activate(
    run: Run,
    model: Model,
    identifiers: FittedIdentifiers,
    captions: StoredCaptions,
    anchors: TextAnchors | None,
    summary: Mapping[str, Any],
) -> None:
    """Write the model's folder, and put model, identifiers and captions in force. The old ones stay
    until the next run that writes, for the searches that have them open.

    Args:
        anchors: Distilled texts, which are kept with the model unless the index has its own.
        summary: What the manifest tells of the training, besides its options and recalls.
    """
    index, info = run.index, identifiers.info
    folder = index.folder.root / f"generator-{info.version}"
    draft = index.folder.work / folder.name
    model.save(draft, identifiers.bank)
    if anchors is not None and index.text_anchors() is None:
        anchors.save(draft / DISTILLED)
    if folder.exists():
        shutil.rmtree(folder)  # of a run that was killed before the manifest named it
    rename_durably(draft, folder)
    written = Artifact(folder.name, folder_hash(folder))
    generator = GeneratorInfo(
        version=info.version,
        folder=written,
        identifiers=info.version,
        summary={
            "profile": run.options.profile,
            "seed": run.options.seed,
            "parameters": parameters(model),
            "held_out": model.calibration.held_out,
            "cross_fitted": model.calibration.cross_fitted,
            "ece": model.calibration.ece,
            **summary,
        },
    )
    made = CaptionVectors(vector=captions.vector, encoder=written if captions.tuned else None)
    activate_identifiers(index, info, generator, made)
    index.clear_work(["train"])
