"""The caption table that the user names (`--captions FILE`), and the matching of rows to files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

from cart_qdrant.captions.tables import Row, Table
from cart_qdrant.media.path_match import SuffixIndex, path_key, relative_key

Fail: TypeAlias = Callable[[Path, str], None]


class ExplicitTable:
    """Finds the row of a file by its path, relative to the table's folder or `base`, or its tail.

    Args:
        file: Path of the table (absolute).
        table: Its rows.
        base: Folder that holds the index.
        roots: Folders that are ingested; a tail must be unique among their files.
    """

    def __init__(self, file: Path, table: Table, *, base: Path, roots: Iterable[Path]) -> None:
        self._file = file
        self._rows = table.rows
        self._base = base.resolve()
        self._roots = {root.resolve() for root in roots}
        self._names = SuffixIndex(table.rows)
        self._media: tuple[SuffixIndex, SuffixIndex] | None = None
        self._used: set[str] = set()

    @property
    def unused(self) -> int:
        """Number of rows that belong to no file looked up so far."""
        return len(self._rows) - len(self._used)

    def find(self, path: Path, rel: str, fail: Fail) -> Row:
        """The row of the file `path` (absolute), `rel` below `base`; empty where there is none.

        A tail that matches two rows or two files is reported to `fail` and not used.
        """
        exact = (relative_key(path, self._file.parent), path_key(rel), path_key(str(path)))
        name = next((key for key in exact if key in self._rows), None)
        if name is None:
            name = self._by_tail(path_key(str(path)), path_key(rel), fail)
        if name is None:
            return Row()
        self._used.add(name)
        return self._rows[name]

    def _by_tail(self, path: str, rel: str, fail: Fail) -> str | None:
        # First rows that are a tail of the path, then rows of which `rel` is a tail: written
        # on another machine as `/disk/photos/a.jpg`.
        for n, key in enumerate((path, rel)):
            names = self._names.find(key)
            if len(names) > 1:
                fail(self._file, f"rows {names[0]!r} and {names[1]!r} both fit {rel}: not used")
                return None
            if not names:
                continue
            files = self._media_files()[n].find(names[0])
            if len(files) > 1:
                fail(self._file, f"row {names[0]!r} fits {files[0]} and {files[1]}: not used")
                return None
            # Another file may fit this row better.
            return names[0] if n == 0 or files in ([], [key]) else None
        return None

    def _media_files(self) -> tuple[SuffixIndex, SuffixIndex]:
        """Files under the roots that share a row's last component: absolute, below `base`."""
        if self._media is None:
            found = {path for root in self._roots for path in self._walk(root)}
            absolute = sorted(path_key(str(path)) for path in found)
            below = sorted(relative_key(path, self._base) for path in found)
            self._media = SuffixIndex(absolute), SuffixIndex(below)
        return self._media

    def _walk(self, root: Path) -> Iterable[Path]:
        for folder, folders, files in os.walk(root):
            folders[:] = [name for name in folders if not name.startswith(".")]
            yield from (Path(folder, name) for name in files if path_key(name) in self._names)
