"""Identifiers of pictures and captions together, from a training to a search."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from qdrant_client import models

from cart_qdrant.identifiers.parts import captioned
from cart_qdrant.index.health import check, known_health
from cart_qdrant.index.identifier_files import load_codec
from cart_qdrant.index.identify import assign_new
from cart_qdrant.index.index import Index
from cart_qdrant.records import Modality, Segment
from cart_qdrant.search.query import Part, Query
from cart_qdrant.search.retriever import Retriever
from cart_qdrant.training.report import TrainReport
from cart_qdrant.training.train import train
from cart_qdrant_cli.info import describe_index
from cart_qdrant_cli.options import Target
from tests.conftest import short_training
from tests.unit.training.toy_index import TextTowerEmbedder, toy_index

DESCRIBED, NEW = "red-boat-beach.png", "red-ferry.png"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Index, TrainReport]]:
    """Described pictures that were trained on, and one that came afterwards without a caption."""
    embedder = TextTowerEmbedder(knows=True)
    root = tmp_path_factory.mktemp("joint") / ".cartq"
    with toy_index(root, embedder) as index, index.folder.lock():
        report = train(index, short_training(20))
        x = embedder.meant("red boat beach")
        index.changes.add([new_id()])
        index.store.upsert(
            [
                models.PointStruct(
                    id=new_id(),
                    vector={"media": (x / np.linalg.norm(x)).tolist()},
                    payload={
                        "path": NEW,
                        "modality": "image",
                        "hash": NEW,
                        "start": 0.0,
                        "end": 0.0,
                    },
                )
            ]
        )
        assert assign_new(index) == 0
        yield index, report


def new_id() -> str:
    return Segment(NEW, Modality.IMAGE).id


def space_of(index: Index, record: Any) -> str | None:
    """Identifier space of a point or of a hit."""
    info, codec = index.manifest.identifiers, load_codec(index)
    assert info is not None and codec is not None
    return codec.name_of((record.payload or {})[info.field]["codes"][0])


def test_the_report_and_info_say_what_identifiers_are_made_of(
    trained: tuple[Index, TrainReport],
) -> None:
    index, report = trained
    assert report.to_json()["identifiers"]["from"] == "both"
    assert any("media and captions together" in line for line in report.summary_lines())
    found = describe_index(Target(index=index.folder.root))
    assert found["identifiers"]["from"] == "both"


def test_doctor_finds_nothing_wrong_after_a_training(trained: tuple[Index, TrainReport]) -> None:
    index, _ = trained
    health, known = check(index), known_health(index)
    assert health is not None and health.passed, health
    assert known is not None and not known.problems
    assert known.sizes == {"visual": 1, captioned("visual"): 240}
    assert known.fitted_on_items == 240


def test_a_described_and_a_new_picture_are_found_by_what_they_have(
    trained: tuple[Index, TrainReport],
) -> None:
    index, _ = trained
    hits = (
        Retriever(index)
        .search("a red boat on the beach", lane="generative", k=241, explain=True)
        .hits
    )
    by_path = {str(hit.payload["path"]): hit for hit in hits}
    assert space_of(index, by_path[DESCRIBED]) == captioned("visual")
    assert space_of(index, by_path[NEW]) == "visual"
    for hit in (by_path[DESCRIBED], by_path[NEW]):
        assert hit.why is not None
        steps = hit.why["identifier_path"]
        assert len(steps) == 4 and all(step["log_prob"] is not None for step in steps), steps
    assert by_path[DESCRIBED].why["identifier_path"][0]["description"]  # type: ignore[index]


def test_a_picture_as_a_query_names_described_pictures(trained: tuple[Index, TrainReport]) -> None:
    index, _ = trained
    record = next(r for r in index.store.scroll() if (r.payload or {})["path"] == DESCRIBED)
    query = Query((Part("like", str(record.id)),))
    hits = Retriever(index).search(query, lane="generative", k=3, explain=True).hits
    assert {space_of(index, hit) for hit in hits} >= {captioned("visual")}
    described = next(hit for hit in hits if space_of(index, hit) == captioned("visual"))
    assert described.why is not None
    assert all(step["log_prob"] is not None for step in described.why["identifier_path"])
