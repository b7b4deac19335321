"""Lists the files of an ingestion, and hashes their content."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from cart_qdrant.errors import MediaError, UsageError
from cart_qdrant.files import file_hash
from cart_qdrant.media.ignore import (
    IGNORE_FILE,
    IgnoreRules,
    composed,
    finished_name,
    is_cache,
    is_clutter,
    is_media_name,
    read_rules,
)
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
        ignored: Number of files and folders that were ignored.
    """

    entries: tuple[FileEntry, ...]
    failures: tuple[Failure, ...]
    skipped: tuple[Failure, ...] = ()
    ignored: int = 0


def scan(
    paths: Sequence[Path], *, base: Path, exclude: Sequence[str] = (), follow: bool = False
) -> Scan:
    """List the files at and under `paths`, without opening any but ignore files.

    Left out without a word are hidden names (`.x`, `._x`, the index folder) below a given folder,
    what matches a glob of `exclude` by its name, by its path relative to `base`, or by its path
    relative to the given folder, what an ignore file names (`.cartqignore`, in any folder from
    `base` down), and thumbnails and bins that systems keep beside media. A folder that is left out
    is not entered. Downloads in progress, and links out of the given folders, are `skipped`.

    A folder is entered once, by its own path rather than by a link to it where both are found, and
    a file that is given twice is listed once.

    Args:
        paths: Files and folders.
        base: The folder that `rel` is relative to.
        exclude: Shell patterns (`*`, `?`, `[...]`); `*` also matches `/`.
        follow: Take also links that lead out of the given folders.

    Returns:
        Entries ordered by `rel`; failures (a loop of links, a dangling link, no permission, a name
        that is not UTF-8) and what was skipped, ordered by path.

    Raises:
        UsageError: A given path does not exist.
    """
    given = [absolute(path) for path in paths]
    for path in given:
        if not os.path.lexists(path):
            raise UsageError(f"There is no file or folder at {_shown(str(path))}.", "Check it.")
    walk = _Walk(
        base=absolute(base),
        exclude=tuple(composed(pattern).rstrip("/") for pattern in exclude),
        tops=None if follow else tuple(path.resolve() for path in given),
    )
    walk.run(given)
    entries = tuple(sorted(walk.entries.values(), key=lambda entry: entry.rel))
    return Scan(entries, _failures(walk.failures), _failures(walk.skipped), walk.ignored)


def _failures(reasons: Mapping[str, str]) -> tuple[Failure, ...]:
    return tuple(Failure(path, reasons[path]) for path in sorted(reasons))


def absolute(path: Path) -> Path:
    """An absolute path without `..`; a link keeps the name that the user gave it."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve follows links


def relative_name(path: Path, base: Path) -> str:
    """A file's name in an index whose folder lies in `base`."""
    return Path(os.path.relpath(path, base)).as_posix()


def has_changed(entry: FileEntry) -> bool:
    """Whether a file has another size, date or inode now than when it was listed; False where it is
    gone."""
    try:
        now = entry.path.stat()
    except OSError:
        return False
    then = (entry.size, entry.mtime_ns, entry.inode)
    return (now.st_size, now.st_mtime_ns, now.st_ino & _INT63) != then


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
    """A folder to enter: its device and inode, and those of all folders above it; the given path it
    was reached from, and the ignore files that apply to it."""

    path: Path
    key: tuple[int, int]
    above: frozenset[tuple[int, int]]
    given: Path
    rules: tuple[IgnoreRules, ...]


class _Walk:
    """The state of one scan.

    Args:
        tops: The given paths with links resolved, out of which no link is followed; None follows
            all links.
    """

    def __init__(
        self, *, base: Path, exclude: tuple[str, ...], tops: tuple[Path, ...] | None
    ) -> None:
        self.base = base
        self.exclude = exclude
        self.tops = tops
        self.entries: dict[Path, FileEntry] = {}
        self.failures: dict[str, str] = {}
        self.skipped: dict[str, str] = {}
        self.ignored = 0
        self.visited: set[tuple[int, int]] = set()
        self.last_folder = ("", "")

    def run(self, given: Sequence[Path]) -> None:
        """Scan paths that the user gave; their own names may be hidden, and may be links."""
        # A stack instead of recursion: folders may be nested deeper than Python may recurse.
        stack = [folder for path in given for folder in self._given(path)]
        links: list[_Folder] = []
        stack.reverse()
        while stack or links:
            # Links last, so that a folder is entered by its own path where that is found.
            folder = stack.pop() if stack else links.pop(0)
            if folder.key in self.visited:
                continue
            self.visited.add(folder.key)
            for child in self._children(folder):
                (links if child.path.is_symlink() else stack).append(child)

    def _given(self, path: Path) -> list[_Folder]:
        """The folder of a given path, or none where it is a file, which is listed."""
        info = self._stat(path)
        if info is None or self._excluded(path, path.parent):
            return []
        rules = self._rules_above(path)
        is_folder = stat.S_ISDIR(info.st_mode)
        # A shell that expands `photos/*` gives such names, too.
        if self._is_ignored(path, rules, folder=is_folder):
            reason = f"ignored, by a {IGNORE_FILE} or as thumbnails and bins; `!NAME` in a "
            self._skip(path, f"{reason}{IGNORE_FILE} takes it")
            return []
        if is_folder and not self._is_download(path):
            return [_Folder(path, (info.st_dev, info.st_ino), frozenset(), path, rules)]
        if is_folder:
            return []
        beside = {name for name in _controls(path.name) if os.path.lexists(path.with_name(name))}
        if not self._in_progress(path, beside):
            self._add(path, info)
        return []

    def _rules_above(self, path: Path) -> tuple[IgnoreRules, ...]:
        """Ignore files from the base down to the folder that a path is in."""
        if not path.is_relative_to(self.base) or path == self.base:
            return ()
        above = [folder for folder in path.parents if folder.is_relative_to(self.base)]
        return tuple(rules for folder in reversed(above) for rules in self._rules(folder))

    def _rules(self, folder: Path) -> list[IgnoreRules]:
        """The ignore file of a folder, if it has one."""
        if not os.path.lexists(folder / IGNORE_FILE):
            return []
        try:
            rules = read_rules(folder)
        except OSError as error:
            self._fail(folder / IGNORE_FILE, _reason(error))
            return []
        for number, reason in rules.bad:
            self._fail(folder / IGNORE_FILE, f"line {number}: {reason}")
        return [rules]

    def _children(self, folder: _Folder) -> list[_Folder]:
        """List the files of a folder; returns the folders in it."""
        try:
            with os.scandir(folder.path) as found:
                names = {entry.name: entry for entry in found}
            if "CACHEDIR.TAG" in names and folder.path != folder.given and is_cache(folder.path):
                self.ignored += 1
                return []
        except OSError as error:
            self._fail(folder.path, _reason(error))
            return []
        rules = folder.rules
        if IGNORE_FILE in names:
            rules = (*rules, *self._rules(folder.path))
        folders = []
        above = folder.above | {folder.key}
        for name in sorted(names):
            path = folder.path / name
            if name.startswith(".") or self._excluded(path, folder.given):
                continue
            if self._is_ignored(path, rules, folder=_is_folder(names[name])):
                self.ignored += 1
                continue
            if names[name].is_symlink() and self._leads_out(path):
                continue
            info = self._stat(path)
            if info is None:
                continue
            key = (info.st_dev, info.st_ino)
            if not stat.S_ISDIR(info.st_mode):
                if not self._in_progress(path, names):
                    self._add(path, info)
            elif key in above:
                self._fail(path, "the link leads back to a folder above it; remove or exclude it")
            elif not self._is_download(path):
                folders.append(_Folder(path, key, above, folder.given, rules))
        return folders

    def _is_ignored(self, path: Path, rules: tuple[IgnoreRules, ...], *, folder: bool) -> bool:
        for one in reversed(rules):  # the nearest ignore file decides
            verdict = one.verdict(path, folder=folder)
            if verdict is not None:
                return verdict
        return is_clutter(path, folder=folder)

    def _in_progress(self, path: Path, beside: Container[str]) -> bool:
        """Whether a file is still being downloaded; it is named where it will be media."""
        finished = finished_name(path.name)
        if finished is None and not any(name in beside for name in _controls(path.name)):
            return False
        if is_media_name(finished or path.name):
            self._skip(path, "a download in progress; it is taken when it is finished")
        return True

    def _is_download(self, folder: Path) -> bool:
        """Whether a folder holds a download in progress, as Safari keeps it."""
        return is_media_name(finished_name(folder.name) or "") and self._in_progress(folder, ())

    def _leads_out(self, link: Path) -> bool:
        """Whether a link leads out of the given folders, and is not followed."""
        if self.tops is None:
            return False
        try:
            target = link.resolve(strict=True)
        except (OSError, RuntimeError):
            return False  # a link that leads nowhere is a failure, told by `_stat`
        if any(target.is_relative_to(top) for top in self.tops):
            return False
        self._skip(link, f"a link to {target}, out of the given folders; --follow takes it")
        return True

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
        if f"{self.base}{os.sep}".startswith(f"{path}{os.sep}"):
            return relative_name(path, self.base)
        folder, name = os.path.split(path)
        if folder != self.last_folder[0]:  # files of one folder follow each other
            rel = relative_name(Path(folder), self.base)
            self.last_folder = folder, "" if rel == "." else f"{rel}/"
        return self.last_folder[1] + name

    def _excluded(self, path: Path, given: Path) -> bool:
        if not self.exclude:
            return False
        forms = {path.name, self._rel(path), path.relative_to(given).as_posix()}
        return any(
            fnmatchcase(composed(form), pattern) for pattern in self.exclude for form in forms
        )

    def _skip(self, path: Path, reason: str) -> None:
        self.skipped[_shown(self._rel(path))] = _shown(reason)

    def _fail(self, path: Path, reason: str) -> None:
        self.failures[_shown(self._rel(path))] = reason


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that cannot be followed
        return False


def _controls(name: str) -> tuple[str, ...]:
    """Names of files that programs keep beside one while they download it."""
    return (f"{name}.part", f"{name}.aria2", f"{name}.ytdl")


def _reason(error: OSError) -> str:
    return _REASONS.get(error.errno or 0, f"cannot be read: {error.strerror or error}")


def _is_utf8(name: str) -> bool:
    # Bytes that are not UTF-8 reach us as lone surrogates.
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _shown(name: str) -> str:
    """`name` in a form that can be printed and stored, whatever its bytes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
