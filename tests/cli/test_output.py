"""The lines and the bar of a run that says how long it will take."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from cart_qdrant.progress import ExpectedPhase, TimeLeft, expect
from cart_qdrant_cli import output
from cart_qdrant_cli.output import BarReporter, LineReporter, _Left, time_left


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    monotonic = __call__


@pytest.fixture
def clock() -> Clock:
    return Clock()


PHASES = [ExpectedPhase("query tower", 60), ExpectedPhase("generator", 120)]


def test_lines_tell_the_time_of_a_step_and_of_all(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(output, "time", clock)
    monkeypatch.setattr(output, "remark", said.append)
    lines = LineReporter("steps")
    expect(lines, PHASES)
    lines.phase("query tower", 60)
    for _ in range(20):
        clock.now += 1
        lines.advance()
    assert said == [
        "query tower: 60 steps",
        "query tower: 15 of 60 steps, 1.0/s, 0:45 left, 2:45 in all",
    ]
    lines.phase("something else", 4)
    clock.now += 20
    lines.advance()
    assert said[-1] == "something else: 1 of 4 steps, 0.1/s, 1:00 left"


def test_the_bar_tells_it_too(clock: Clock) -> None:
    left = TimeLeft(clock)
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with Progress(_Left(left), console=console) as progress:
        bar = BarReporter(progress, left)
        expect(bar, PHASES)
        assert time_left(left) == ""
        bar.phase("query tower", 60)
        clock.now += 20
        bar.advance(20)
        text = _Left(left).render(progress.tasks[0])
    assert text.plain == "0:40 left, 2:40 in all"
