"""What the commands print: tables and JSON on stdout; progress, remarks and errors on stderr."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.table import Table
from rich.text import Text

from cart_qdrant import records
from cart_qdrant.progress import ExpectedPhase, TimeLeft
from cart_qdrant.records import Failure

PIPE_WIDTH = 160
"""Columns of a table that goes to a file or a pipe."""
SHOWN = 20
"""Rows of a list that are shown without --verbose."""
LOG_EVERY = 15.0
"""Seconds between two lines of progress where stderr is no terminal."""


class Reporter(Protocol):
    """Receives the progress of a run; the protocol of `cart_qdrant.index.ingest`."""

    def phase(self, name: str, total: int | None) -> None:
        """A step begins; `total` units of it are due if that is known."""

    def advance(self, units: int = 1) -> None:
        """Units of the step are done."""

    def say(self, line: str) -> None:
        """A remark for the user."""


def _console(file: IO[str], *, stderr: bool) -> Console:
    width = None if file.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(stderr=stderr, width=width, highlight=False, soft_wrap=False, emoji=False)


def stdout() -> Console:
    """The console for results."""
    return _console(sys.stdout, stderr=False)


def stderr() -> Console:
    """The console for everything that is no result."""
    return _console(sys.stderr, stderr=True)


def print_json(data: Mapping[str, Any]) -> None:
    """Print one object on one line of stdout."""
    sys.stdout.write(json.dumps(data) + "\n")
    sys.stdout.flush()


def plain(text: str) -> str:
    """Text that a terminal shows as it is: control characters and bytes that are not UTF-8
    become escapes."""
    safe = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in safe)


def remark(line: str) -> None:
    """One line on stderr."""
    stderr().print(Text(plain(line), style="dim"), soft_wrap=True)


def grid(*columns: str, title: str | None = None, right: tuple[str, ...] = ()) -> Table:
    """An empty table in the style of all of them."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return table


def facts(rows: Mapping[str, str]) -> Table:
    """A table of names and values without a header."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, Text(plain(value)))
    return table


def show_files(console: Console, title: str, rows: Sequence[Failure], shown: int) -> None:
    """The first of some files, each with its reason, and how many there are more."""
    if not shown:
        console.print(Text(f"{len(rows)} remarks; --verbose shows them", style="dim"))
        return
    table = grid("path", "reason", title=title)
    for row in rows[:shown]:
        table.add_row(Text(plain(row.path)), Text(plain(row.reason)))
    console.print(table)
    if len(rows) > shown:
        console.print(Text(f"and {len(rows) - shown} more; --json lists them all", style="dim"))
    console.print()


def show_planned(console: Console, verb: str, paths: Sequence[str], *, verbose: bool) -> None:
    """What a dry run would do to some files: the first of them, or all."""
    for path in paths if verbose else paths[:SHOWN]:
        console.print(Text(f"would {verb}  {plain(path)}"), soft_wrap=True)
    if len(paths) > SHOWN and not verbose:
        console.print(Text(f"and {len(paths) - SHOWN} more; --verbose shows them", style="dim"))


def size(count: int) -> str:
    """Bytes for people: `640 B`, `1.4 MB`."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def clock(seconds: float) -> str:
    """A duration as `m:ss`, or as `h:mm:ss` from one hour on; rounded."""
    return records.clock(round(seconds))


def counted(count: int, noun: str) -> str:
    """`1 clash`, `2 clashes`."""
    ending = "es" if noun.endswith("sh") else "s"
    return f"{count} {noun}{'' if count == 1 else ending}"


def duration(seconds: float) -> str:
    """`4.1 s`, or as `clock` in minutes from one minute on."""
    return f"{seconds:.1f} s" if seconds < 60 else f"{clock(seconds)} min"


def verdict(passed: bool) -> Text:
    """PASS or FAIL."""
    return Text("PASS", style="bold green") if passed else Text("FAIL", style="bold red")


class _Rate(ProgressColumn):
    """Units a second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        if task.total is None or not task.speed:
            return Text("")
        return Text(f"{task.speed:.1f} {self._unit}/s")


class _Left(ProgressColumn):
    """Time left of a step, and of all that are forecast."""

    max_refresh = 0.5

    def __init__(self, left: TimeLeft) -> None:
        super().__init__()
        self._left = left

    def render(self, task: Task) -> Text:  # noqa: ARG002 - there is one at a time
        return Text(time_left(self._left), style="progress.remaining")


def time_left(left: TimeLeft) -> str:
    """`0:12 left, 3:40 in all`; empty where nothing is known."""
    here, whole = left.of_phase(), left.of_all()
    parts = [] if here is None else [f"{clock(here)} left"]
    return ", ".join(parts if whole is None else [*parts, f"{clock(whole)} in all"])


class BarReporter:
    """Progress as a bar, for a terminal."""

    def __init__(self, progress: Progress, left: TimeLeft | None = None) -> None:
        self._progress = progress
        self._left = left or TimeLeft()
        self._task: TaskID | None = None

    def expect(self, phases: Sequence[ExpectedPhase]) -> None:
        """Show from now on how long all steps take together."""
        self._left.expect(phases)

    def phase(self, name: str, total: int | None) -> None:
        """Replace the bar by one for the next step."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(name, total=total)
        self._left.phase(name, total)

    def advance(self, units: int = 1) -> None:
        """Move the bar on."""
        self._left.advance(units)
        if self._task is not None:
            self._progress.advance(self._task, units)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(Text(plain(line), style="dim"), soft_wrap=True)


class LineReporter:
    """Progress as a line from time to time, for a log."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._name = ""
        self._total: int | None = None
        self._done = 0
        self._begin = self._last = time.monotonic()
        self._left = TimeLeft(time.monotonic)

    def expect(self, phases: Sequence[ExpectedPhase]) -> None:
        """Say from now on how long all steps take together."""
        self._left.expect(phases)

    def phase(self, name: str, total: int | None) -> None:
        """Name the next step."""
        self._name, self._total, self._done = name, total, 0
        self._begin = self._last = time.monotonic()
        self._left.phase(name, total)
        due = "" if total is None else f": {total} {self._unit}"
        self.say(f"{name}{due}")

    def advance(self, units: int = 1) -> None:
        """Print a line when the last one is old enough."""
        self._done += units
        self._left.advance(units)
        now = time.monotonic()
        if now - self._last < LOG_EVERY:
            return
        self._last = now
        rate = self._done / max(now - self._begin, 1e-9)
        line = f"{self._name}: {self._done}"
        if self._total is not None:
            line += f" of {self._total} {self._unit}, {rate:.1f}/s, {time_left(self._left)}"
        self.say(line)

    def say(self, line: str) -> None:
        """Print a line."""
        remark(line)


@contextmanager
def reporting(unit: str) -> Iterator[Reporter]:
    """A reporter on stderr that counts in `unit`s; its bar disappears when the block ends."""
    console = stderr()
    if not console.is_terminal:
        yield LineReporter(unit)
        return
    left = TimeLeft()
    columns: list[ProgressColumn] = [
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        _Rate(unit),
        _Left(left),
    ]
    with Progress(*columns, console=console, transient=True) as progress:
        yield BarReporter(progress, left)
