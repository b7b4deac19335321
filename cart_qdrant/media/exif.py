"""Reads orientation and description from EXIF, and refuses a corrupt block.

Pillow reads the same fields, but tells of a corrupt block only by process-wide warnings, which
decoder threads cannot catch safely (docs/experiments.md).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_ORIENTATION = 0x0112
_DESCRIPTION = 0x010E
_ASCII, _SHORT = 2, 3  # types of an EXIF field
_ENTRY = 12  # bytes of a directory entry
_MAX_TEXT = 4096  # bytes


@dataclass(frozen=True, slots=True)
class Exif:
    """The fields of the first directory that are used.

    Attributes:
        orientation: `Orientation`, from 1 (upright as stored) to 8.
        description: `ImageDescription`, stripped.
    """

    orientation: int = 1
    description: str = ""


def read_exif(block: bytes) -> Exif:
    """Read the EXIF block of a JPEG, PNG or WebP, with or without its leading `Exif` mark.

    Raises:
        ValueError: The block is corrupt.
    """
    block = block.removeprefix(b"Exif\x00\x00")
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        raise ValueError("EXIF has no byte order")
    orientation, description = 1, ""
    try:
        magic, start = struct.unpack_from(order + "HI", block, 2)
        (count,) = struct.unpack_from(order + "H", block, start)
        for n in range(count):
            entry = start + 2 + n * _ENTRY
            tag, kind, size = struct.unpack_from(order + "HHI", block, entry)
            if tag == _ORIENTATION and kind == _SHORT:
                (orientation,) = struct.unpack_from(order + "H", block, entry + 8)
            elif tag == _DESCRIPTION and kind == _ASCII:
                # Four bytes or fewer are stored in place of the offset.
                (offset,) = struct.unpack_from(order + "I", block, entry + 8)
                offset = entry + 8 if size <= 4 else offset
                text = block[offset : offset + min(size, _MAX_TEXT)]
                description = text.split(b"\0")[0].decode("utf-8", "replace").strip()
    except struct.error as error:
        raise ValueError(f"EXIF ends early ({len(block)} bytes)") from error
    if magic != 42 or not 1 <= orientation <= 8:
        raise ValueError(f"EXIF has magic number {magic} and orientation {orientation}")
    return Exif(orientation, description)
