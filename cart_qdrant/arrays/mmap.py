"""Maps the arrays of a safetensors file into memory, without reading them.

`safetensors.numpy` copies what it loads: for a tree of ten million identifiers that takes a tenth
of a second and its size in memory. A mapped file is opened by a few system calls, and processes
share its pages.
"""

from __future__ import annotations

import json
import mmap
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cart_qdrant.errors import MismatchError

_TYPES = {"U8": "<u1", "U16": "<u2", "I32": "<i4", "U64": "<u8", "F32": "<f4", "F64": "<f8"}
_LENGTH = 8
"""Bytes at the beginning of a file that hold the length of its header."""


def map_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """All arrays of a safetensors file, read-only. They stay readable when the file is deleted.

    Raises:
        MismatchError: The file is no safetensors file, or is cut short.
    """
    with path.open("rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:  # an empty file
            raise MismatchError(f"{path} is not readable: {error}.") from error
    begin = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
    try:
        header: dict[str, Any] = json.loads(data[_LENGTH:begin])
        header.pop("__metadata__", None)
        return {name: _view(data, begin, **one) for name, one in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise MismatchError(
            f"{path} is not readable as safetensors: {error}.",
            "Repair the index: `cartq doctor --fix`.",
        ) from error


def _view(
    data: mmap.mmap, base: int, *, dtype: str, shape: list[int], data_offsets: list[int]
) -> npt.NDArray[Any]:
    begin, end = data_offsets
    kind = np.dtype(_TYPES[dtype])
    if not 0 <= begin <= end <= len(data) - base or end - begin != prod(shape) * kind.itemsize:
        raise ValueError(f"its {len(data)} bytes do not hold what its header names")
    return np.ndarray(shape, kind, buffer=data, offset=base + begin)
