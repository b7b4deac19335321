"""The query encoder in ONNX Runtime agrees with the one in torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cart_qdrant.embedders.text.folder import text_encoder_folder
from cart_qdrant.generator.encoder import OnnxQueryEncoder
from cart_qdrant.training.export import query_graph
from cart_qdrant.training.query_encoder import QueryEncoder

TEXTS = [
    "a dog surfing",
    "Two people walk along the beach at sunset, and a third one takes a picture of them.",
    "rain",
    "ein Hund läuft über eine Wiese",
]


@pytest.fixture(scope="module")
def encoder(text_encoder: Any) -> QueryEncoder:
    torch.manual_seed(0)
    made = QueryEncoder(text_encoder, {"visual": 24, "audio": 16}).eval()
    # Untrained, the tuned layers are equal to the frozen ones: which are read would not be tested.
    for layer in made.tuned:
        torch.nn.init.normal_(layer.down.weight, std=0.05)
    made.tunes_captions = True
    return made


@pytest.fixture(scope="module")
def quick(encoder: QueryEncoder) -> OnnxQueryEncoder:
    return OnnxQueryEncoder(query_graph(encoder), text_encoder_folder())


def test_vectors_are_those_of_the_encoder_within_int8(
    encoder: QueryEncoder, quick: OnnxQueryEncoder
) -> None:
    wanted = encoder.encode(encoder.tokenize(TEXTS))
    found = quick.encode(TEXTS)
    pairs = {
        "text": (wanted.text_BW, found.text_BW),
        "caption": (wanted.caption_BW, found.caption_BW),
        "visual": (wanted.media["visual"], found.media["visual"]),
        "audio": (wanted.media["audio"], found.media["audio"]),
    }
    for name, (one, other) in pairs.items():
        cosines = (one.numpy() * other).sum(axis=1)
        assert cosines.min() > 0.98, name
        np.testing.assert_allclose(np.linalg.norm(other, axis=1), 1, atol=1e-5)
    # What is unlike stays unlike: the vectors are not all the same.
    assert (found.text_BW @ found.text_BW.T)[0, 2] < 0.9
    assert found.hidden_states is None


def test_states_are_those_of_the_encoder(encoder: QueryEncoder, quick: OnnxQueryEncoder) -> None:
    wanted = encoder.encode(encoder.tokenize(TEXTS))
    found = quick.encode(TEXTS, hidden_states=True)
    assert found.hidden_states is not None
    np.testing.assert_array_equal(found.mask_BS, wanted.mask_BS.numpy())
    there = found.mask_BS
    for one, other in zip(wanted.hidden_states, found.hidden_states, strict=True):
        x, y = one.numpy()[there], other[there]
        assert np.linalg.norm(x - y) < 0.2 * np.linalg.norm(x)


def test_batches_come_back_in_order(quick: OnnxQueryEncoder) -> None:
    texts = [f"{'very ' * (n % 7)}old picture number {n}" for n in range(2 * 16 + 3)]
    together = quick.encode(texts, hidden_states=True)
    assert together.hidden_states is not None
    for n in (0, 5, len(texts) - 1):
        alone = quick.encode([texts[n]], hidden_states=True)
        assert float(together.media["visual"][n] @ alone.media["visual"][0]) > 0.97
        best = np.argmax(together.text_BW @ alone.text_BW[0])
        assert best == n or together.text_BW[best] @ together.text_BW[n] > 0.97
        length = int(alone.mask_BS.sum())
        assert int(together.mask_BS[n].sum()) == length
        assert (
            together.hidden_states[0][n, length:].shape
            == together.hidden_states[2][n, length:].shape
        )
