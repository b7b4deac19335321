"""Texts with known vectors: what they reach, what they name, and that they survive the disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cart_qdrant.embedders.zero_shot import TextAnchors

KEYS = np.eye(3, 4, dtype=np.float32)
VALUES = np.array([[1, 0], [0, 2], [-1, 0]], dtype=np.float32)
LEXICON = TextAnchors(["a cat", "a dog", "a bell"], KEYS, {"visual": VALUES})


def test_a_text_lands_near_its_likest_text() -> None:
    q = LEXICON.embed(np.array([[1, 0, 0, 0], [0.1, 0.9, 0, 0]], dtype=np.float32), "visual")
    assert q is not None
    assert q == pytest.approx(np.array([[1, 0], [0, 1]]), abs=1e-3)


def test_vectors_are_named_by_their_likest_text() -> None:
    x = np.array([[-1, 0.1], [0.2, 1]], dtype=np.float32)
    assert LEXICON.name(x, "visual") == ["a bell", "a dog"]


def test_nothing_reaches_another_space_nor_comes_of_no_text() -> None:
    empty = TextAnchors([], np.empty((0, 4), np.float32), {})
    assert LEXICON.embed(KEYS, "audio") is None and LEXICON.name(VALUES, "audio") is None
    assert empty.embed(KEYS, "visual") is None and empty.name(VALUES, "visual") is None


@settings(max_examples=20, deadline=None)
@given(texts=st.lists(st.text(max_size=20), max_size=5), seed=st.integers(0, 99))
def test_save_and_load_is_identity(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    keys = rng.standard_normal((len(texts), 4)).astype(np.float32)
    values = {"media": rng.standard_normal((len(texts), 3)).astype(np.float32)}
    path: Path = tmp_path_factory.mktemp("lexicon") / "one.safetensors"
    one = TextAnchors(texts, keys, values)
    one.save(path)
    again = TextAnchors.load(path)
    assert list(again.texts) == texts
    assert np.array_equal(again.keys_TW, keys)
    assert np.array_equal(again.values["media"], values["media"])
    assert again.digest() == one.digest()
