"""What a training says of its time: the phases that it forecasts are those that it has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from cart_qdrant.index.index import Index
from cart_qdrant.progress import ExpectedPhase
from tests.conftest import copy_of, short_training

pytest.importorskip("torch")


class Recorder:
    """Keeps what a run reports."""

    def __init__(self) -> None:
        self.expected: list[ExpectedPhase] = []
        self.phases: list[tuple[str, int | None]] = []
        self.said: list[str] = []

    def expect(self, phases: Sequence[ExpectedPhase]) -> None:
        self.expected += phases

    def phase(self, name: str, total: int | None) -> None:
        self.phases.append((name, total))

    def advance(self, units: int = 1) -> None:
        """Not of interest."""

    def say(self, line: str) -> None:
        self.said.append(line)


def test_a_training_forecasts_its_phases(small_index: Path, tmp_path: Path) -> None:
    from cart_qdrant.training.train import train

    copy_of(small_index, tmp_path / ".cartq")
    heard = Recorder()
    with Index.open(tmp_path / ".cartq") as index, index.folder.lock():
        report = train(index, short_training(), heard)
    assert [phase.name for phase in heard.expected] == [name for name, _ in heard.phases]
    assert all(phase.seconds > 0 for phase in heard.expected)
    assert heard.said[0].startswith("about ")
    assert heard.said[0].endswith(f" at most on {report.compute}")
