"""Lists the files of an ingestion, and hashes their content."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from cart_qdrant.errors import MediaError, UsageError
from cart_qdrant.files import file_hash
from cart_qdrant.records import Failure

_INT63 = 2**63 - 1
_REASONS = {
    errno.EACCES: "cannot be read: permission denied; change its permissions or exclude it",
    errno.EPERM: "cannot be read: permission denied; change its permissions or exclude it",
    errno.ELOOP: "its symbolic links lead in a circle; remove the link",
    errno.ENOENT: "the link leads to nothing; remove it or repair its target",
    errno.ENOTDIR: "the link leads to nothing; remove it or repair its target",
    errno.ENAMETOOLONG: "its path is too long for this system; shorten a name",
}


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file to ingest, described by its folder entry; it has not been opened.

    Attributes:
        path: Absolute path, with links not resolved.
        rel: POSIX path relative to the base folder; it may begin with `..`.
        size: Size in bytes.
        mtime_ns: Time of the last change of its content, in nanoseconds since 1970; programs may
            set it back.
        ctime_ns: Time of the last change of its folder entry, likewise; no program sets it.
        inode: Number of the file on its device; a file that replaces another has its own.
        device: Number of the device.
    """

    path: Path
    rel: str
    size: int
    mtime_ns: int
    ctime_ns: int = 0
    inode: int = 0
    device: int = 0


@dataclass(frozen=True, slots=True)
class Scan:
    """Result of a scan.

    Attributes:
        entries: Usable files, ordered by `rel`.
        failures: What could not be read, ordered by path.
        skipped: What was left out this time, though it may be media, ordered by path.
    """

    entries: tuple[FileEntry, ...]
    failures: tuple[Failure, ...]
    skipped: tuple[Failure, ...] = ()


def scan(paths: Sequence[Path], *, base: Path, exclude: Sequence[str] = ()) -> Scan:
    """List the files at and under `paths`, without opening any.

    Hidden names (`.x`, `._x`, `.DS_Store`, the index folder) below a given folder are skipped. So
    is whatever matches a glob of `exclude` by its name, by its path relative to `base`, or by its
    path relative to the given folder; a folder that matches is not entered. Links to folders are
    followed. A folder is entered once, by its own path rather than by a link to it where both are
    found, and a file that is given twice is listed once.

    Args:
        paths: Files and folders.
        base: The folder that `rel` is relative to.
        exclude: Shell patterns (`*`, `?`, `[...]`); `*` also matches `/`.

    Returns:
        Entries ordered by `rel`; failures (a loop of links, a dangling link, no permission, a name
        that is not UTF-8) ordered by path.

    Raises:
        UsageError: A given path does not exist.
    """
    walk = _Walk(base=Path(os.path.abspath(base)), exclude=tuple(exclude))  # noqa: PTH100
    for given in paths:
        if not os.path.lexists(given):
            raise UsageError(f"There is no file or folder at {_shown(str(given))}.", "Check it.")
        # abspath, not resolve: a link keeps the name that the user gave it.
        walk.visit(Path(os.path.abspath(given)))  # noqa: PTH100
    entries = tuple(sorted(walk.entries.values(), key=lambda entry: entry.rel))
    failures = tuple(
        Failure(path, reason) for path, reason in sorted(walk.failures.items(), key=lambda f: f[0])
    )
    return Scan(entries, failures)


def relative_name(path: Path, base: Path) -> str:
    """A file's name in an index whose folder lies in `base`."""
    return Path(os.path.relpath(path, base)).as_posix()


def content_hash(path: Path) -> str:
    """BLAKE2b of the content, 32 hexadecimal digits; the file is read in pieces.

    Raises:
        MediaError: The file cannot be read.
    """
    try:
        return file_hash(path)
    except OSError as error:
        raise MediaError(_reason(error)) from error


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder to enter: its device and inode, and those of all folders above it."""

    path: Path
    key: tuple[int, int]
    above: frozenset[tuple[int, int]]


class _Walk:
    """The state of one scan."""

    def __init__(self, *, base: Path, exclude: tuple[str, ...]) -> None:
        self.base = base
        self.exclude = exclude
        self.entries: dict[Path, FileEntry] = {}
        self.failures: dict[str, str] = {}
        self.visited: set[tuple[int, int]] = set()

    def visit(self, given: Path) -> None:
        """Scan a path that the user gave; its own name may be hidden."""
        info = self._stat(given)
        if info is None or self._excluded(given, given.parent):
            return
        if not stat.S_ISDIR(info.st_mode):
            self._add(given, info)
            return
        # A stack instead of recursion: folders may be nested deeper than Python may recurse.
        stack = [_Folder(given, (info.st_dev, info.st_ino), frozenset())]
        links: list[_Folder] = []
        while stack or links:
            # Links last, so that a folder is entered by its own path where that is found.
            folder = stack.pop() if stack else links.pop(0)
            if folder.key in self.visited:
                continue
            self.visited.add(folder.key)
            for child in self._children(folder, given):
                (links if child.path.is_symlink() else stack).append(child)

    def _children(self, folder: _Folder, given: Path) -> list[_Folder]:
        """List the files of a folder; returns the folders in it."""
        try:
            with os.scandir(folder.path) as found:
                names = sorted(entry.name for entry in found)
        except OSError as error:
            self._fail(folder.path, _reason(error))
            return []
        folders = []
        above = folder.above | {folder.key}
        for name in names:
            path = folder.path / name
            if name.startswith(".") or self._excluded(path, given):
                continue
            info = self._stat(path)
            if info is None:
                continue
            key = (info.st_dev, info.st_ino)
            if not stat.S_ISDIR(info.st_mode):
                self._add(path, info)
            elif key in above:
                self._fail(path, "the link leads back to a folder above it; remove or exclude it")
            else:
                folders.append(_Folder(path, key, above))
        return folders

    def _stat(self, path: Path) -> os.stat_result | None:
        try:
            return path.stat()
        except OSError as error:
            self._fail(path, _reason(error))
            return None

    def _add(self, path: Path, info: os.stat_result) -> None:
        if not stat.S_ISREG(info.st_mode) or path in self.entries:
            return  # sockets, pipes and devices hold no media
        rel = self._rel(path)
        if not _is_utf8(rel):
            self._fail(path, "name is not UTF-8; rename it")
        elif not os.access(path, os.R_OK):
            self._fail(path, _REASONS[errno.EACCES])
        else:
            self.entries[path] = FileEntry(
                path,
                rel,
                info.st_size,
                info.st_mtime_ns,
                info.st_ctime_ns,
                info.st_ino & _INT63,  # a store keeps signed numbers of 64 bits
                info.st_dev,
            )

    def _rel(self, path: Path) -> str:
        return relative_name(path, self.base)

    def _excluded(self, path: Path, given: Path) -> bool:
        if not self.exclude:
            return False
        forms = {path.name, self._rel(path), path.relative_to(given).as_posix()}
        return any(
            fnmatchcase(form, pattern.rstrip("/")) for pattern in self.exclude for form in forms
        )

    def _fail(self, path: Path, reason: str) -> None:
        self.failures[_shown(self._rel(path))] = reason


def _reason(error: OSError) -> str:
    return _REASONS.get(error.errno or 0, f"cannot be read: {error.strerror or error}")


def _is_utf8(name: str) -> bool:
    # Bytes that are not UTF-8 reach us as lone surrogates.
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _shown(name: str) -> str:
    """`name` in a form that can be printed and stored, whatever its bytes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
