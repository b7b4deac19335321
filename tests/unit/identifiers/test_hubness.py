"""Hubness: what is near to every query has most of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cart_qdrant.arrays.vectors import unit
from cart_qdrant.identifiers.hubness import BANK, FileArray, QueryBank

EYE = np.eye(4, dtype=np.float32)


def numbers(count: int, first: int = 0) -> FileArray:
    """Files that are all different."""
    return np.arange(first, first + count, dtype=np.uint64)


def test_hubness_is_the_likeness_to_all_queries() -> None:
    bank = QueryBank({"media.visual": EYE[:2]}, {"media.visual": 5.0}, {"media.visual": numbers(2)})
    hub = (EYE[0] + EYE[1]) / np.sqrt(2)
    found = bank.hubness(np.stack([EYE[0], EYE[3], hub]), "media.visual", numbers(3, 100))
    wanted = [np.log((np.exp(5 * x) + np.exp(5 * y)) / 2) / 5 for x, y in ((1, 0), (0, 0))]
    assert found[:2] == pytest.approx(wanted, abs=1e-6)
    assert found[1] == pytest.approx(0, abs=1e-6)


def test_a_space_without_queries_has_no_hubness() -> None:
    bank = QueryBank.sample(
        {"caption": EYE, "media.audio": EYE[:0]}, {"caption": 1.0}, {"caption": numbers(4)}
    )
    assert list(bank.banks) == ["caption"]
    assert np.isnan(bank.hubness(EYE, "media.audio", numbers(4))).all()


def test_a_bank_is_bounded_and_survives_the_disk(tmp_path: Path) -> None:
    q = np.random.default_rng(0).normal(size=(BANK + 50, 8)).astype(np.float32)
    bank = QueryBank.sample({"caption": q}, {"caption": 20.0}, {"caption": numbers(len(q))})
    assert len(bank.banks["caption"]) == BANK
    bank.save(tmp_path / "bank.safetensors")
    again = QueryBank.load(tmp_path / "bank.safetensors")
    assert again.sharpness == bank.sharpness
    found = bank.hubness(q, "caption", numbers(len(q)))
    np.testing.assert_array_equal(again.hubness(q, "caption", numbers(len(q))), found)


@given(st.integers(0, 2**31), st.integers(1, 6))
def test_the_captions_of_an_item_do_not_count_for_it(seed: int, files: int) -> None:
    """An item's hubness is that of a bank without its captions, whatever else is in the bank."""
    rng = np.random.default_rng(seed)
    q = unit(rng.normal(size=(12, 6)).astype(np.float32))
    x = unit(rng.normal(size=(5, 6)).astype(np.float32))
    owner = rng.integers(0, files, 12).astype(np.uint64)
    bank = QueryBank({"caption": q}, {"caption": 30.0}, {"caption": owner})
    of = rng.integers(0, files + 1, 5).astype(np.uint64)
    found = bank.hubness(x, "caption", of)
    for n in range(5):
        rest = owner != of[n]
        kept = QueryBank({"caption": q[rest]}, {"caption": 30.0}, {"caption": owner[rest]})
        if rest.any():
            alone = kept.hubness(x[n : n + 1], "caption", numbers(1, 1_000))
            np.testing.assert_allclose(found[n], alone[0], atol=1e-5)
        else:
            assert np.isnan(found[n])


def test_hubness_does_not_tell_what_was_trained_on() -> None:
    """Items with captions in the bank and items that came later have hubness of one distribution,
    where captions are as near to their items as trained ones are (review M4: the area under the
    curve was .96 to 1.00)."""
    rng = np.random.default_rng(0)
    x = unit(rng.normal(size=(400, 64)).astype(np.float32))
    q = unit(unit(rng.normal(size=(200, 64)).astype(np.float32)) + 0.6 * x[:200])
    bank = QueryBank({"caption": q}, {"caption": 60.0}, {"caption": numbers(200)})
    h = bank.hubness(x, "caption", numbers(400))
    trained, later = h[:200], h[200:]
    area = float((trained[:, None] > later[None, :]).mean())
    assert 0.4 < area < 0.6
    unowned = bank.hubness(x, "caption", numbers(400, 1_000))
    assert (unowned[:200][:, None] > unowned[200:][None, :]).mean() > 0.9
