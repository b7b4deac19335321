"""The prior of which modality a query is for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cart_qdrant.search.modality_prior import FLOOR, ModalityPrior


def a_prior(*modalities: str) -> ModalityPrior:
    """A prior with a group for each modality and weights for vectors of width 8."""
    rng = np.random.default_rng(0)
    w_GW = rng.normal(size=(len(modalities), 8)).astype(np.float32)
    b_G = rng.normal(size=len(modalities)).astype(np.float32)
    return ModalityPrior({m: n for n, m in enumerate(modalities)}, w_GW, b_G)


@given(st.lists(st.floats(-50, 50, width=32), min_size=8, max_size=8))
def test_priors_are_probabilities_and_nothing_is_ruled_out(q: list[float]) -> None:
    found = a_prior("image", "audio")
    p = np.exp(found.log_priors(np.asarray([q], np.float32))[0])
    assert p.sum() == pytest.approx(1, abs=1e-5)
    assert p.min() >= FLOOR / 2 - 1e-6


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    found = a_prior("image", "video", "audio")
    queries = np.eye(8, dtype=np.float32)
    found.save(tmp_path / "v.safetensors")
    again = ModalityPrior.load(tmp_path / "v.safetensors")
    assert again.group_of == found.group_of
    for q in queries[:, None]:
        assert np.array_equal(again.log_priors(q), found.log_priors(q))
