"""Finds a file by the tail of its path, for tables that were written in another folder."""

from __future__ import annotations

import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path


def path_key(name: str) -> str:
    """Normal form of a path for comparison: POSIX separators, no `./`, Unicode NFC."""
    return unicodedata.normalize("NFC", posixpath.normpath(name.replace("\\", "/")))


def is_under(path: str, folder: str) -> bool:
    """Whether a path is that of a folder, or of something below it; both are in normal form."""
    return f"{path}/".startswith(f"{folder.rstrip('/')}/")


def relative_key(path: Path, folder: Path) -> str:
    """Normal form of `path` relative to `folder`; links are resolved if `path` is not below it."""
    if not path.is_relative_to(folder):
        path = path.resolve()
        if not path.is_relative_to(folder):
            return path_key(str(path))
    return path_key(str(path.relative_to(folder)))


class SuffixIndex:
    """Finds names, all made by `path_key`, of which one is a tail of another.

    `train/a.jpg` and `/data/train/a.jpg` match.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._by_tail: dict[str, list[str]] = defaultdict(list)
        for name in names:
            self._by_tail[posixpath.basename(name)].append(name)

    def __contains__(self, tail: str) -> bool:
        """Whether a name ends in the component `tail`."""
        return tail in self._by_tail

    def find(self, name: str) -> list[str]:
        """The names that match `name` in the most components; several if they match alike."""
        best, found = 0, list[str]()
        for other in self._by_tail.get(posixpath.basename(name), ()):
            length = _common_tail(name, other)
            if length == 0 or length < best:
                continue
            if length > best:
                best, found = length, []
            found.append(other)
        return found


def _common_tail(a: str, b: str) -> int:
    """Number of components of the shorter path if it is a tail of the longer one, else 0."""
    parts_a, parts_b = a.strip("/").split("/"), b.strip("/").split("/")
    length = min(len(parts_a), len(parts_b))
    return length if parts_a[-length:] == parts_b[-length:] else 0
