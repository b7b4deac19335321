"""The losses of the query tower against the formula, item by item."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.arrays.vectors import unit
from cart_qdrant.compute import Compute
from cart_qdrant.training import tower_loss
from cart_qdrant.training.caption_bank import CaptionBank
from cart_qdrant.training.corpus import Corpus
from cart_qdrant.training.tower_loss import TowerLoss
from tests.unit.training.made_corpus import made_corpus

WIDTH, DIM = 4, 3
FACTORS = {"media": 5.0, "caption": 7.0, "beside": 3.0}


class _Encoder(nn.Module):
    """Heads that pass on the first columns, and known factors."""

    compute = Compute()

    def __init__(self, *spaces: str) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({space: nn.Identity() for space in spaces})

    def scales(self) -> dict[str, torch.Tensor]:
        return {name: torch.tensor(value) for name, value in FACTORS.items()}


def _corpus() -> Corpus:
    """Four photos and a sound. Photos 1 and 2 are segments of one file; photo 3 shares a text with
    photo 0 and has no other; the sound has one text."""
    texts = ["a dog", "the sea", "waves", "the shore", "Waves ", "a  dog", "rain", "foam"]
    items = [0, 0, 1, 1, 2, 3, 4, 2]
    corpus = made_corpus(texts, items, [0, 1, 1, 2, 3])
    rng = np.random.default_rng(0)
    vectors = corpus.vectors
    spaces = np.asarray(["visual"] * 4 + ["audio"])
    x_ND = unit(rng.standard_normal((5, DIM)).astype(np.float32))
    made = type(vectors)(vectors.ids, x_ND, spaces, vectors.modality_N, vectors.file_N)
    trust = np.asarray([1, 1, 0.5, 1, 1, 1, 1, 1], np.float32)
    return Corpus(made, texts, corpus.item_P, trust, corpus.captioned, corpus.file_N,
                  corpus.modality_N)  # fmt: skip


def _by_hand(corpus: Corpus, c_PW: FloatArray, q_PD: FloatArray, bank: FloatArray) -> float:
    """The summed losses of all pairs, by the formulas of the module's docstring."""
    total = 0.0
    item_P, x = corpus.item_P, corpus.vectors.x_ND
    key = [" ".join(text.lower().split()) for text in corpus.texts]
    for p, item in enumerate(item_P):
        mine = corpus.vectors.spaces == corpus.vectors.spaces[item]
        shared = {int(item_P[o]) for o in range(len(key)) if key[o] == key[p]} - {int(item)}
        media = {i: FACTORS["media"] * q_PD[p] @ x[i] for i in np.flatnonzero(mine)
                 if i not in shared}  # fmt: skip
        total += corpus.trust_P[p] * _surprise(media, int(item))
        if (item_P == item).sum() < 2:
            continue
        both = {}
        for i in media:
            if i != item and corpus.file_N[i] == corpus.file_N[item]:
                continue
            rows = (item_P == i) & (np.arange(len(item_P)) != p)
            m = unit(bank[rows].sum(axis=0)[None])[0]
            both[i] = FACTORS["caption"] * c_PW[p] @ m + FACTORS["beside"] * q_PD[p] @ x[i]
        total += corpus.trust_P[p] * _surprise(both, int(item))
    return total / len(item_P)


def _surprise(scores: dict[Any, Any], right: int) -> float:
    values = np.asarray(list(scores.values()), np.float64)
    return float(np.log(np.exp(values).sum()) - scores[right])


@pytest.mark.parametrize("negatives", [8_192, 1])
def test_losses_are_those_of_the_formulas(negatives: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tower_loss, "NEGATIVES", negatives)
    corpus = _corpus()
    rng = np.random.default_rng(1)
    bank_PW = unit(rng.standard_normal((8, WIDTH)).astype(np.float32))
    c_PW = unit(rng.standard_normal((8, WIDTH)).astype(np.float32))
    q_PD = unit(rng.standard_normal((8, DIM)).astype(np.float32))
    every = np.arange(8)
    bank = CaptionBank(corpus, every, bank_PW, Compute())
    loss = TowerLoss(_Encoder("visual", "audio"), corpus, every, bank)  # type: ignore[arg-type]
    parts = loss(torch.from_numpy(c_PW), torch.from_numpy(q_PD), every, rng)
    found = float(torch.stack(parts).sum())
    # With few negatives, those of the batch's own items are all there are.
    assert found == pytest.approx(_by_hand(corpus, c_PW, q_PD, bank_PW), rel=1e-4)


def test_a_space_without_a_head_is_left_out() -> None:
    corpus = _corpus()
    bank = CaptionBank(corpus, np.arange(8), np.ones((8, WIDTH), np.float32), Compute())
    loss = TowerLoss(_Encoder("visual"), corpus, np.arange(8), bank)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    sound = np.asarray([6])
    assert loss(torch.ones(1, WIDTH), torch.ones(1, DIM), sound, rng) == []
