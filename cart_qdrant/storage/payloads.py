"""Checks payloads before they are written, and writes their keys as Qdrant's JSON paths."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from cart_qdrant.errors import StoreError

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")
_INT64 = range(-(2**63), 2**63)


def is_plain_key(key: str) -> bool:
    """Whether a payload key is a JSON path without quotes."""
    return _PLAIN_KEY.fullmatch(key) is not None


def quote_key(key: str) -> str:
    """A top-level payload key as a JSON path, in quotes where Qdrant needs them.

    Raises:
        StoreError: The key is empty, or has quotes itself.
    """
    if '"' in key or not key:
        raise StoreError(f"Payload key {key!r} cannot be addressed.", "Use a key without quotes.")
    return key if is_plain_key(key) else f'"{key}"'


def json_path(dotted: str) -> str:
    """A dotted path as a JSON path: parts with unusual characters are put in quotes."""
    return ".".join(quote_key(part) for part in dotted.split("."))


def json_bytes(payload: Mapping[str, Any] | None) -> int:
    """Size of a payload as JSON, in bytes where it is ASCII."""
    return len(json.dumps(payload)) if payload else 0


def clean_payload(value: Any, where: str = "payload") -> Any:
    """A copy of a payload made of plain JSON types only.

    Raises:
        StoreError: Something in it has no JSON form, or none that Qdrant keeps unchanged.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _clean_text(value, where)
    if isinstance(value, int) and value in _INT64:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, Mapping):
        return {_clean_key(k, where): clean_payload(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [clean_payload(v, where) for v in value]
    if isinstance(value, np.generic):
        return clean_payload(value.item(), where)
    raise StoreError(
        f"{where} holds {value!r} ({type(value).__name__}), which cannot be stored.",
        "Use strings, finite numbers of at most 64 bits, booleans, null, lists and objects.",
    )


def _clean_key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise StoreError(f"{where} has the key {key!r}.", "Keys must be strings.")
    return _clean_text(key, where)


def _clean_text(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise StoreError(
            f"{where} holds {text!r}, which is not valid Unicode.",
            "Rename the file, or escape the text before storing it.",
        ) from None
    return str(text)
