"""What each phase of a training costs, and how true its time left was.

    python benchmarks/training_phases.py .cartq --profile quick

Trains on the index at .cartq, from the beginning, and prints a Markdown table: seconds by the clock
and of processor time, what was forecast, and layer tokens (the unit of `training/forecast.py`) of a
unit. Then the time left that was told at each tenth of the run, against what was left.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cart_qdrant.compute import Work, choose, layer_token_seconds
from cart_qdrant.index.index import Index
from cart_qdrant.progress import ExpectedPhase, TimeLeft
from cart_qdrant.training.options import TrainOptions
from cart_qdrant.training.train import train


@dataclass
class Phase:
    """A phase of the run.

    Attributes:
        clock: When it began, by the clock.
        processor: When it began, in seconds of processor time.
        units: Units done.
    """

    name: str
    clock: float
    processor: float
    units: int = 0


@dataclass
class Recorder:
    """A reporter that keeps what it is told.

    Attributes:
        told: Seconds since the beginning, and the seconds left that were told then.
    """

    phases: list[Phase] = field(default_factory=list)
    expected: dict[str, float] = field(default_factory=dict)
    told: list[tuple[float, float]] = field(default_factory=list)
    left: TimeLeft = field(default_factory=TimeLeft)

    def expect(self, phases: Sequence[ExpectedPhase]) -> None:
        """Keep the forecast."""
        self.expected = {phase.name: phase.seconds for phase in phases}
        self.left.expect(phases)

    def phase(self, name: str, total: int | None) -> None:
        """Keep when it began."""
        self.phases.append(Phase(name, time.perf_counter(), time.process_time()))
        self.left.phase(name, total)
        self._tell()

    def advance(self, units: int = 1) -> None:
        """Count, and keep the time left."""
        self.phases[-1].units += units
        self.left.advance(units)
        self._tell()

    def say(self, line: str) -> None:
        """Print it."""
        print(line, flush=True)

    def _tell(self) -> None:
        whole = self.left.of_all()
        if whole is not None:
            self.told.append((time.perf_counter() - self.phases[0].clock, whole))


def main() -> None:
    """Train, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("index", type=Path, help="folder of the index")
    parser.add_argument("--profile", default="quick", help="of `cartq train`")
    given = parser.parse_args()
    options = TrainOptions(profile=given.profile, resume=False)
    each = layer_token_seconds(choose(options.compute, Work.TRAINING))
    found = Recorder()
    with Index.open(given.index) as index, index.folder.lock():
        report = train(index, options, found)
    found.phases.append(Phase("end", time.perf_counter(), time.process_time()))
    print(f"\n{report.pairs} captions of {report.items} items, {report.compute}")
    print("\n| phase | units | s | processor s | forecast s | layer tokens a unit |")
    print("|---|---:|---:|---:|---:|---:|")
    for phase, after in zip(found.phases, found.phases[1:], strict=False):
        spent = after.processor - phase.processor
        cost = spent / each / max(phase.units, 1)
        forecast = found.expected.get(phase.name, 0.0)
        passed = after.clock - phase.clock
        row = (phase.name, phase.units or "-", f"{passed:.1f}", f"{spent:.1f}",
               f"{forecast:.1f}", f"{cost:,.0f}")  # fmt: skip
        print("| " + " | ".join(map(str, row)) + " |")
    whole = found.phases[-1].clock - found.phases[0].clock
    print("\n| passed | left | told |\n|---:|---:|---:|")
    for tenth in range(1, 10):
        passed, told = min(found.told, key=lambda one: abs(one[0] - whole * tenth / 10))
        print(f"| {passed:.0f} s | {whole - passed:.0f} s | {told:.0f} s |")


if __name__ == "__main__":
    main()
