"""Distillation: the embedder's own text vectors teach, but not of texts that judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cart_qdrant.embedders.zero_shot import TextAnchors, class_names
from cart_qdrant.index.models import DISTILLED
from cart_qdrant.records import text_key
from cart_qdrant.training.corpus import read_corpus
from cart_qdrant.training.split import split_pairs
from cart_qdrant.training.train import train
from tests.conftest import short_training
from tests.unit.training.toy_index import TextTowerEmbedder, toy_index


def test_no_held_out_text_is_an_anchor(tmp_path: Path, text_encoder: Any) -> None:
    embedder = TextTowerEmbedder(knows=True)
    with toy_index(tmp_path / ".cartq", embedder) as index, index.folder.lock():
        corpus = read_corpus(index)
        split = split_pairs(corpus, short_training().seed)
        train(index, short_training())
        generator = index.manifest.generator
        assert generator is not None
        anchors = TextAnchors.load(index.folder.path(generator.folder) / DISTILLED)
    held_out = {text_key(corpus.texts[p]) for p in split.held_out()}
    assert len(held_out) > 10
    assert held_out.isdisjoint(map(text_key, anchors.texts))
    learned = {text_key(corpus.texts[p]) for p in split.train_P}
    assert learned < set(map(text_key, anchors.texts))
    assert class_names()[0].split(",")[0] in anchors.texts
