"""The process that has the embedded engine open answers the others through a socket.

The engine lets one process open a folder. That process listens at a Unix socket beside the lock
file, readable by its user alone, and names it in the lock's record. Each connection has a thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import socket
import stat
import tempfile
import threading
from pathlib import Path
from typing import Any

from cart_qdrant import errors
from cart_qdrant.errors import CartError, StoreError
from cart_qdrant.locks import ProcessLock
from cart_qdrant.storage import wire
from cart_qdrant.storage.edge import EdgeStore

log = logging.getLogger(__name__)

PROTOCOL = 1
"""Number of the form of messages; a process with another one is refused."""
METHODS = frozenset(
    {
        "add_vector", "clear_vector", "count", "create", "create_keyword_index",
        "create_range_index", "create_text_index", "delete", "delete_payload_key",
        "delete_vectors", "drop_index", "flush", "info", "page", "query_batch", "query_ids",
        "retrieve", "set_metadata", "set_payload", "update_vectors", "upsert",
    }
)  # fmt: skip
"""Methods of the store that other processes may call. All may be called twice without harm."""
SOCKET_LETTERS = 100
"""Bytes of the longest path of a socket; the system's limit is 104 to 108."""


class StoreHost:
    """An open embedded store, and the socket by which other processes use it.

    Args:
        store: The store of this process.
        lock: The lock of the store, held by this process.
    """

    def __init__(self, store: EdgeStore, lock: ProcessLock) -> None:
        self.store, self.lock = store, lock
        self._guard = threading.Lock()
        self._idle = threading.Condition(self._guard)
        self._connections: set[socket.socket] = set()
        self._busy = 0
        self._stopping = False
        self._listener = _listen(lock.path)
        if self._listener is not None:
            lock.record(self._listener.getsockname())
            threading.Thread(target=self._accept, name="cart-qdrant store", daemon=True).start()

    def _accept(self) -> None:
        assert self._listener is not None
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            with self._guard:
                if self._stopping:
                    connection.close()
                    return
                self._connections.add(connection)
            serve = threading.Thread(
                target=self._serve, args=(connection,), name="cart-qdrant store", daemon=True
            )
            serve.start()

    def _serve(self, connection: socket.socket) -> None:
        """Answer one process until it leaves."""
        try:
            while True:
                asked = receive(connection)
                with self._guard:
                    if self._stopping:
                        return
                    self._busy += 1
                try:
                    answer = self._answer(asked)
                finally:
                    with self._guard:
                        self._busy -= 1
                        self._idle.notify_all()
                connection.sendall(answer)
        except OSError as error:
            log.debug("A process left the store: %s", error)
        finally:
            with self._guard:
                self._connections.discard(connection)
            connection.close()

    def _answer(self, message: tuple[bytes, bytes]) -> bytes:
        try:
            asked = wire.from_bytes(*message)
            name = asked["call"]
            if name == "hello":
                return wire.to_bytes({"value": PROTOCOL})
            if name not in METHODS:
                raise StoreError(f"The store has no method {name!r} for other processes.")
            value = getattr(self.store, name)(*asked["args"], **asked["kwargs"])
            return wire.to_bytes({"value": value})
        except CartError as error:
            return _failure(type(error).__name__, error.what, error.remedy)
        except Exception as error:
            log.exception("A request of another process failed.")
            return _failure("StoreError", f"The store failed: {errors.first_line(error)}", "")

    def stop(self) -> None:
        """End all connections after their running requests, close the store, free the lock."""
        with self._guard:
            self._stopping = True
            while self._busy:
                self._idle.wait()
            connections = list(self._connections)
        if self._listener is not None:
            with contextlib.suppress(OSError):  # wakes the thread that waits for connections
                self._listener.shutdown(socket.SHUT_RDWR)
            if self.lock.is_in_force:  # else another process may listen there
                Path(self._listener.getsockname()).unlink(missing_ok=True)
            self._listener.close()
        for connection in connections:
            with contextlib.suppress(OSError):  # it may have left by itself
                connection.shutdown(socket.SHUT_RDWR)
        try:
            self.store.close()
        finally:
            self.lock.release()

    def forget(self) -> None:
        """Let go of the sockets and the engine's lock in a forked child, whose parent goes on."""
        self.store.forget()
        for one in (self._listener, *self._connections):
            if one is not None:
                one.close()


def _failure(kind: str, what: str, remedy: str) -> bytes:
    return wire.to_bytes({"error": kind, "what": what, "remedy": remedy})


def _listen(lock_file: Path) -> socket.socket | None:
    """A listening socket beside the lock file, else in a folder of the user's for short-lived
    files; None where neither disk has sockets."""
    for path in socket_paths(lock_file):
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if path.parent != lock_file.parent:
                _make_private(path.parent)
            path.unlink(missing_ok=True)  # of a process that was killed: the lock is ours
            listener.bind(os.fspath(path))
            path.chmod(stat.S_IRUSR | stat.S_IWUSR)
            listener.listen(64)
        except OSError as error:
            log.info("No socket at %s: %s", path, error)
            listener.close()
            continue
        return listener
    return None


def socket_paths(lock_file: Path) -> list[Path]:
    """Places for the socket of a lock file, the best first."""
    beside = lock_file.absolute().with_suffix(".sock")
    name = hashlib.blake2b(os.fsencode(beside), digest_size=8).hexdigest()
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(runtime) if runtime else Path(tempfile.gettempdir())
    elsewhere = folder / f"cart-qdrant-{os.getuid()}" / f"{name}.sock"
    return [one for one in (beside, elsewhere) if len(os.fsencode(one)) <= SOCKET_LETTERS]


def _make_private(folder: Path) -> None:
    """Make a folder of this user's alone.

    Raises:
        OSError: Another user made it.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a private folder of this user's")


def receive(connection: socket.socket) -> tuple[bytes, bytes]:
    """One message: its JSON, and the bytes of its arrays.

    Raises:
        ConnectionError: The other side left.
    """
    text, arrays = wire.LENGTHS.unpack(_exactly(connection, wire.LENGTHS.size))
    if text + arrays > wire.LONGEST:
        raise ConnectionError(f"a message of {text + arrays} bytes")
    return bytes(_exactly(connection, text)), bytes(_exactly(connection, arrays))


def _exactly(connection: socket.socket, length: int) -> bytearray:
    data = bytearray(length)
    view = memoryview(data)
    while view:
        count = connection.recv_into(view)
        if not count:
            raise ConnectionError("the other process left")
        view = view[count:]
    return data


def raised(answer: dict[str, Any]) -> CartError:
    """The error that an answer tells of."""
    kind = getattr(errors, answer["error"], StoreError)
    error: CartError = kind(answer["what"], answer["remedy"])
    return error
