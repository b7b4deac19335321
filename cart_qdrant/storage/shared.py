"""`SharedStore`: an embedded store that several processes use at once.

The engine lets one process open a folder. The first one that needs the store opens it and answers
the others (`store_host`); when it ends, the next one that asks takes its place and sends its
request again. So a search runs beside `ingest`, `train`, an MCP server or another search.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cart_qdrant.errors import StoreError
from cart_qdrant.locks import ProcessLock, Waiting
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage import wire
from cart_qdrant.storage.batches import in_pages
from cart_qdrant.storage.edge import EdgeStore
from cart_qdrant.storage.payloads import clean_payload
from cart_qdrant.storage.protocol import CollectionInfo, CollectionSpec, RangeKind
from cart_qdrant.storage.store_guest import connect
from cart_qdrant.storage.store_host import StoreHost, raised, receive

if TYPE_CHECKING:
    from qdrant_client import models

log = logging.getLogger(__name__)

PATIENCE = 30.0
"""Seconds to wait for the process that has the store, while it does not answer at all."""
TELL_AFTER = 2.0
"""Seconds after which a log line says for whom is being waited."""
IDLE_CONNECTIONS = 8
"""Connections that are kept for later requests."""


class SharedStore:
    """The `Store` of a folder, shared with other processes. Nothing is opened before the first use.

    It may be used from several threads, and in a forked child, which asks its parent.

    Args:
        path: Folder of the engine's files.
        lock_file: File by which processes agree who opens the engine; made when it is needed.
        sidecar: See `EdgeStore`.
        patience: Seconds to wait for a process that has the store and does not answer.
    """

    def __init__(
        self, path: Path, *, lock_file: Path, sidecar: bool = True, patience: float = PATIENCE
    ) -> None:
        self._path, self._sidecar, self._patience = Path(path), sidecar, patience
        self._lock_file = lock_file
        self._host: StoreHost | None = None
        self._connections: list[socket.socket] = []
        self._guard = threading.Lock()
        self._closed = self._wrote = self._has_written = False
        self._found: os.stat_result | None = None
        _all.add(self)

    @property
    def location(self) -> str:
        """The folder, for messages."""
        return str(self._path)

    def exists(self) -> bool:
        """Whether the folder holds a collection."""
        self._check_open()
        return EdgeStore(self._path, sidecar=self._sidecar).exists()

    # Schema

    def create(self, spec: CollectionSpec) -> None:
        """See `Store.create`."""
        self._write("create", spec)

    def info(self) -> CollectionInfo:
        """Vectors and indexed payload fields, asked of the engine each time."""
        found: CollectionInfo = self._call("info")
        return found

    def create_keyword_index(self, field: str) -> None:
        """Index one more payload field for exact matches."""
        self._write("create_keyword_index", field)

    def create_text_index(self, field: str) -> None:
        """Index the words of one more payload field, to rank by them."""
        self._write("create_text_index", field)

    def create_range_index(self, field: str, kind: RangeKind) -> None:
        """Index the numbers or the dates of one more payload field, unless it has an index."""
        self._write("create_range_index", field, kind)

    def drop_index(self, field: str) -> None:
        """Remove the index of a payload field; nothing happens where there is none."""
        self._write("drop_index", field)

    def add_vector(self, name: str, size: int) -> None:
        """Let points have one more named vector, compared by cosine."""
        self._write("add_vector", name, size)

    def set_metadata(self, key: str, value: Mapping[str, Any]) -> None:
        """Keep nothing: a folder belongs to one index alone."""
        self._write("set_metadata", key, value)

    # Writing

    def guard_writes(self, check: Callable[[], None]) -> None:
        """Check nothing: a folder belongs to one index alone."""

    def upsert(self, points: Sequence[models.PointStruct | qdrant.PointStruct]) -> None:
        """Write points whole (vectors and payload), replacing those with the same id."""
        ready = [
            qdrant.PointStruct(
                id=str(point.id), vector=point.vector, payload=clean_payload(point.payload or {})
            )
            for point in points
        ]
        self._write("upsert", ready)

    def delete(self, ids: Sequence[str]) -> None:
        """Remove points by id; unknown ids are ignored."""
        self._write("delete", ids)

    def set_payload(self, updates: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """Set top-level payload keys of each named point, keeping its other keys."""
        self._write("set_payload", [(i, clean_payload(payload)) for i, payload in updates])

    def delete_payload_key(self, key: str) -> None:
        """Remove a top-level payload key from every point."""
        self._write("delete_payload_key", key)

    def update_vectors(self, name: str, updates: Sequence[tuple[str, Sequence[float]]]) -> None:
        """Replace one named vector of each named point."""
        self._write("update_vectors", name, updates)

    def delete_vectors(self, name: str, ids: Sequence[str]) -> None:
        """Remove one named vector of each named point."""
        self._write("delete_vectors", name, ids)

    def clear_vector(self, name: str) -> None:
        """Remove one named vector of all points, and give its room back."""
        self._write("clear_vector", name)

    # Reading

    def retrieve(
        self, ids: Sequence[str], *, with_payload: bool = True, with_vectors: Sequence[str] = ()
    ) -> list[qdrant.Record]:
        """Points by id, in the order asked; unknown ids are left out."""
        found: list[qdrant.Record] = self._call(
            "retrieve", ids, with_payload=with_payload, with_vectors=with_vectors
        )
        return found

    def scroll(
        self,
        filter: qdrant.AnyFilter | None = None,
        *,
        with_payload: bool | Sequence[str] = True,
        with_vectors: Sequence[str] = (),
        batch: int = 1000,
    ) -> Iterator[qdrant.Record]:
        """Every point that matches, in order of id, read in pages of `batch`."""
        more = {"with_payload": with_payload, "with_vectors": with_vectors, "batch": batch}
        return in_pages(lambda offset: self._call("page", filter, offset=offset, **more))

    def count(self, filter: qdrant.AnyFilter | None = None) -> int:
        """Exact number of points that match."""
        found: int = self._call("count", filter)
        return found

    def query_batch(self, requests: Sequence[qdrant.AnyQuery]) -> list[list[qdrant.ScoredPoint]]:
        """Answers of several searches, each best first."""
        found: list[list[qdrant.ScoredPoint]] = self._call("query_batch", requests)
        return found

    def query_ids(self, requests: Sequence[qdrant.AnyQuery]) -> list[qdrant.FoundIds]:
        """The answers of `query_batch`, ids and scores alone."""
        found: list[qdrant.FoundIds] = self._call("query_ids", requests)
        return found

    # End

    def flush(self) -> None:
        """Return when all that was written survives a crash of the machine."""
        self._call("flush")
        self._wrote = False

    def close(self) -> None:
        """Flush what was written, and leave the store to others; may be called twice."""
        if self._closed:
            return
        try:
            if self._wrote and self._host is None:
                self.flush()
        finally:
            self._closed = True
            host = self._let_go()
            if host is not None:
                host.stop()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"The store at {self._path} was closed.", "Open the index again.")

    # Calls

    def _write(self, name: str, *args: Any) -> None:
        self._wrote = self._has_written = True
        self._call(name, *args)

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the engine's store, here or in the process that has it.

        Raises:
            StoreError: The process that has it does not answer; it is named.
        """
        message: bytes | None = None
        waiting: Waiting | None = None
        told = Waiting(TELL_AFTER)
        while True:
            self._check_open()
            self._notice_another_folder()
            host = self._host or self._take_over(name)
            if host is not None:
                return getattr(host.store, name)(*args, **kwargs)
            if message is None:
                message = wire.to_bytes({"call": name, "args": args, "kwargs": kwargs})
            try:
                answer = self._ask(message)
            except ConnectionError as error:
                waiting = waiting or Waiting(self._patience)
                if not waiting.pause():
                    raise self._no_answer(error) from error
                if told.is_over:
                    told = Waiting(float("inf"))
                    log.warning("Waiting for the store at %s: %s", self._path, self._whose())
                continue
            if "error" in answer:
                raise raised(answer)
            return answer["value"]

    def _notice_another_folder(self) -> None:
        """Turn to the folder that stands at the path now, if the one before was removed.

        Raises:
            StoreError: This process wrote to the one before: it would go on in another index.
        """
        try:
            found = self._lock_file.stat()
        except OSError:
            return  # not made yet; or just removed: what is open is used to its end
        with self._guard:
            before, self._found = self._found, found
            if before is None or os.path.samestat(before, found):
                return
        host = self._let_go()
        if host is not None:
            try:
                host.stop()
            except StoreError as error:  # what was not flushed is gone with the folder
                log.info("%s", error)
        if self._has_written:
            self._closed = True
            raise StoreError(
                f"The folder {self._path.parent} was removed and made again while this process "
                "wrote to it.",
                "Run the command again.",
            )
        log.warning("The folder %s was made again: it is opened again.", self._path.parent)

    def _take_over(self, name: str) -> StoreHost | None:
        """Open the engine here if no process has it; None if one has.

        Args:
            name: The method that is called.
        """
        with self._guard:
            if self._host is not None or self._connections:
                return self._host
            if name != "create" and not self.exists():
                raise StoreError(
                    f"There is no collection at {self._path}.", "Create it by indexing."
                )
            lock = ProcessLock(self._lock_file)
            if not lock.try_acquire():
                return None
            self._host = StoreHost(EdgeStore(self._path, sidecar=self._sidecar), lock)
            return self._host

    def _ask(self, message: bytes) -> dict[str, Any]:
        """The answer of the process that has the store.

        Raises:
            ConnectionError: It ended, or cannot be reached.
        """
        with self._guard:
            connection = self._connections.pop() if self._connections else None
        if connection is None:
            connection = self._connect()
        try:
            connection.settimeout(self._patience)
            connection.sendall(message)
            text, arrays = self._received(connection)
        except BaseException as error:
            connection.close()
            self._drop_connections()
            if isinstance(error, TimeoutError):
                raise ConnectionError("the process with the store does not answer") from error
            raise
        with self._guard:
            keep = not self._closed and len(self._connections) < IDLE_CONNECTIONS
            if keep:
                self._connections.append(connection)
        if not keep:
            connection.close()
        answer: dict[str, Any] = wire.from_bytes(text, arrays)
        return answer

    def _received(self, connection: socket.socket) -> tuple[bytes, bytes]:
        """A message; a long request is waited for as long as its process answers others.

        Raises:
            ConnectionError: The process ended, or answers nobody.
        """
        while True:
            connection.settimeout(self._patience)
            try:
                first = connection.recv(1, socket.MSG_PEEK)
            except TimeoutError:
                self._connect().close()
                continue
            if not first:
                raise ConnectionError("the process with the store ended")
            return receive(connection)

    def _connect(self) -> socket.socket:
        return connect(self._lock_file, self._path, self._patience)

    def _let_go(self) -> StoreHost | None:
        """Have neither connections nor the engine any more; what had it is still to be stopped."""
        self._drop_connections()
        with self._guard:
            host, self._host = self._host, None
        return host

    def _drop_connections(self) -> None:
        with self._guard:
            connections, self._connections = self._connections, []
        for connection in connections:
            connection.close()

    def _whose(self) -> str:
        holder = ProcessLock(self._lock_file).holder()
        return "an unknown process" if holder is None else str(holder)

    def _no_answer(self, error: ConnectionError) -> StoreError:
        return StoreError(
            f"The store at {self._path} is in use by {self._whose()}, which did not answer for "
            f"{self._patience:.0f} s: {error}.",
            "Resume or stop that process; use a Qdrant server to share a collection between "
            "machines.",
        )

    def forget(self) -> None:
        """Let go of what belongs to the parent of a forked process."""
        self._guard = threading.Lock()  # another thread may have held the one before
        host = self._let_go()
        if host is not None:
            host.forget()
            _inherited.append(host)  # the engine would hang if it were closed here


_all: weakref.WeakSet[SharedStore] = weakref.WeakSet()
_inherited: list[StoreHost] = []


def _forget_all() -> None:
    for store in list(_all):
        store.forget()


os.register_at_fork(after_in_child=_forget_all)
