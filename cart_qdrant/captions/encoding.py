"""Text files to text, whatever encoding they were written in."""

from __future__ import annotations

import codecs
import string

from cart_qdrant.extras import require

_NON_LATIN = (
    *("cp1251", "koi8_r", "cp1253", "cp1255", "cp1256"),  # Cyrillic, Greek, Hebrew, Arabic
    *("shift_jis", "euc_jp", "gb18030", "big5", "euc_kr"),  # Japanese, Chinese, Korean
)


def decode_text(data: bytes) -> str:
    """Decode the content of a text file.

    UTF-8 and UTF-16 (by its byte order mark) are certain. Anything else is a guess: where most
    letters lie beyond ASCII, charset-normalizer chooses among the encodings of non-Latin scripts;
    else the text is Windows-1252, which charset-normalizer takes for other encodings too often
    (docs/experiments.md).
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = _non_latin(data) if _is_non_latin(data) else None
    if text is not None:
        return text
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _is_non_latin(data: bytes) -> bool:
    """Whether more bytes lie beyond ASCII than are ASCII letters."""
    beyond = len(data.translate(None, bytes(range(128))))
    return beyond > len(data) - len(data.translate(None, string.ascii_letters.encode()))


def _non_latin(data: bytes) -> str | None:
    """The text in the likeliest encoding of a non-Latin script; None where none fits."""
    require("media", "charset_normalizer")
    from charset_normalizer import from_bytes

    best = from_bytes(data, cp_isolation=list(_NON_LATIN)).best()
    return None if best is None else str(best)
