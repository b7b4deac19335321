"""Requests to a shared store and its answers as bytes: JSON, and arrays of numbers beside it.

A message is two lengths, JSON, and the bytes of its arrays. JSON holds plain values as they are;
an object with the key `$` stands for another thing, whose class it names. Nothing but the classes
listed here is made from a message.
"""

from __future__ import annotations

import dataclasses
import json
import struct
import uuid
from array import array
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import numpy as np

from cart_qdrant.errors import StoreError
from cart_qdrant.storage import protocol
from cart_qdrant.storage import requests as qdrant

LENGTHS = struct.Struct("<QQ")
"""Lengths of the JSON and of the arrays, before them."""
LONGEST = 1 << 32
"""Bytes of a message that are accepted."""
_MANY = 32
"""Numbers of a list that are sent as an array, at least."""
_KIND = "$"
_CLASSES: dict[str, type[Any]] = {
    one.__name__: one
    for one in (
        qdrant.AcornSearchParams, qdrant.DatetimeRange, qdrant.FieldCondition, qdrant.Filter,
        qdrant.FoundIds, qdrant.HasIdCondition, qdrant.HasVectorCondition,
        qdrant.IsEmptyCondition, qdrant.MatchAny, qdrant.MatchText, qdrant.MatchValue,
        qdrant.PayloadField, qdrant.PointStruct, qdrant.QuantizationSearchParams,
        qdrant.QueryRequest, qdrant.Range, qdrant.Record, qdrant.ScoredPoint,
        qdrant.SearchParams, qdrant.TextQuery, protocol.CollectionInfo, protocol.CollectionSpec,
        protocol.VectorInfo,
    )
}  # fmt: skip
_POINTS = frozenset({"PointStruct", "Record", "ScoredPoint"})
"""Classes whose payload is JSON already, and is not walked through."""


def to_bytes(thing: Any) -> bytes:
    """A message with its lengths.

    Raises:
        StoreError: There is no form for a part of it.
    """
    arrays: list[bytes] = []
    try:
        text = json.dumps(_Encoder(arrays).encode(thing), separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"A request cannot be sent to the process with the store: {error}.") from (
            error
        )
    return b"".join([LENGTHS.pack(len(text), sum(map(len, arrays))), text, *arrays])


def from_bytes(text: bytes, arrays: bytes) -> Any:
    """The thing that a message holds."""
    return _Decoder(memoryview(arrays)).decode(json.loads(text))


class _Encoder:
    def __init__(self, arrays: list[bytes]) -> None:
        self._arrays = arrays
        self._length = 0

    def encode(self, thing: Any) -> Any:
        if thing is None or isinstance(thing, str | bool | int):
            return thing
        if isinstance(thing, float):
            return thing
        if isinstance(thing, list | tuple):
            if len(thing) >= _MANY and all(type(one) is float for one in thing):
                return self._array("floats", array("d", thing).tobytes())
            return [self.encode(one) for one in thing]
        if isinstance(thing, Mapping):
            out = {key: self.encode(value) for key, value in thing.items()}
            if any(not isinstance(key, str) for key in out):
                raise TypeError(f"a key of {thing!r:.80} is no text")
            return {_KIND: "map", "of": out} if _KIND in out else out
        return self._object(thing)

    def _object(self, thing: Any) -> Any:
        if isinstance(thing, np.ndarray):
            if thing.ndim != 1 or thing.dtype != np.float32:
                return self.encode(thing.tolist())
            return self._array("vector", thing.tobytes())
        if isinstance(thing, np.generic):
            return thing.item()
        if isinstance(thing, uuid.UUID):
            return str(thing)
        if isinstance(thing, datetime):
            return {_KIND: "time", "of": thing.isoformat()}
        if isinstance(thing, set | frozenset):
            return {_KIND: "set", "of": [self.encode(one) for one in thing]}
        name = type(thing).__name__
        if dataclasses.is_dataclass(thing) or name == "PointStruct":
            return self._fields(name, thing)
        if hasattr(thing, "model_dump"):  # of the client, which need not be imported here
            given = thing.model_dump(mode="json", exclude_unset=True, by_alias=True)
            return {_KIND: "client", "name": name, "of": self.encode(given)}
        raise TypeError(f"{name} has no form")

    def _fields(self, name: str, thing: Any) -> dict[str, Any]:
        out: dict[str, Any] = {_KIND: name}
        for field in dataclasses.fields(_CLASSES[name]):
            value = getattr(thing, field.name)
            if value is None:
                continue
            raw = field.name == "payload" and name in _POINTS
            out[field.name] = value if raw else self.encode(value)
        return out

    def _array(self, kind: str, data: bytes) -> dict[str, Any]:
        begin = self._length
        self._arrays.append(data)
        self._length += len(data)
        return {_KIND: kind, "of": [begin, self._length]}


class _Decoder:
    def __init__(self, arrays: memoryview) -> None:
        self._arrays = arrays

    def decode(self, thing: Any) -> Any:
        if isinstance(thing, list):
            return [self.decode(one) for one in thing]
        if not isinstance(thing, dict):
            return thing
        kind = thing.get(_KIND)
        if kind is None:
            return {key: self.decode(value) for key, value in thing.items()}
        if kind in _CLASSES:
            return self._made(kind, thing)
        of = thing["of"]
        if kind == "floats":
            return np.frombuffer(self._arrays[of[0] : of[1]], np.float64).tolist()
        if kind == "vector":
            return np.frombuffer(self._arrays[of[0] : of[1]], np.float32)
        if kind == "map":
            return {key: self.decode(value) for key, value in of.items()}
        if kind == "set":
            return frozenset(self.decode(of))
        if kind == "time":
            return datetime.fromisoformat(of)
        if kind == "client":
            from qdrant_client import models

            return getattr(models, thing["name"]).model_validate(self.decode(of))
        raise StoreError(f"A message names {kind!r}, which is not known here.")

    def _made(self, kind: str, thing: dict[str, Any]) -> Any:
        raw = "payload" if kind in _POINTS else None
        given = {
            key: value if key == raw else self.decode(value)
            for key, value in thing.items()
            if key != _KIND
        }
        return _CLASSES[kind](**given)
