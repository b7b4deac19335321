"""The text encoder gives what `sentence-transformers` gives for all-MiniLM-L6-v2."""

from __future__ import annotations

from typing import Any

import numpy as np

from cart_qdrant.embedders.text.tokenizer import MAX_TOKENS

TEXTS = ["a dog surfing", "Two people walk along the beach at sunset.", "naïve café №5"]
# sentence-transformers 6.2.0, normalize_embeddings=True: dimensions 0, 1, 100, 383.
AT = [0, 1, 100, 383]
VALUES = [
    [0.00796, -0.06152, 0.00255, 0.05655],
    [0.01541, 0.00273, -0.02463, 0.03215],
    [-0.01173, 0.00256, -0.04176, -0.05743],
]
COSINES = [[1, 0.0328, 0.01058], [0.0328, 1, -0.04367], [0.01058, -0.04367, 1]]


def test_sentence_vectors_are_those_of_the_reference(text_encoder: Any) -> None:
    x = text_encoder.encode_ids(text_encoder.tokenize(TEXTS)).numpy()
    assert x.shape == (3, 384) and x.dtype == np.float32
    np.testing.assert_allclose(x[:, AT], VALUES, atol=1e-4)
    np.testing.assert_allclose(x @ x.T, COSINES, atol=1e-4)
    assert ((x * text_encoder.embed(TEXTS)).sum(axis=1) > 1 - 1e-4).all()


def test_a_vector_does_not_depend_on_its_batch(text_encoder: Any) -> None:
    alone = np.concatenate([text_encoder.embed([text]) for text in TEXTS])
    longer = ["a much longer sentence about nothing at all"] * 20
    same = [text for text in TEXTS for _ in range(9)]
    for many in (TEXTS, [*TEXTS, *longer], [*longer, *TEXTS[::-1]][::-1], [*TEXTS, *same]):
        found = text_encoder.embed(many)[:3]
        np.testing.assert_allclose((found * alone).sum(axis=1), 1, atol=1e-6)


def test_batches_cover_every_text_once(text_encoder: Any) -> None:
    texts = [f"text {'word ' * (n % 7)}" for n in range(25)]
    rows = []
    for part, vectors_BD in text_encoder.batches(texts, batch=4):
        assert 1 <= len(part) <= 4
        assert vectors_BD.shape == (len(part), text_encoder.dim)
        rows += part
    assert sorted(rows) == list(range(25))


def test_long_text_is_cut_and_no_text_is_fine(text_encoder: Any) -> None:
    assert [len(ids) for ids in text_encoder.tokenize(["word " * 500, ""])] == [MAX_TOKENS, 2]
    assert text_encoder.embed([]).shape == (0, text_encoder.dim)
    assert np.isfinite(text_encoder.embed([""])).all()
