"""What training fits to are the vectors that searches will have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cart_qdrant.arrays.vectors import unit
from cart_qdrant.embedders.text.folder import text_encoder_folder
from cart_qdrant.embedders.zero_shot import TextAnchors
from cart_qdrant.generator.encoder import OnnxQueryEncoder
from cart_qdrant.identifiers.hubness import CAPTION, media_space
from cart_qdrant.index.index import Index
from cart_qdrant.progress import Silent
from cart_qdrant.search.encoding import QueryEncoding
from cart_qdrant.search.fusion import blend
from cart_qdrant.search.loaded_index import LoadedIndex
from cart_qdrant.training.corpus import read_corpus
from cart_qdrant.training.export import query_graph
from cart_qdrant.training.query_encoder import QueryEncoder
from cart_qdrant.training.query_vectors import QueryVectors

WORDS = ["dog", "surfing", "ein", "Hund", "läuft", "very", "12", "?", "wave", "犬", "skateboard"]
TEXTS = st.lists(st.sampled_from(WORDS), min_size=0, max_size=80).map(" ".join)


@pytest.fixture(scope="module")
def encoder(text_encoder: Any) -> OnnxQueryEncoder:
    torch.manual_seed(0)
    made = QueryEncoder(text_encoder, {"visual": 24}).eval()
    return OnnxQueryEncoder(query_graph(made), text_encoder_folder())


@settings(max_examples=12)
@given(texts=st.lists(TEXTS, min_size=1, max_size=20))
def test_a_text_has_the_same_vectors_alone_and_among_others(
    encoder: OnnxQueryEncoder, texts: list[str]
) -> None:
    together = encoder.encode(texts, hidden_states=True)
    assert together.hidden_states is not None and together.mask_BS is not None
    for n, text in enumerate(texts):
        alone = encoder.encode([text], hidden_states=True)
        assert alone.hidden_states is not None and alone.mask_BS is not None
        np.testing.assert_array_equal(together.text_BW[n], alone.text_BW[0])
        np.testing.assert_array_equal(together.caption_BW[n], alone.caption_BW[0])
        np.testing.assert_array_equal(together.media["visual"][n], alone.media["visual"][0])
        length = int(alone.mask_BS.sum())
        assert int(together.mask_BS[n].sum()) == length
        for state, own in zip(together.hidden_states, alone.hidden_states, strict=True):
            np.testing.assert_array_equal(state[n, :length], own[0])


def test_equal_texts_are_encoded_once(encoder: OnnxQueryEncoder) -> None:
    texts = ["a dog", "the sea", "a dog", "a dog surfing", "the sea"]
    anchors = TextAnchors(
        ["dog", "sea"],
        encoder.encode(["dog", "sea"]).text_BW,
        {"visual": np.eye(2, 24, dtype=np.float32)},
    )
    found = QueryVectors.encode(encoder, texts, Silent()).by_anchors(anchors, 0.25)
    assert found.texts == ["a dog", "the sea", "a dog surfing"]
    rows = np.asarray([4, 2, 3, 0])
    alone = encoder.encode([texts[n] for n in rows])
    np.testing.assert_array_equal(found.caption(rows), alone.caption_BW)
    wanted = blend(alone.media["visual"], anchors.embed(alone.text_BW, "visual"), 0.25)
    np.testing.assert_allclose(found.media(rows, "visual"), wanted, atol=1e-6)
    states = found.with_hidden_states(rows).hidden_states
    assert states is not None and len(states[0]) == 4


def test_texts_are_not_encoded_again_where_captions_stay_untuned(text_encoder: Any) -> None:
    made = QueryEncoder(text_encoder, {"visual": 24}).eval()
    torch.nn.init.normal_(made.tuned[-1].down.weight, std=0.05)  # type: ignore[union-attr]
    texts = ["a dog", "the sea", "a dog", "a dog surfing on a wave"]
    made.tunes_captions = True
    tuned = QueryVectors.encode(OnnxQueryEncoder(query_graph(made), text_encoder_folder()),
                                texts, Silent())  # fmt: skip
    made.tunes_captions = False
    encoder = OnnxQueryEncoder(query_graph(made), text_encoder_folder())
    wanted, found = QueryVectors.encode(encoder, texts, Silent()), tuned.by_sentences(encoder)
    every = np.arange(len(texts))
    assert not np.allclose(tuned.caption(every), wanted.caption(every), atol=1e-2)
    np.testing.assert_array_equal(found.caption(every), wanted.caption(every))
    np.testing.assert_array_equal(found.media(every, "visual"), wanted.media(every, "visual"))
    new = ["ein Hund"]
    np.testing.assert_array_equal(found.encoder.captions(new), wanted.encoder.captions(new))


def test_hubness_is_measured_with_the_vectors_of_searches(trained: Path) -> None:
    with Index.open(trained) as index:
        bank = index.query_bank()
        texts = sorted(set(read_corpus(index).texts))
        assert bank is not None and texts
        encoded = QueryEncoding(LoadedIndex.load(index)).vectors(texts)
        vectors = {CAPTION: encoded.caption_BW}
        vectors |= {media_space(space): q_BD for space, q_BD in encoded.media.items()}
        assert len(bank.banks) > 1
        for space, kept_QD in bank.banks.items():
            # Kept in float16, so not quite of unit length; the encoder in torch is .995 away.
            nearest = (unit(kept_QD) @ vectors[space].T).max(axis=1)
            assert nearest.min() > 0.9999, space
