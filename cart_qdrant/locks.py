"""Locks between processes, which tell who holds them.

A lock is an advisory `flock` of a file. The kernel releases it when its process ends, however it
ends. The holder writes a record of itself into the file, for the messages of those who wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sys
import time
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from cart_qdrant.errors import StoreError

COMMAND_LETTERS = 200
"""Letters of a command line that a record keeps."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.005, 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The process that holds a lock.

    Attributes:
        pid: Its number.
        host: Name of its machine.
        command: Its command line, shortened.
        since: When it took the lock, with the time zone.
        address: Socket at which it answers others; None where it does not.
    """

    pid: int
    host: str
    command: str
    since: str
    address: str | None = None

    @classmethod
    def this_process(cls, address: str | None = None) -> Holder:
        """The record of this process."""
        program = Path(sys.argv[0]).name if sys.argv else ""
        command = " ".join([program or "python", *sys.argv[1:]])[:COMMAND_LETTERS]
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        return cls(
            pid=os.getpid(), host=socket.gethostname(), command=command, since=since,
            address=address,
        )  # fmt: skip

    @property
    def is_here(self) -> bool:
        """Whether it is of this machine, where a socket reaches it."""
        return self.host == socket.gethostname()

    def __str__(self) -> str:
        where = "" if self.is_here else f" on {self.host}"
        return f"process {self.pid}{where} ({self.command}), since {self.since}"


class ProcessLock:
    """One lock file.

    Args:
        path: The file; it is made when the lock is taken.
        head: First bytes of the file, before the record.
    """

    def __init__(self, path: Path, head: bytes = b"") -> None:
        self.path = path
        self._head = head
        self._file: BinaryIO | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._file is not None

    @property
    def is_in_force(self) -> bool:
        """Whether no other file stands in the place of the one that this object has locked; one
        that was removed or moved away counts until then."""
        if self._file is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except OSError:
            return True

    def try_acquire(self) -> bool:
        """Take the lock if it is free.

        Returns:
            Whether it was.

        Raises:
            StoreError: The file cannot be opened, or is a link: a record written through it would
                overwrite another file.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            file = os.fdopen(os.open(self.path, flags, 0o666), "a+b")
        except OSError as error:
            raise StoreError(
                f"The lock file {self.path} cannot be opened: {error.strerror}.",
                "Remove it if it is a link; else make its folder writable for you.",
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        except BaseException:
            file.close()
            raise
        self._file = file
        _held.add(self)
        self.record()
        return True

    def acquire(self, patience: float, on_wait: Callable[[Holder | None], None]) -> bool:
        """Take the lock, waiting for it if need be.

        Args:
            patience: Seconds to wait.
            on_wait: Is called once, with the holder, if the lock is not free.

        Returns:
            Whether it was taken.
        """
        waiting = Waiting(patience)
        while not self.try_acquire():
            if waiting.is_first:
                on_wait(self.holder())
            if not waiting.pause():
                return False
        return True

    def record(self, address: str | None = None) -> None:
        """Write who holds the lock, and where it answers."""
        assert self._file is not None
        data = json.dumps(asdict(Holder.this_process(address))).encode() + b"\n"
        handle, begin = self._file.fileno(), len(self._head)
        with contextlib.suppress(OSError):  # on a full disk the lock holds without a record
            if os.fstat(handle).st_size < begin:
                os.write(handle, self._head)
            os.ftruncate(handle, begin)
            os.write(handle, data)  # in one piece: a reader sees a whole record or none

    def holder(self) -> Holder | None:
        """The record of the holder; None where there is none, or it is just being written."""
        try:
            data = self.path.read_bytes()[len(self._head) :]
            return Holder(**json.loads(data))
        except (OSError, ValueError, TypeError):
            return None

    def release(self) -> None:
        """Give the lock back; may be called twice."""
        file, self._file = self._file, None
        if file is not None:
            _held.discard(self)
            with contextlib.suppress(OSError):  # a full disk keeps an old record, which is harmless
                os.ftruncate(file.fileno(), len(self._head))
            file.close()

    def forget(self) -> None:
        """Let go of the file of a forked process, which goes on to hold the lock."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


class Waiting:
    """Pauses of growing length until a deadline.

    Args:
        patience: Seconds until the deadline.
    """

    def __init__(self, patience: float) -> None:
        self._end = time.monotonic() + patience
        self._pause = 0.0

    @property
    def is_first(self) -> bool:
        """Whether there was no pause yet."""
        return self._pause == 0.0

    @property
    def is_over(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() >= self._end

    def pause(self) -> bool:
        """Wait a moment.

        Returns:
            Whether there is time for another attempt.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            return False
        self._pause = min(2 * self._pause or _FIRST_PAUSE, _LONGEST_PAUSE)
        time.sleep(min(self._pause, left))
        return True


_held: weakref.WeakSet[ProcessLock] = weakref.WeakSet()


def _forget_all() -> None:
    for lock in list(_held):
        lock.forget()
    _held.clear()


# A forked child shares the file, and would keep the lock after its parent's end.
os.register_at_fork(after_in_child=_forget_all)
