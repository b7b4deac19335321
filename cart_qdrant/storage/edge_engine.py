"""The Qdrant engine on one folder, in this process: opening, errors, free disk space, flushing."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import qdrant_edge as edge

from cart_qdrant.arrays.point_ids import wire_ids
from cart_qdrant.errors import CartError, ConfigError, StoreError
from cart_qdrant.storage.search_params import EXACT_MULTIPLICATIONS, HNSW_EF

_LOCKED = "wal"
"""Folder that the engine locks, in its own."""
_DISK_COPIES = 4  # write-ahead log, segment, and both again while they are rewritten


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeSettings:
    """How the embedded store trades speed, safety and recall."""

    batch_points: int = 1000
    """Points handed to the engine at once."""
    flush_points: int = 5000
    """Points written between two flushes to disk."""
    reserve_bytes: int = 256 * 2**20
    """Free disk space to keep: a full disk kills the process inside the engine."""
    exact_multiplications: int = EXACT_MULTIPLICATIONS
    """Points are scanned exactly while their number times the width stays under this (about 1
    ms)."""
    hnsw_ef: int = HNSW_EF
    """Least beam width of the graph search that is used above that."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < (0 if name in ("reserve_bytes", "exact_multiplications") else 1):
                raise ConfigError(f"EdgeSettings.{name} is {value}.", "Give a positive number.")


def disk_free(folder: Path) -> int:
    """Bytes that this user may still write on the disk of `folder`."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def replace_inherited(path: Path) -> None:
    """Let the descriptors of a file or folder lead to nothing, so that this process holds no lock
    of it. Their numbers stay in use: who opened them still counts them as its own.

    Raises:
        OSError: There is nothing at `path`.
    """
    locked = path.stat()
    for one in list(Path("/dev/fd").iterdir()):
        with contextlib.suppress(OSError):  # the descriptor of this very list
            if os.path.samestat(os.fstat(int(one.name)), locked):
                nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
                os.dup2(nothing, int(one.name), inheritable=False)
                os.close(nothing)


class EdgeEngine:
    """The engine on one folder; it is opened at its first use.

    It belongs to one process: the engine hangs in a forked child, so there every method raises
    `StoreError`.

    Args:
        path: Folder of the engine's files.
        settings: How often it is flushed, and the disk space to keep.
        free_bytes: Gives the free space of a folder's disk.
    """

    def __init__(
        self, path: Path, settings: EdgeSettings, free_bytes: Callable[[Path], int] = disk_free
    ) -> None:
        self.path = path
        self._settings = settings
        self._free_bytes = free_bytes
        self._lock = threading.Lock()
        self._shard: edge.EdgeShard | None = None
        self._pid = 0
        self._unflushed = 0
        self._written = False
        self._closed = False

    def exists(self) -> bool:
        """Whether the folder holds a collection."""
        self.check_usable()
        return (self.path / "edge_config.json").is_file()

    def check_usable(self) -> None:
        """Refuse a store that was closed, or that another process has opened.

        Raises:
            StoreError: It is one of these.
        """
        if self._closed:
            raise StoreError(f"The store at {self.path} was closed.", "Make a new EdgeStore.")
        if self._shard is not None and self._pid != os.getpid():
            raise StoreError(
                f"The store at {self.path} was opened by process {self._pid} and is used in "
                f"its fork {os.getpid()}, where the engine would hang.",
                'Start workers with the "spawn" method, or use the store in one process.',
            )

    def open(self) -> edge.EdgeShard:
        """The engine's collection, loaded once.

        Raises:
            StoreError: There is none, or another process has it open.
        """
        self.check_usable()
        with self._lock:
            if self._shard is None:
                if not self.exists():
                    raise StoreError(
                        f"There is no collection at {self.path}.", "Create it by indexing."
                    )
                with self.mapped_errors():
                    self._shard, self._pid = edge.EdgeShard.load(str(self.path)), os.getpid()
            return self._shard

    @contextlib.contextmanager
    def use(self) -> Iterator[edge.EdgeShard]:
        """The engine's collection, with its errors mapped within the block."""
        shard = self.open()
        with self.mapped_errors():
            yield shard

    @contextlib.contextmanager
    def mapped_errors(self) -> Iterator[None]:
        """Raise the engine's errors, which are all plain `Exception`, as `StoreError`."""
        try:
            yield
        except CartError:
            raise
        except Exception as error:
            if "WouldBlock" in str(error):
                raise StoreError(
                    f"The store at {self.path} is in use by another process (or by another "
                    "EdgeStore of this one).",
                    "Wait for it or stop it; use a Qdrant server to share a collection.",
                ) from error
            raise StoreError(
                f"The store at {self.path} failed: {error}",
                "If it stays so, its files are damaged: bring back a backup (`cartq restore`), or "
                "ingest into another --index.",
            ) from error

    def update(self, operation: edge.UpdateOperation, points: int) -> None:
        """Write, and flush when enough points were written since the last time."""
        self._written = True
        with self.use() as shard:
            shard.update(operation)
        self._unflushed += points
        if self._unflushed >= self._settings.flush_points:
            self.flush()

    def known(self, ids: Sequence[str]) -> set[str]:
        """Those of the canonical ids that the collection has."""
        with self.use() as shard:
            return {str(row.id) for row in shard.retrieve(wire_ids(ids), False, False)}

    def check_space(self, batch_bytes: int) -> None:
        """Refuse a write for which the disk is too full.

        Raises:
            StoreError: The free space, and what is needed, are named.
        """
        need = batch_bytes * _DISK_COPIES + self._settings.reserve_bytes
        free = self._free_bytes(self.path)
        if free < need:
            raise StoreError(
                f"The disk of {self.path} has {free / 1e6:.0f} MB free; this needs "
                f"{need / 1e6:.0f} MB.",
                "Free some space, or move the index to another disk.",
            )

    def flush(self) -> None:
        """Return when all that was written survives a crash of the machine."""
        with self.use() as shard:
            shard.flush()
        self._unflushed = 0

    def forget(self) -> None:
        """Let go of the engine's lock in a forked child, which would keep it after its parent's
        end. The engine itself stays: it would hang if it were closed here."""
        if self._shard is None or self._pid == os.getpid():
            return
        with contextlib.suppress(OSError):  # the folder was removed: nobody waits for it
            replace_inherited(self.path / _LOCKED)

    def close(self) -> None:
        """Flush what was written and release the folder; may be called twice."""
        shard, self._shard, self._closed = self._shard, None, True
        if shard is not None and self._pid == os.getpid():
            with self.mapped_errors():
                if self._written:
                    shard.flush()
                shard.close()
