"""The embedder's own text tower stays in use where it finds more than what was learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cart_qdrant.index.index import Index
from cart_qdrant.search.fusion import EMBEDDER
from cart_qdrant.search.retriever import Retriever
from cart_qdrant.training.query_source import QuerySource, _choose
from cart_qdrant.training.report import TrainReport
from cart_qdrant.training.train import train
from tests.conftest import short_training
from tests.unit.training.toy_index import TextTowerEmbedder, toy_index

QUERY = "green car of the garden"


def asked(root: Path, embedder: TextTowerEmbedder) -> list[str]:
    """Paths that a search of the media vectors finds."""
    with Index.open(root) as index:
        index.set_embedder(embedder)
        with Retriever(index) as retriever:
            return [hit.path for hit in retriever.search(QUERY, k=5, lane="dense").hits]


def trained(root: Path, embedder: TextTowerEmbedder, steps: int) -> TrainReport:
    """Train the index in a folder."""
    with Index.open(root) as index, index.folder.lock():
        index.set_embedder(embedder)
        return train(index, short_training(tower_steps=steps))


def test_a_text_tower_that_knows_more_answers_searches(tmp_path: Path, text_encoder: Any) -> None:
    """One step of training teaches nothing: searches must not become worse by it."""
    embedder, root = TextTowerEmbedder(knows=True), tmp_path / ".cartq"
    toy_index(root, embedder).close()
    right = "green-car-garden.png"
    assert asked(root, embedder)[0] == right
    report = trained(root, embedder, steps=1)
    found = report.calibration
    assert (found.zero_shot_by, found.zero_shot >= 0.75) == (EMBEDDER, True)
    assert report.to_json()["zero_shot"] == {"share": found.zero_shot, "by": "embedder"}
    assert any("each search loads" in line for line in report.summary_lines())
    # What was calibrated are the vectors that searches ask with.
    assert found.held_out["unseen"]["dense"]["R@10"] > 0.9
    embedder.asked.clear()
    assert asked(root, embedder)[0] == right
    assert QUERY in embedder.asked


def test_a_text_tower_that_knows_nothing_is_left_out(tmp_path: Path, text_encoder: Any) -> None:
    embedder, root = TextTowerEmbedder(knows=False), tmp_path / ".cartq"
    toy_index(root, embedder).close()
    report = trained(root, embedder, steps=12)
    assert report.calibration.zero_shot == 0
    assert report.to_json()["zero_shot"]["by"] is None
    embedder.asked.clear()
    assert any("car" in path for path in asked(root, embedder)) and QUERY not in embedder.asked


def test_the_embedder_must_be_clearly_better() -> None:
    sources = [QuerySource(), QuerySource(0.5), QuerySource(0.5, EMBEDDER)]
    weight = np.full(100, 0.01)
    for more, wanted in ((0.0, 0), (0.01, 0), (0.05, 2)):
        value = np.tile(np.asarray([1.0, 1.0, 1.0 + more]), (100, 1))
        assert _choose(sources, value, weight) == sources[wanted]
    value = np.tile(np.asarray([1.0, 1.01, 1.02]), (100, 1))
    assert _choose(sources, value, weight) == sources[1]
