"""The progress of an ingestion: rates and the time left, as a bar and as lines."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress, TextColumn

from cart_qdrant.progress import MediaReporter, Silent, file_done
from cart_qdrant_cli import ingest_progress as module
from cart_qdrant_cli import output
from cart_qdrant_cli.ingest_progress import MediaBar, MediaLines, Pace, ingesting


class _Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    found = _Clock()
    monkeypatch.setattr(module, "time", found)
    return found


def test_pace(clock: _Clock) -> None:
    pace = Pace(10)
    assert str(pace) == ""
    clock.now += 2
    pace.files = 4
    assert str(pace) == "2.0 files/s, 0:03 left"
    pace.seconds = 30.0
    assert str(pace) == "2.0 files/s, 15.0 s of media/s, 0:03 left"
    pace.total = None
    assert str(pace) == "2.0 files/s, 15.0 s of media/s"


def test_lines(clock: _Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(module, "remark", said.append)
    lines = MediaLines()
    lines.phase("ingest", 8)
    clock.now += output.LOG_EVERY / 2
    file_done(lines, 20.0)
    clock.now += output.LOG_EVERY / 2
    file_done(lines, 10.0)
    lines.phase("identifiers", None)
    assert said == [
        "ingest: 8 files",
        "ingest: 2 of 8 files, 0.1 files/s, 2.0 s of media/s, 0:45 left",
        "identifiers",
    ]


def test_bar(clock: _Clock) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    with Progress(TextColumn("{task.description} {task.fields[pace]}"), console=console) as shown:
        bar = MediaBar(shown)
        bar.phase("ingest", 4)
        clock.now += 1
        file_done(bar, 3.0)
        (task,) = shown.tasks
        assert (task.completed, task.total) == (1, 4)
        shown.refresh()
        bar.phase("identifiers", None)
        assert [task.description for task in shown.tasks] == ["identifiers"]
    assert "ingest 1.0 files/s, 3.0 s of media/s, 0:03 left" in screen.getvalue()


def test_reporters_are_told_of_media_where_they_ask_for_it() -> None:
    file_done(Silent(), 3.0)
    assert not isinstance(Silent(), MediaReporter)
    with ingesting() as reporter:
        assert isinstance(reporter, MediaReporter)


def test_on_a_terminal_it_is_a_bar(monkeypatch: Any) -> None:
    console = Console(file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr(module, "stderr", lambda: console)
    with ingesting() as reporter:
        assert isinstance(reporter, MediaBar)
