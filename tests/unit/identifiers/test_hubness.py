"""Hubness: what is near to every query has most of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cart_qdrant.identifiers.hubness import BANK, QueryBank

EYE = np.eye(4, dtype=np.float32)


def test_hubness_is_the_likeness_to_all_queries() -> None:
    bank = QueryBank({"media.visual": EYE[:2]}, {"media.visual": 5.0})
    hub = (EYE[0] + EYE[1]) / np.sqrt(2)
    found = bank.hubness(np.stack([EYE[0], EYE[3], hub]), "media.visual")
    wanted = [np.log((np.exp(5 * x) + np.exp(5 * y)) / 2) / 5 for x, y in ((1, 0), (0, 0))]
    assert found[:2] == pytest.approx(wanted, abs=1e-6)
    assert found[1] == pytest.approx(0, abs=1e-6)


def test_a_space_without_queries_has_no_hubness() -> None:
    bank = QueryBank.sample({"caption": EYE, "media.audio": EYE[:0]}, {"caption": 1.0})
    assert list(bank.banks) == ["caption"]
    assert np.isnan(bank.hubness(EYE, "media.audio")).all()


def test_a_bank_is_bounded_and_survives_the_disk(tmp_path: Path) -> None:
    q = np.random.default_rng(0).normal(size=(BANK + 50, 8)).astype(np.float32)
    bank = QueryBank.sample({"caption": q}, {"caption": 20.0})
    assert len(bank.banks["caption"]) == BANK
    bank.save(tmp_path / "bank.safetensors")
    again = QueryBank.load(tmp_path / "bank.safetensors")
    assert again.sharpness == bank.sharpness
    np.testing.assert_array_equal(again.hubness(q, "caption"), bank.hubness(q, "caption"))
