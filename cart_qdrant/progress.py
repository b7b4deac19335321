"""How a long run reports its progress; the command line shows it as bars."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


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
