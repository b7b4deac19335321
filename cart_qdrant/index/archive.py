"""Unpacks the file of a backup, which may come from anybody: plain files, and of those few.

Nothing of an archive is taken but the names of an index and the bytes of its files: no links, no
devices, no owners, rights or times, and no more bytes than the disk has room for.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import tarfile
from pathlib import Path, PurePosixPath
from typing import IO

from cart_qdrant.errors import MismatchError, StoreError
from cart_qdrant.index.folder import VERSIONED

MOST_FILES = 20_000
"""Files and folders of an archive, at most; an embedded store has some hundreds."""
MOST_FOLDERS = 8
"""Folders above a file within the archive, at most."""
LONGEST_HEADER = 1 << 20
"""Bytes that are read at once into memory: a header can say that it has any length."""
RESERVE_BYTES = 256 << 20
"""Free space of the disk that is left alone."""
_BLOCK = 1 << 16
_TOP = re.compile(rf"manifest\.json|store\.json|store|embedder\.safetensors|{VERSIONED.pattern}")
"""Names at the top of a backup."""
_MADE_AGAIN = frozenset({"checked.json", "lock", "store.lock", "store.sock", "work", "copied-from"})
"""Names of an index folder that a backup may hold and that are not taken from it."""


def unpack(file: Path, folder: Path) -> None:
    """Unpack a backup into a new folder.

    Raises:
        MismatchError: It is no backup, or holds what no backup holds; the part is named.
        StoreError: The disk has too little room, or fails.
    """
    folder.mkdir()
    free = shutil.disk_usage(folder).free - RESERVE_BYTES
    total = count = 0
    try:
        with gzip.open(file, "rb") as data, _opened(_Bounded(data)) as archive:
            for member in archive:
                count += 1
                name = _name(member, file)
                total += member.size
                if count > MOST_FILES:
                    raise _strange(file, f"more than {MOST_FILES} files")
                if total > free:
                    raise StoreError(
                        f"{file} unpacks to {total >> 20} MB or more, but the disk of "
                        f"{folder.parent} has {max(free, 0) >> 20} MB to spare.",
                        "Free some space, or restore to another disk with --index.",
                    )
                if name is None:
                    continue
                target = folder.joinpath(*name.parts)
                if member.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                source = archive.extractfile(member)
                assert source is not None  # of a regular file
                with source, target.open("xb") as out:
                    _copy(source, out)
                    out.truncate(member.size)
            _read_end(data)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        if getattr(error, "errno", None) is not None:  # of the disk; one of gzip has no number
            raise StoreError(
                f"{file} cannot be unpacked into {folder.parent}: {error}.",
                "Free some space, or restore to another disk with --index.",
            ) from error
        raise MismatchError(
            f"{file} is not a backup of an index: {error}.", "Make one with `cartq backup FILE`."
        ) from error


def _read_end(data: gzip.GzipFile) -> None:
    """Read what follows the last file, by which gzip checks the whole.

    Raises:
        ValueError: It is longer than an archive ends.
    """
    if len(data.read(LONGEST_HEADER)) == LONGEST_HEADER:
        raise ValueError("it goes on behind its end")


def _opened(data: _Bounded) -> tarfile.TarFile:
    return tarfile.open(fileobj=data, mode="r:")  # type: ignore[call-overload,no-any-return]


def _name(member: tarfile.TarInfo, file: Path) -> PurePosixPath | None:
    """Where a part of the archive goes; None where it is not taken.

    Raises:
        MismatchError: It has no place in a backup.
    """
    shown = member.name[:200]
    if not (member.isdir() or member.isreg()) or member.issparse() or member.size < 0:
        raise _strange(file, f"{shown!r}, which is neither a file nor a folder")
    path = PurePosixPath(member.name)
    parts = path.parts
    is_plain = not path.is_absolute() and ".." not in parts and len(parts) <= MOST_FOLDERS
    if not is_plain or not member.name.isprintable() or "\\" in member.name:
        raise _strange(file, f"the name {shown!r}")
    if not parts or parts[0] in _MADE_AGAIN:
        return None
    is_folder = parts[0] == "store" or parts[0].startswith("generator-")
    if _TOP.fullmatch(parts[0]) is None or (len(parts) > 1 and not is_folder):
        raise _strange(file, f"{shown!r}")
    return path


def _strange(file: Path, what: str) -> MismatchError:
    return MismatchError(
        f"{file} holds {what}, which no backup holds.",
        "Do not use it unless you know who made it; make one with `cartq backup FILE`.",
    )


def _copy(source: IO[bytes], out: IO[bytes]) -> None:
    """Copy to the end; blocks of zeros, of which the store has many, take no room on the disk."""
    while block := source.read(_BLOCK):
        if block.count(0) == len(block):
            out.seek(len(block), os.SEEK_CUR)
        else:
            out.write(block)


class _Bounded:
    """A stream of which no more than a header is read into memory at once."""

    def __init__(self, inner: gzip.GzipFile) -> None:
        self._inner = inner

    def read(self, size: int = -1) -> bytes:
        """Read, as a file does."""
        if not 0 <= size <= LONGEST_HEADER:
            raise ValueError(f"a header has {size} bytes")
        return self._inner.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go on to a place."""
        return self._inner.seek(offset, whence)

    def tell(self) -> int:
        """The place."""
        return self._inner.tell()
