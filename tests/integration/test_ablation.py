"""The ablations on a small trained index: every variant is real, tables and plots are written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import models

from cart_qdrant.errors import UsageError
from cart_qdrant.evaluation.ablation.report import write_report
from cart_qdrant.evaluation.ablation.results import GrowthResult, VariantResult
from cart_qdrant.evaluation.ablation.run import ablate
from cart_qdrant.evaluation.ablation.variants import AblationOptions, variants
from cart_qdrant.evaluation.training_diagnostics import read_diagnostics
from cart_qdrant.index.collection import TEXT_DIM
from cart_qdrant.index.identify import refit
from cart_qdrant.index.index import Index
from cart_qdrant.records import Modality, Segment
from cart_qdrant.training.train import train
from tests.conftest import PatchEmbedder, short_training

COLOURS = ["red", "blue", "green", "white", "black", "brown", "grey", "pink"]
THINGS = ["dog", "cat", "car", "boat", "horse", "bird", "train", "house", "tree", "child"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    """Eighty things of a colour, each with two captions; vectors that say what they are."""
    index = Index.create(tmp_path_factory.mktemp("ablate") / ".cartq", PatchEmbedder())
    rng = np.random.default_rng(0)
    colour, thing = rng.normal(size=(len(COLOURS), 48)), rng.normal(size=(len(THINGS), 48))
    points = []
    for c, colour_name in enumerate(COLOURS):
        for t, thing_name in enumerate(THINGS):
            x = colour[c] + thing[t] + 0.3 * rng.normal(size=48)
            texts = [f"a {colour_name} {thing_name}", f"the {thing_name} is {colour_name}"]
            encoded = index.text_encoder().embed(texts).mean(axis=0)
            assert encoded.shape == (TEXT_DIM,)
            path = f"{colour_name}-{thing_name}.png"
            points.append(
                models.PointStruct(
                    id=Segment(path, Modality.IMAGE).id,
                    vector={
                        "media": (x / np.linalg.norm(x)).tolist(), "caption": encoded.tolist()
                    },
                    payload={
                        "path": path, "modality": "image", "hash": path, "start": 0.0, "end": 0.0,
                        "captions": [{"text": text, "source": "metadata"} for text in texts],
                    },
                )
            )  # fmt: skip
    index.store.upsert(points)
    refit(index)
    with pytest.raises(UsageError, match="not trained"):
        next(ablate(index))
    with index.folder.lock():
        train(index, short_training(tower_steps=60))
    yield index
    index.close()


def test_what_training_may_have_seen_is_not_asked(trained: Index) -> None:
    """Another split of the same texts, as another version would make it."""
    manifest = trained.manifest
    assert manifest.generator is not None
    summary = {**manifest.generator.summary, "split": "another"}
    try:
        trained.put(replace(manifest, generator=replace(manifest.generator, summary=summary)))
        with pytest.raises(UsageError, match="what was held out is not known"):
            next(ablate(trained, AblationOptions(seeds=1, pairs=100)))
    finally:
        trained.put(manifest)


def test_every_variant_is_judged(trained: Index, tmp_path: Path) -> None:
    options = AblationOptions(seeds=1, pairs=100, queries=10, beams=20)
    found = list(ablate(trained, options))
    rows = [one for one in found if isinstance(one, VariantResult)]
    growth = [one for one in found if isinstance(one, GrowthResult)]
    info = trained.manifest.identifiers
    assert info is not None
    names = [variant.name for variant in variants((8, 8, 3))]
    lengths = {row.variant for row in rows if row.group == "length"}
    assert {"full", "no prior (as the paper)", "prior alone", "no RQ"} <= {r.variant for r in rows}
    assert lengths == {"length 4", "length 5", "length 6"} <= set(names)
    for row in rows:
        for measured in (row.beams, row.reranked, row.dense):
            assert set(measured) == {"unseen", "seen"}
            for recall in measured.values():
                assert 0 <= recall[1] <= recall[5] <= recall[10] <= 1
    by_name = {row.variant: row for row in rows}
    # Without residual codes, items of a cluster are told apart by the counter alone.
    assert by_name["no RQ"].unique_ratio < by_name["full"].unique_ratio
    assert by_name["noise 1.0"].dense["unseen"][10] <= by_name["full"].dense["unseen"][10]
    assert growth[-1].candidates == 80 and set(growth[-1].r10) == set(growth[-1].queries_per_second)

    paths = write_report(rows, growth, options, tmp_path / "out")
    assert [path.name for path in paths] == [
        "ablation.json", "ablation.md", "variants.png", "growth.png"
    ]  # fmt: skip
    assert len(json.loads(paths[0].read_text())["rows"]) == len(rows)
    table = paths[1].read_text()
    assert all(f"| {row.variant} |" in table for row in rows)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths[2:])


def test_training_measured_what_doctor_judges(trained: Index) -> None:
    generator = trained.manifest.generator
    assert generator is not None
    diagnostics = generator.summary["diagnostics"]
    assert {"train", "unseen"} <= set(diagnostics["loss"])
    assert 0 <= diagnostics["valid_identifiers"] <= 1
    # Recalls of sixteen held-out queries say nothing.
    assert not any("R@10" in line for line in read_diagnostics(generator.summary))
