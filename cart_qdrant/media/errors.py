"""Turns errors of PyAV, Pillow and the operating system into `MediaError`."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from cart_qdrant.errors import MediaError

DAMAGED = "Download or export it again."

# What Pillow's format plugins raise when a damaged header leads them astray.
PILLOW_ERRORS: tuple[type[Exception], ...] = (
    OSError,
    EOFError,
    ValueError,
    SyntaxError,
    LookupError,
    TypeError,
    OverflowError,
    NotImplementedError,
    struct.error,
    zlib.error,
)
_LIBRARIES = frozenset({"av", "PIL"})


@contextmanager
def media_errors(
    doing: str = "the file cannot be read", *, also: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Raise errors of the system and the libraries inside the block as `MediaError`.

    Args:
        doing: Start of the message, before the library's own words.
        also: Further errors that damaged content causes here; others are bugs and pass.
    """
    try:
        yield
    except PermissionError as error:
        raise MediaError(
            "the file cannot be read: permission denied.", "Change its permissions or exclude it."
        ) from error
    except FileNotFoundError as error:
        raise MediaError("the file is gone: it was moved or deleted during the run.") from error
    except MemoryError as error:
        raise MediaError(f"{doing}: it needs more memory than there is.", DAMAGED) from error
    except Exception as error:
        # Some errors of av and PIL have no builtin base.
        library = type(error).__module__.split(".")[0]
        if library not in _LIBRARIES and not isinstance(error, (OSError, EOFError, *also)):
            raise
        raise MediaError(f"{doing} ({_words(error)}).", DAMAGED) from error


def _words(error: BaseException) -> str:
    """The library's message without the path, errno and class around it."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0].rstrip(".")
