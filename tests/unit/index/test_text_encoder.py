"""The text encoder is all-MiniLM-L6-v2: numbers of `sentence-transformers` on the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cart_qdrant.index.text_encoder import MAX_TOKENS

TEXTS = ["a dog surfing on a wave", "two men play chess", "\u00fcn\u00efcode & numbers 123"]
# model.encode(TEXTS, normalize_embeddings=True)[:, :4]
FIRST_VALUES = [
    [-0.026194, -0.050785, 0.065094, 0.011328],
    [0.051505, 0.000429, -0.081690, -0.066904],
    [-0.045231, -0.026054, -0.043566, -0.096204],
]
FIRST_TO_ALL = [1.0, -0.071981, 0.042816]  # cosines of the first text with each


def test_vectors_are_those_of_sentence_transformers(text_encoder: Any) -> None:
    x_BD = text_encoder.embed(TEXTS)
    assert x_BD.shape == (3, 384) and x_BD.dtype == np.float32
    np.testing.assert_allclose(x_BD[:, :4], FIRST_VALUES, atol=2e-5)
    np.testing.assert_allclose(x_BD @ x_BD[0], FIRST_TO_ALL, atol=2e-5)


def test_padding_changes_nothing(text_encoder: Any) -> None:
    texts = [*TEXTS, "word " * 50]
    together = text_encoder.embed(texts)
    alone = np.concatenate([text_encoder.embed([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_many_texts_keep_their_order(text_encoder: Any) -> None:
    """Many are encoded by length, in batches and in bfloat16."""
    texts = [f"{'very ' * (n % 7)}number {n}" for n in range(30)]
    x_BD = text_encoder.embed(texts, batch=8)
    np.testing.assert_allclose(np.linalg.norm(x_BD, axis=1), 1, atol=1e-5)
    for n in (0, 13, 29):
        assert float(x_BD[n] @ text_encoder.embed([texts[n]])[0]) > 0.999


def test_no_text(text_encoder: Any) -> None:
    assert text_encoder.embed([]).shape == (0, 384)


def test_an_empty_text_has_a_vector(text_encoder: Any) -> None:
    assert float(np.linalg.norm(text_encoder.embed([""])[0])) == pytest.approx(1, abs=1e-5)


def test_long_texts_are_cut(text_encoder: Any) -> None:
    ids = text_encoder.tokenize(["word " * 500, "short"])
    assert [len(one) for one in ids] == [MAX_TOKENS, 3]
    same = text_encoder.embed(["word " * 500, "word " * 400])
    np.testing.assert_allclose(same[0], same[1], atol=1e-6)


def test_taps_are_states_of_tokens(text_encoder: Any) -> None:
    encoded = text_encoder.encode_ids(text_encoder.tokenize(TEXTS))
    assert len(encoded.taps) == len(text_encoder.taps)
    assert all(tap.shape == (*encoded.mask_BS.shape, 384) for tap in encoded.taps)
    # The last tap is the last layer, of which the sentence vector is the mean.
    last, mask = encoded.taps[-1], encoded.mask_BS[:, :, None].float()
    mean = (last * mask).sum(1)
    mean = mean / mean.norm(dim=-1, keepdim=True)
    np.testing.assert_allclose(mean.numpy(), encoded.pooled_BD.numpy(), atol=1e-5)
