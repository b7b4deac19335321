"""Progress of `cartq ingest`: files a second, seconds of audio and video a second, time left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from cart_qdrant_cli import output
from cart_qdrant_cli.output import BarReporter, Reporter, clock, remark, stderr


class Pace:
    """Rates of a step since it began.

    Args:
        total: Files that are due, if that is known.
    """

    def __init__(self, total: int | None) -> None:
        self.total = total
        self.files = 0
        self.seconds = 0.0
        """Length of the audio and video that is done."""
        self._begin = time.monotonic()

    def __str__(self) -> str:
        passed = time.monotonic() - self._begin
        if not self.files or passed <= 0:
            return ""
        parts = [f"{self.files / passed:.1f} files/s"]
        if self.seconds:
            parts.append(f"{self.seconds / passed:.1f} s of media/s")
        if self.total is not None:
            left = max(self.total - self.files, 0) * passed / self.files
            parts.append(f"{clock(left)} left")
        return ", ".join(parts)


class MediaBar(BarReporter):
    """A bar with its pace, for a terminal."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(progress)
        self._pace = Pace(None)

    def phase(self, name: str, total: int | None) -> None:
        """Replace the bar by one for the next step."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(name, total=total, pace="")
        self._pace = Pace(total)

    def media(self, seconds: float) -> None:
        """Audio or video of that length, in seconds, is done."""
        self._pace.seconds += seconds

    def advance(self, units: int = 1) -> None:
        """Move the bar on."""
        self._pace.files += units
        if self._task is not None:
            self._progress.update(self._task, advance=units, pace=str(self._pace))


class MediaLines:
    """A line with the pace from time to time, for a log."""

    def __init__(self) -> None:
        self._name = ""
        self._pace = Pace(None)
        self._last = time.monotonic()

    def phase(self, name: str, total: int | None) -> None:
        """Name the next step."""
        self._name, self._pace, self._last = name, Pace(total), time.monotonic()
        self.say(name if total is None else f"{name}: {total} files")

    def media(self, seconds: float) -> None:
        """Audio or video of that length, in seconds, is done."""
        self._pace.seconds += seconds

    def advance(self, units: int = 1) -> None:
        """Print a line when the last one is old enough."""
        self._pace.files += units
        now = time.monotonic()
        if now - self._last >= output.LOG_EVERY:
            self._last = now
            due = "" if self._pace.total is None else f" of {self._pace.total}"
            self.say(f"{self._name}: {self._pace.files}{due} files, {self._pace}")

    def say(self, line: str) -> None:
        """Print a line."""
        remark(line)


@contextmanager
def ingesting() -> Iterator[Reporter]:
    """A reporter on stderr; its bar disappears when the block ends."""
    console = stderr()
    if not console.is_terminal:
        yield MediaLines()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield MediaBar(progress)
