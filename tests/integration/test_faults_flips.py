"""A flipped byte in a file of an index is told, or changes nothing; `benchmarks/faults_flips.py`
does more."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.faults_flips import run
from cart_qdrant.embedders.registry import lite_available

pytestmark = pytest.mark.skipif(
    not lite_available(), reason='needs pip install "cart-qdrant[lite]"'
)


def test_a_flipped_byte_is_told_or_changes_nothing(tmp_path: Path) -> None:
    only = ("manifest.json", "checked.json", "trie-*.safetensors", "generator-2/calibration.json")
    trials = run(tmp_path, flips=1, seed=0, only=only)
    assert len(trials) == 2 * len(only)
    assert {one.file: one.told for one in trials if one.outcome == "bare"} == {}
    # A disk that rots changes neither size nor time of a file: `cartq doctor` hashes all the same.
    unseen = [one for one in trials if one.outcome == "other"]
    assert all(one.rotten and one.doctor for one in unseen)
