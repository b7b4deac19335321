"""How a long run reports its progress, and how long it still takes; the command line shows bars."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

AT_ONCE = 0.01
"""Seconds; units that are done so soon after a phase began were done by an earlier run."""
_TRUST = 0.02
"""Share of a run for which its forecast counts as much as what is measured of it."""
_FIRST = 2
"""Units for which a forecast counts as much as what is measured of a phase."""


class Reporter(Protocol):
    """Receives the progress of a run."""

    def phase(self, name: str, total: int | None) -> None:
        """A step begins; `total` is its number of units, or None where that is not known."""

    def advance(self, units: int = 1) -> None:
        """Some units of the step are done."""

    def say(self, line: str) -> None:
        """A remark for the user."""


@runtime_checkable
class MediaReporter(Reporter, Protocol):
    """Receives also the length of each video and audio file that is done."""

    def media(self, seconds: float) -> None:
        """A file of that length is done."""


@dataclass(frozen=True, slots=True)
class ExpectedPhase:
    """A phase that a run will have, and the seconds that it is expected to take at most."""

    name: str
    seconds: float


@runtime_checkable
class ForecastReporter(Reporter, Protocol):
    """Receives also the phases that a run will have."""

    def expect(self, phases: Sequence[ExpectedPhase]) -> None:
        """These phases begin one after the other from now on."""


def expect(reporter: Reporter, phases: Sequence[ExpectedPhase]) -> None:
    """Report the phases of a run where the reporter receives them."""
    if isinstance(reporter, ForecastReporter):
        reporter.expect(phases)


class TimeLeft:
    """Seconds left of a phase, and of all phases where they were forecast.

    What was measured of the run so far corrects the forecast of the rest: a machine that is twice
    as slow as expected is so in later phases, too. A phase that stops early makes the rest shorter.

    Args:
        clock: Returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._later: list[ExpectedPhase] = []
        self._whole = self._forecast = self._measured = 0.0
        self._now: ExpectedPhase | None = None
        self._total: int | None = None
        self._done = self._skipped = 0
        self._begin = clock()

    def expect(self, phases: Sequence[ExpectedPhase]) -> None:
        """The phases from now on, in their order."""
        self._later = list(phases)
        self._whole = sum(phase.seconds for phase in phases)

    def phase(self, name: str, total: int | None) -> None:
        """A phase begins, of `total` units if that is known; the one before is over."""
        if self._now is not None:
            self._forecast += self._now.seconds * self._share()
            self._measured += self._clock() - self._begin
        names = [phase.name for phase in self._later]
        self._now = None
        if name in names:  # those before it were left out
            at = names.index(name)
            self._now, self._later = self._later[at], self._later[at + 1 :]
        self._total, self._done, self._skipped = total, 0, 0
        self._begin = self._clock()

    def advance(self, units: int) -> None:
        """Units of the phase are done."""
        if not self._done and self._clock() - self._begin < AT_ONCE:
            self._skipped += units
            self._begin = self._clock()
        else:
            self._done += units

    def of_phase(self) -> float | None:
        """Seconds left of the phase; None where nothing is known of it."""
        passed = self._clock() - self._begin
        if self._total is None:
            if self._now is None:
                return None
            return max(self._now.seconds * self._slowness() - passed, 0.0)
        left = max(self._total - self._skipped - self._done, 0)
        if self._now is None:
            return left * passed / self._done if self._done else None
        each = self._now.seconds * self._slowness() / max(self._total, 1)
        return left * (passed + _FIRST * each) / (self._done + _FIRST)

    def of_all(self) -> float | None:
        """Seconds left of all phases; None where they were not forecast."""
        here = self.of_phase()
        if self._now is None or here is None:
            return None
        return here + self._slowness() * sum(phase.seconds for phase in self._later)

    def _share(self) -> float:
        """Share of the phase that this run has done."""
        return 1.0 if not self._total else min(self._done / self._total, 1.0)

    def _slowness(self) -> float:
        """How much longer this run takes than its forecast."""
        forecast, measured = self._forecast, self._measured
        if self._now is not None and self._total and self._done:
            forecast += self._now.seconds * self._share()
            measured += self._clock() - self._begin
        trust = _TRUST * self._whole
        return (measured + trust) / (forecast + trust) if self._whole else 1.0


def file_done(reporter: Reporter, seconds: float) -> None:
    """Report one file that is done, and its length where the reporter receives it."""
    if isinstance(reporter, MediaReporter):
        reporter.media(seconds)
    reporter.advance()


def say_nothing(_line: str) -> None:
    """Ignore a remark; the default where a function takes a `say` or `note`."""


class Silent:
    """A reporter that shows nothing."""

    def phase(self, name: str, total: int | None) -> None:
        """Show nothing."""

    def advance(self, units: int = 1) -> None:
        """Show nothing."""

    def say(self, line: str) -> None:
        """Show nothing."""
