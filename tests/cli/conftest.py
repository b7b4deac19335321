"""Runs the program in the test's process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from cart_qdrant_cli import main as program


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object that stdout must be."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


Run = Callable[..., Outcome]


@pytest.fixture
def cartq(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the program in this process, through `main`."""
    monkeypatch.setenv("COLUMNS", "200")
    for variable in ("CARTQ_INDEX", "CARTQ_API_KEY"):
        monkeypatch.delenv(variable, raising=False)

    def run(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["cartq", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            program.main()
        found = capsys.readouterr()
        code = stop.value.code
        assert isinstance(code, int)
        return Outcome(code, found.out, found.err)

    return run
