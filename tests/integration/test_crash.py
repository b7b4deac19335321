"""Kill -9 in the middle of an ingest and of the flip to new identifiers, on real processes.

`benchmarks/crash.py` does the same more often; here a few kills guard against regressions.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from cart_qdrant.index.embedders import lite_available

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not lite_available(), reason="the wheels of the lite extra are missing"),
]
SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "crash.py"


@pytest.fixture(scope="module")
def crash() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_crash", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmarks_crash"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("what", ["ingest", "renew"])
def test_a_killed_run_loses_nothing_and_a_rerun_completes(
    crash: ModuleType, tmp_path: Path, what: str
) -> None:
    trials = crash.run_trials(what, tmp_path, 2, seed=1)
    assert [one.problems for one in trials] == [[], []]
    # A kill that always comes too late would show nothing.
    assert any(one.killed for one in trials)
