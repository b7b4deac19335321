"""How a long run tells what it does; the command line shows it as bars."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


class Reporter(Protocol):
    """Is told how a run goes."""

    def phase(self, name: str, total: int | None) -> None:
        """A step begins; `total` units of it are due if that is known."""

    def advance(self, units: int = 1) -> None:
        """Units of the step are done."""

    def say(self, line: str) -> None:
        """A remark for the user."""


@runtime_checkable
class MediaReporter(Reporter, Protocol):
    """Is also told how long the sounds and videos are that went by."""

    def media(self, seconds: float) -> None:
        """A file of that length is done."""


def tell(reporter: Reporter, seconds: float) -> None:
    """One file of that length is done."""
    if isinstance(reporter, MediaReporter):
        reporter.media(seconds)
    reporter.advance()


class Silent:
    """A reporter that shows nothing."""

    def phase(self, name: str, total: int | None) -> None:
        """Nothing is shown."""

    def advance(self, units: int = 1) -> None:
        """Nothing is shown."""

    def say(self, line: str) -> None:
        """Nothing is shown."""
