"""The errors that a user can meet: subclasses of `CartError`, each with a remedy.

A message says what happened, shows the two values that disagree, and ends with the command or
setting that repairs it. Errors of other libraries are mapped to these once, at the boundary.
"""

from __future__ import annotations

import re


class CartError(Exception):
    """Base of all errors of this package.

    Args:
        what: What happened, with the values that disagree.
        remedy: The command or setting that repairs it; may be empty.
    """

    exit_code = 1

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(f"{what} {remedy}".strip())
        self.what = what
        self.remedy = remedy


class UsageError(CartError):
    """An argument is wrong: unknown value, impossible combination."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration value is outside its range."""


class MissingExtraError(UsageError):
    """An optional dependency is not installed; the remedy is the exact `pip install`."""


class IndexMissingError(CartError):
    """There is no index, or no trained model, where one is needed."""

    exit_code = 3


class MismatchError(CartError):
    """Two artefacts of different versions met (embedder, identifiers, generator, collection)."""

    exit_code = 3


class StoreError(CartError):
    """The vector store refused or failed: locked, full, unreachable, corrupt."""

    exit_code = 3


class MediaError(CartError):
    """A file cannot be used; the run goes on and reports it at the end."""


class CaptionError(CartError):
    """A caption file cannot be read; the run goes on and reports it at the end."""


class VectorError(CartError):
    """A vector is not finite, is zero, or has the wrong dimension."""


class DownloadError(CartError):
    """A model could not be fetched, or is not what it should be."""

    exit_code = 3


_USER = re.compile(r"(//[^/?#@:\s]*):[^/?#\s]*@")


def hide_password(text: str) -> str:
    """A text with addresses, for messages: `http://user:secret@host` becomes
    `http://user:***@host`."""
    return _USER.sub(r"\1:***@", text)


def first_line(error: Exception) -> str:
    """The first line of another library's error; its class where the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]
