"""How a process reaches the one that has the embedded store open; see `store_host`."""

from __future__ import annotations

import socket
from pathlib import Path

from cart_qdrant.errors import StoreError
from cart_qdrant.locks import ProcessLock
from cart_qdrant.storage import wire
from cart_qdrant.storage.store_host import PROTOCOL, receive

HELLO_SECONDS = 10.0
"""Seconds in which a process that has the store greets, whatever else it does."""


def connect(lock_file: Path, store: Path, patience: float) -> socket.socket:
    """A connection to the process that has the store.

    Args:
        lock_file: By which processes agree who opens the store.
        store: Folder of the store, for messages.
        patience: Seconds to wait for it.

    Raises:
        ConnectionError: It is not reached, or does not answer.
        StoreError: It is of another version, or of another user.
    """
    holder = ProcessLock(lock_file).holder()
    if holder is None or holder.address is None:
        raise ConnectionError("no process answers for the store")
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(min(HELLO_SECONDS, patience))
        connection.connect(holder.address)
        connection.sendall(wire.to_bytes({"call": "hello", "args": [], "kwargs": {}}))
        number = wire.from_bytes(*receive(connection))["value"]
    except TimeoutError as error:
        connection.close()
        raise ConnectionError("the process with the store does not answer") from error
    except PermissionError as error:
        connection.close()
        raise StoreError(
            f"The store at {store} is open in {holder}, of another user.",
            "Stop that process, or use a Qdrant server to share a collection.",
        ) from error
    except OSError as error:
        connection.close()
        raise ConnectionError(str(error)) from error
    if number != PROTOCOL:
        connection.close()
        raise StoreError(
            f"The store at {store} is open in {holder}, which has another version of "
            f"cart-qdrant (protocol {number}, here {PROTOCOL}).",
            "Restart that process.",
        )
    connection.settimeout(None)
    return connection
