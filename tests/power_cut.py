"""What a power cut leaves of a folder: a recorder of what was synchronised to the disk, and the
folders that a cut at each moment can leave.

A file holds after the cut what it held when it was last synchronised (nothing, if it never was). A
name that was made, renamed or removed since its folder was last synchronised may have reached the
disk or not. The files of the embedded engine are written through memory maps, which cannot be seen
from here: they hold what they held at the engine's last `flush`, which is taken at its word.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from cart_qdrant.storage.edge_engine import EdgeEngine

_rename = os.rename
WHOLE = 4
"""Names of one folder that changed without being synchronised, of which all subsets are tried."""
SUBSETS = 8
"""Subsets that are tried of more names than that."""


@dataclass(frozen=True)
class Entry:
    """A file, with what it holds, or a folder, with its names, as the disk has it.

    Attributes:
        number: Number of the entry that stays when it is renamed.
        content: Where the bytes lie; None for a file that was never synchronised.
        size: Size, where the content was lost: metadata may reach the disk before the bytes.
        time: Time of the last change in nanoseconds, where the content was lost.
    """

    number: int
    content: Path | None = None
    names: tuple[tuple[str, Entry], ...] | None = None
    size: int = 0
    time: int = 0


@dataclass(frozen=True)
class Cut:
    """One folder that a power cut can leave.

    Attributes:
        moment: The operation that came next.
        folder: The folder as it is found afterwards.
    """

    moment: str
    folder: Entry

    def write(self, target: Path) -> None:
        """Make the folder; files are links, but for those of the embedded store."""
        _write(self.folder, target, linked=True)

    def state(self, without: str = "work") -> object:
        """Equal for folders of the same content, without what lies under one name."""
        return _state(self.folder, without)


@dataclass
class PowerCut:
    """Records what a run synchronises below `root`, which need not exist yet.

    Args:
        root: The index folder.
        blobs: Folder for the contents of files.
        without: Name of a folder in which cuts need not differ; "" tells all apart.

    Attributes:
        cuts: What a power cut leaves, once for each distinct content.
        acknowledged: What is left after the end of the run, if nothing that was not synchronised
            reached the disk.
    """

    root: Path
    blobs: Path
    without: str = "work"
    cuts: list[Cut] = field(default_factory=list)
    acknowledged: Cut = field(init=False)
    _held: dict[int, int] = field(default_factory=dict)
    """Open handle of each entry that was seen: its number is not given to another one."""
    _content: dict[int, Path] = field(default_factory=dict)
    _names: dict[int, dict[str, int]] = field(default_factory=dict)
    _is_folder: dict[int, bool] = field(default_factory=dict)
    _seen: set[object] = field(default_factory=set)
    _random: random.Random = field(default_factory=lambda: random.Random(0))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record what is done within the block; what is there before is on the disk."""
        self.blobs.mkdir(parents=True, exist_ok=True)
        self._see(self.root.parent)
        self._names[self.root.parent.stat().st_ino] = self._listing(self.root.parent)
        if self.root.exists():
            self._synchronised_below(self.root)
        patches = [
            mock.patch.object(os, name, self._watched(name, getattr(os, name)))
            for name in ("replace", "rename", "unlink", "remove", "rmdir", "mkdir")
        ]
        patches += [
            mock.patch.object(os, "fsync", self._fsync(os.fsync)),
            mock.patch.object(EdgeEngine, "flush", self._flush(EdgeEngine.flush)),
            mock.patch.object(EdgeEngine, "close", self._flush(EdgeEngine.close)),
        ]
        try:
            for patch in patches:
                patch.start()
            yield
            self._cut("the end")
            self.acknowledged = Cut("the end", self._root_of({}))
        finally:
            for patch in reversed(patches):
                patch.stop()
            for handle in self._held.values():
                os.close(handle)

    # What is done

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **options: Any) -> Any:
            if self._is_below(path):
                self._cut(f"{name} {self._shown(path)}")
            out = real(path, *args, **options)
            self._see_all()
            return out

        return call

    def _fsync(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def call(handle: int) -> None:
            path = Path(f"/proc/self/fd/{handle}").readlink()
            if self._is_below(path):
                self._cut(f"fsync {self._shown(path)}")
            real(handle)
            if path.is_relative_to(self.root.parent):  # it may be renamed to `root` later
                self._synchronised(path)

        return call

    def _flush(self, real: Callable[[EdgeEngine], None]) -> Callable[[EdgeEngine], None]:
        def call(engine: EdgeEngine) -> None:
            if self._is_below(engine.path) and engine.path.exists():
                self._cut("flush")
            real(engine)
            if self._is_below(engine.path) and engine.path.exists():
                self._synchronised_below(engine.path)
                self._cut("after flush")

        return call

    def _is_below(self, path: Any) -> bool:
        return Path(os.fsdecode(path)).absolute().is_relative_to(self.root)

    def _shown(self, path: Any) -> str:
        return str(Path(os.fsdecode(path)).absolute().relative_to(self.root))

    # What is on the disk

    def _see(self, path: Path) -> int:
        """Number of an entry, which is kept open so that its number stays its own."""
        number = path.stat().st_ino
        if number not in self._held:
            self._held[number] = os.open(path, os.O_PATH)  # a socket cannot be read
            self._is_folder[number] = path.is_dir()
        return number

    def _see_all(self) -> None:
        if self.root.exists():
            self._see(self.root)
            for path in _below(self.root):
                self._see(path)

    def _listing(self, folder: Path) -> dict[str, int]:
        if folder == self.root.parent:  # what else lies there is not ours
            return {self.root.name: self._see(self.root)} if self.root.exists() else {}
        return {path.name: self._see(path) for path in folder.iterdir() if not path.is_socket()}

    def _synchronised(self, path: Path) -> None:
        number = self._see(path)
        if path.is_dir():
            self._names[number] = self._listing(path)
        else:
            self._content[number] = self._copy(path)

    def _synchronised_below(self, folder: Path) -> None:
        for path in (folder, *_below(folder)):
            self._synchronised(path)

    def _copy(self, path: Path) -> Path:
        """A copy of a file; one with holes, as the engine makes them, stays small."""
        target, digest = self.blobs / "copy", hashlib.blake2b()
        size, at = path.stat().st_size, 0
        with path.open("rb") as source, target.open("wb") as copy:
            copy.truncate(size)
            while at < size:
                try:
                    at = os.lseek(source.fileno(), at, os.SEEK_DATA)
                except OSError:  # nothing but a hole follows
                    break
                end = os.lseek(source.fileno(), at, os.SEEK_HOLE)
                source.seek(at)
                copy.seek(at)
                block = source.read(end - at)
                copy.write(block)
                digest.update(f"{at} {end} {size}".encode() + block)
                at = end
        shutil.copystat(path, target)
        digest.update(f"{path.stat().st_mtime_ns}".encode())
        kept = self.blobs / digest.hexdigest()
        _rename(target, kept)
        return kept

    # What a cut leaves

    def _cut(self, moment: str) -> None:
        self._see_all()
        now = self._now()
        changed = [
            number for number, names in now.items()
            if names != self._names.get(number, {}) and not self._is_engine(number, now)
        ]  # fmt: skip
        for which in self._choices(changed, now):
            cut = Cut(moment, self._root_of(which))
            if (state := cut.state(self.without)) not in self._seen:
                self._seen.add(state)
                self.cuts.append(cut)

    def _now(self) -> dict[int, dict[str, int]]:
        """Names of each folder as a process sees them."""
        folders = [self.root.parent]
        if self.root.exists():
            folders += [self.root, *(one for one in _below(self.root) if one.is_dir())]
        return {folder.stat().st_ino: self._listing(folder) for folder in folders}

    def _is_engine(self, number: int, now: dict[int, dict[str, int]]) -> bool:
        """Whether a folder belongs to the embedded engine."""
        return number in self._engine_folders(now)

    def _engine_folders(self, now: dict[int, dict[str, int]]) -> set[int]:
        store = self.root / "store"
        if not store.exists():
            return set()
        return {one.stat().st_ino for one in (store, *_below(store)) if one.is_dir()}

    def _choices(
        self, changed: list[int], now: dict[int, dict[str, int]]
    ) -> Iterator[dict[int, dict[str, int]]]:
        """Names of folders that may be on the disk: of each changed name the old or the new."""
        differences = [
            (number, name)
            for number in changed
            for name in sorted({*now[number], *self._names.get(number, {})})
            if now[number].get(name) != self._names.get(number, {}).get(name)
        ]
        if len(differences) <= WHOLE:
            subsets = itertools.product((False, True), repeat=len(differences))
        else:
            drawn = [
                tuple(self._random.random() < 0.5 for _ in differences) for _ in range(SUBSETS)
            ]
            every, none = (True,) * len(differences), (False,) * len(differences)
            subsets = iter([none, every, *drawn])  # type: ignore[assignment]
        for subset in subsets:
            out: dict[int, dict[str, int]] = {}
            for (number, name), is_new in zip(differences, subset, strict=True):
                names = out.setdefault(number, dict(self._names.get(number, {})))
                if not is_new:
                    continue
                if name in now[number]:
                    names[name] = now[number][name]
                else:
                    names.pop(name, None)
            yield out

    def _root_of(self, names: dict[int, dict[str, int]]) -> Entry:
        above = self._entry(self.root.parent.stat().st_ino, names)
        return dict(above.names or ()).get(self.root.name) or Entry(0, names=())

    def _entry(self, number: int, names: dict[int, dict[str, int]]) -> Entry:
        if not self._is_folder[number]:
            stat = os.fstat(self._held[number])
            content = self._content.get(number)
            return Entry(number, content, size=stat.st_size, time=stat.st_mtime_ns)
        found = names.get(number, self._names.get(number, {}))
        below = tuple((name, self._entry(one, names)) for name, one in sorted(found.items()))
        return Entry(number, names=below)


def _below(folder: Path) -> list[Path]:
    """Files and folders below a folder; a socket is not on the disk."""
    return [path for path in folder.rglob("*") if not path.is_socket()]


def _write(entry: Entry, target: Path, *, linked: bool) -> None:
    if entry.names is not None:
        target.mkdir()
        for name, one in entry.names:
            _write(one, target / name, linked=linked and name not in ("store", "lock"))
    elif entry.content is None:
        with target.open("wb") as file:
            file.truncate(entry.size)
        os.utime(target, ns=(entry.time, entry.time))
    elif linked:
        target.hardlink_to(entry.content)
    else:
        shutil.copy2(entry.content, target)


def _state(entry: Entry, without: str) -> object:
    if entry.names is None:
        return entry.content or entry.size
    return tuple((name, _state(one, "")) for name, one in entry.names if name != without)
