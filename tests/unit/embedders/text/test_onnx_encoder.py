"""The text encoder without torch, and where its graph is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cart_qdrant.embedders.text import onnx_graph as bert_graph
from cart_qdrant.embedders.text.folder import text_encoder_folder
from cart_qdrant.embedders.text.onnx_encoder import OnnxTextEncoder

TEXTS = ["a dog on a surfboard", "Two children.", "the sound of a chainsaw " * 4]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CARTQ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_vectors_are_those_of_the_text_encoder_within_int8(text_encoder: Any) -> None:
    quick = OnnxTextEncoder(text_encoder_folder())
    wanted, found = text_encoder.embed(TEXTS), quick.embed(TEXTS)
    assert (wanted * found).sum(axis=1).min() > 0.98
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert (found @ found.T)[0, 2] < 0.9
    many = [f"{'very ' * (n % 7)}old picture number {n}" for n in range(35)]
    wanted, found = text_encoder.embed(many), quick.embed(many)
    assert (wanted * found).sum(axis=1).min() > 0.97
    alone = np.concatenate([quick.embed([text]) for text in many])
    np.testing.assert_array_equal(found, alone)


def test_the_graph_is_written_once_and_anew_when_it_is_damaged(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    write = bert_graph.text_graph

    def counted(folder: Path) -> bytes:
        written.append(folder)
        return write(folder)

    monkeypatch.setattr(bert_graph, "text_graph", counted)
    first = OnnxTextEncoder(text_encoder_folder()).embed(TEXTS)
    (kept,) = cache.glob("*.onnx")
    np.testing.assert_array_equal(OnnxTextEncoder(text_encoder_folder()).embed(TEXTS), first)
    assert len(written) == 1
    kept.write_bytes(kept.read_bytes()[:1000])
    np.testing.assert_array_equal(OnnxTextEncoder(text_encoder_folder()).embed(TEXTS), first)
    np.testing.assert_array_equal(OnnxTextEncoder(text_encoder_folder()).embed(TEXTS), first)
    assert len(written) == 2


def test_without_a_cache_it_works_all_the_same(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    assert OnnxTextEncoder(text_encoder_folder()).embed(TEXTS).shape == (3, 384)
