"""A collection of two kinds of media: many pictures, few sounds, not all described."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import models

from cart_qdrant.index.identify import refit
from cart_qdrant.index.index import Index
from cart_qdrant.records import Modality, Segment
from cart_qdrant.search.lanes import Lane
from cart_qdrant.search.retriever import Retriever
from cart_qdrant.training.corpus import read_corpus
from cart_qdrant.training.split import split_pairs
from cart_qdrant.training.train import train
from tests.conftest import PatchEmbedder, short_training

COLOURS = ["red", "blue", "green", "white", "black", "brown", "grey", "pink", "golden", "striped"]
THINGS = ["dog", "cat", "car", "boat", "horse", "bird", "train", "house", "tree", "child"]
LOUDNESS = ["loud", "soft", "distant", "sudden", "long", "short"]
SOURCES = ["bell", "siren", "engine", "whistle", "drum", "violin"]
BARE = {"a loud siren can be heard", "a soft drum can be heard", "the distant violin is heard"}


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Retriever]:
    """100 pictures and 36 sounds; the sounds' cosines with their queries are as they come."""
    index = Index.create(tmp_path_factory.mktemp("mixed") / ".cartq", PatchEmbedder())
    rng = np.random.default_rng(0)
    points = []
    for kind, first, second, pattern in (
        (Modality.IMAGE, COLOURS, THINGS, ("a {} {}", "the {1} is {0}")),
        (Modality.AUDIO, LOUDNESS, SOURCES, ("a {} {} can be heard", "the {} {} is heard")),
    ):
        parts = [rng.normal(size=(len(words), 48)) for words in (first, second)]
        for a, one in enumerate(first):
            for b, other in enumerate(second):
                x = parts[0][a] + parts[1][b] + 0.3 * rng.normal(size=48)
                texts = [form.format(one, other) for form in pattern]
                vector = {"media": (x / np.linalg.norm(x)).tolist()}
                if set(texts) & BARE:
                    texts = []
                else:
                    vector["caption"] = index.text_encoder().embed(texts).mean(axis=0).tolist()
                path = f"{one}-{other}.{kind.value}"
                payload = {
                    "path": path, "modality": kind.value, "hash": path, "start": 0.0, "end": 1.0,
                    "captions": [{"text": text, "source": "metadata"} for text in texts],
                }  # fmt: skip
                one_id = Segment(path, kind, 0.0, 1.0).id
                points.append(models.PointStruct(id=one_id, vector=vector, payload=payload))
    index.store.upsert(points)
    refit(index)
    with index.folder.lock():
        train(index, short_training(tower_steps=60))
    with Retriever(index) as found:
        yield found


@pytest.mark.parametrize("lane", ["dense", "auto"])
@pytest.mark.parametrize(
    ("query", "kind"),
    [
        ("a white horse", "image"),
        ("a golden boat", "image"),
        ("a sudden bell can be heard", "audio"),
        ("the long whistle is heard", "audio"),
    ],
)
def test_a_query_finds_its_kind(retriever: Retriever, lane: Lane, query: str, kind: str) -> None:
    hits = retriever.search(query, k=5, lane=lane, explain=True).hits
    assert hits[0].modality == kind
    why = hits[0].why
    # A hundred pictures and 36 sounds weigh by their square roots, before a query is read.
    share = {"image": 10 / 16, "audio": 6 / 16}
    assert why is not None and why["modality_prior"] > share[kind] + 0.05


def test_both_kinds_are_candidates(retriever: Retriever) -> None:
    hits = retriever.search("a black cat", k=136, lane="dense").hits
    assert {hit.modality.value for hit in hits} == {"image", "audio"}
    only = models.FieldCondition(key="modality", match=models.MatchValue(value="audio"))
    some = retriever.search("a black cat", k=5, filter=models.Filter(must=[only])).hits
    assert {hit.modality.value for hit in some} == {"audio"}


def test_items_without_a_caption_have_a_list_of_their_own(retriever: Retriever) -> None:
    query = "a loud siren can be heard"
    hits = retriever.search(query, k=20, lane="fused", explain=True).hits
    bare = [hit for hit in hits if hit.caption is None]
    assert "loud-siren.audio" in {hit.path for hit in bare}
    assert all("without_caption" in (hit.why or {})["rank_in"] for hit in bare)


def test_the_only_texts_of_a_space_are_held_out(tmp_path: Path, text_encoder: Any) -> None:
    """Then training knows two media spaces and one group of modalities."""
    index = Index.create(tmp_path / ".cartq", PatchEmbedder())
    rng = np.random.default_rng(0)
    points = []
    for n in range(44):
        kind = Modality.IMAGE if n < 40 else Modality.AUDIO
        text = f"a {COLOURS[n % 10]} {THINGS[n // 10]} number {n}" if n <= 40 else None
        path, x = f"{n}.{kind.value}", rng.normal(size=48)
        vector = {"media": (x / np.linalg.norm(x)).tolist()}
        if text is not None:
            vector["caption"] = text_encoder.embed([text])[0].tolist()
        payload = {
            "path": path, "modality": kind.value, "hash": path, "start": 0.0, "end": 1.0,
            "captions": [{"text": text, "source": "metadata"}] if text else [],
        }  # fmt: skip
        one = Segment(path, kind, 0.0, 1.0).id
        points.append(models.PointStruct(id=one, vector=vector, payload=payload))
    index.store.upsert(points)
    refit(index)
    corpus = read_corpus(index)
    sounds = corpus.modality_N == "audio"
    seed = next(s for s in range(1_000) if split_pairs(corpus, s).held_items[sounds].any())
    with index, index.folder.lock():
        report = train(index, replace(short_training(), seed=seed))
        assert report.calibration.spaces == ["audio", "visual"]
        with Retriever(index) as found:
            hits = found.search("a red dog number 0", k=44, lane="fused").hits
            assert {hit.modality.value for hit in hits} == {"image", "audio"}
