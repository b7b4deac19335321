"""Ids of points: UUIDs or whole numbers of 64 bits, as text, as Qdrant takes them, and as keys.

A key has 16 bytes and can be searched for in a sorted array; keys sort as their ids do.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from cart_qdrant.arrays.types import KeyArray
from cart_qdrant.errors import StoreError

if TYPE_CHECKING:
    from qdrant_client import models

KEY_BYTES = 16
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_DIGITS = len(str(2**64))


def as_id(value: object) -> str:
    """The canonical form of a point id, as text. Our ids are UUIDs; others use numbers too.

    Raises:
        StoreError: It is neither a UUID nor a whole number of 64 bits.
    """
    text = str(value)
    if _UUID.fullmatch(text):
        return text
    # A UUID without hyphens may be all digits, too.
    if text.isascii() and text.isdigit() and len(text) <= _DIGITS and int(text) < 2**64:
        return str(int(text))
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise StoreError(
            f"Point id {value!r} is not a UUID, nor a whole number of 64 bits.",
            "Use Segment.id, or a UUID of your own.",
        ) from None


def wire_id(text: str) -> models.ExtendedPointId:
    """A canonical id as Qdrant takes it: numbers as `int`."""
    return int(text) if text.isdigit() else text


def wire_ids(ids: Iterable[str]) -> list[models.ExtendedPointId]:
    """Canonical ids as Qdrant takes them."""
    return [wire_id(text) for text in ids]


def key_of(id: object) -> bytes:
    """The 16 bytes of a point id that a store gave; they are not checked.

    A number has the key of the UUID with the same bits.
    """
    text = str(id)
    if text.isdigit():
        return int(text).to_bytes(KEY_BYTES, "big")
    return bytes.fromhex(text.replace("-", ""))


def keys_of(ids: Iterable[object]) -> KeyArray:
    """Keys (C,) of point ids that a store gave, see `key_of`."""
    keys = [
        one.int.to_bytes(KEY_BYTES, "big") if type(one) is uuid.UUID else key_of(one) for one in ids
    ]
    return np.frombuffer(b"".join(keys), dtype=f"S{KEY_BYTES}")
