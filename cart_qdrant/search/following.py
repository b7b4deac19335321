"""Keeps an open retriever at the version of its index that is in force.

Another process may train or ingest while a retriever is open. A look at the manifest's inode, size
and time, before each search, tells whether it was replaced; the new version is then loaded, and
searches that run finish on the old one, whose files and payload fields stay until the next run
that writes. A collection on a server is asked now and then whether another copy of the index
folder wrote to it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from cart_qdrant.errors import MismatchError
from cart_qdrant.index.index import Index
from cart_qdrant.search.loaded_index import LoadedIndex
from cart_qdrant.search.searcher import Searcher

log = logging.getLogger(__name__)

ASK_SECONDS = 5.0
"""Seconds between two questions to a server, whether another copy of the folder wrote."""
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Version:
    """One version of an index, with all that its searches need.

    Attributes:
        index: The index with the manifest of this version.
        loaded: What searches read of it.
        searcher: Answers queries from it.
        remarks: What the user should know of each answer.
    """

    index: Index
    loaded: LoadedIndex
    searcher: Searcher
    remarks: tuple[str, ...] = ()


class Follower:
    """The version of an index that is in force; safe to use from several threads.

    Args:
        index: The open index. The follower closes its store.
        reopen: Opens the index again, for one that has moved to another store.
    """

    def __init__(self, index: Index, reopen: Callable[[], Index]) -> None:
        self._reopen = reopen
        self._lock = threading.Lock()
        self._left: list[Index] = []
        self._state = _state_of(index)
        self._asked = time.monotonic()
        # A copy, whose manifest stays what was loaded, whatever the caller does with the index.
        self._version = _load(index.with_manifest(index.manifest), None)

    def current(self) -> Version:
        """The version in force, loaded if it is new.

        Raises:
            MismatchError: A part of it is missing, or of another version.
            StoreError: The store that it has moved to cannot be opened.
        """
        if _state_of(self._version.index) != self._state:
            with self._lock:
                self._follow()
        if self._version.index.manifest.store.kind != "edge":
            self._ask()
        return self._version

    def _follow(self) -> None:
        """Load the version that the manifest names now."""
        for attempt in range(1, _ATTEMPTS + 1):
            index = self._version.index
            state = _state_of(index)
            if state == self._state or state is None:  # done by another thread, or removed
                return
            try:
                manifest = index.folder.read()
                if manifest.store != index.manifest.store:
                    self._move(self._reopen())
                else:
                    self._version = _load(index.with_manifest(manifest), self._version.loaded)
            except MismatchError:
                # Two runs may have activated a version each since it was read.
                if attempt == _ATTEMPTS or _state_of(index) == state:
                    raise
            else:
                self._state = state
                log.info("%s: followed to revision %s.", index.folder.root, manifest.revision)
                return

    def _move(self, index: Index) -> None:
        """Use the index where it is now; running searches still read the old store."""
        self._left.append(self._version.index)
        try:
            self._version = _load(index, None)
        except BaseException:
            index.close()
            raise

    def _ask(self) -> None:
        """Ask the server whether another copy of the index folder wrote to the collection."""
        now = time.monotonic()
        with self._lock:
            if now - self._asked < ASK_SECONDS:
                return
            self._asked = now
            version = self._version
            told = version.index.other_revision()
            if told is None:
                remarks: tuple[str, ...] = ()
            elif version.index.folder.is_copy:
                self._move(self._reopen())
                self._state = _state_of(self._version.index)
                return
            else:
                remarks = (
                    f"the collection was last written with the revision {told} of this index, but "
                    f"{version.index.folder.root} has {version.index.manifest.revision}: copy that "
                    "folder here, some hits may be missing",
                )
            if remarks != version.remarks:
                self._version = replace(version, remarks=remarks)

    def close(self) -> None:
        """Close the store, and those that the index has left."""
        for index in (*self._left, self._version.index):
            index.close()


def _load(index: Index, previous: LoadedIndex | None) -> Version:
    loaded = LoadedIndex.load(index, previous)
    return Version(index, loaded, Searcher(loaded))


def _state_of(index: Index) -> tuple[int, int, int] | None:
    """What changes when the manifest is replaced; None where there is none."""
    try:
        found = index.folder.manifest.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
