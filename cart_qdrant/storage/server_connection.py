"""Requests to one collection of a Qdrant server: sent again while it is busy, errors mapped.

All requests may be sent twice without harm, and so all are repeated. What works on all points is
sent once without waiting, and awaited by other requests (`Connection.wait_until`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import re
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc  # type: ignore[import-untyped]
import httpx
from qdrant_client import QdrantClient
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ApiException, UnexpectedResponse

from cart_qdrant.errors import ConfigError, StoreError, UsageError
from cart_qdrant.storage.address import LOCAL, is_encrypted_or_near

log = logging.getLogger(__name__)
T = TypeVar("T")

OLDEST = (1, 16)
"""Oldest version of the server that has all that is asked of it: metadata of collections, ACORN."""
NOT_KNOWN = frozenset({400, 404, 405, 422, 501})
"""Statuses by which a server may say that it does not know a request."""
TIMED_OUT = 504
"""Status that a missing answer amounts to."""
TIMEOUT_VARIABLE = "CARTQ_TIMEOUT"
"""Environment variable with the seconds to wait for one answer of a server."""
LONGEST_WAIT = 4 * 3600.0
"""Seconds that a server may take for work on all points."""
_NO_RIGHTS = frozenset({401, 403})
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_CLIENT_ERRORS = (
    ApiException,
    QdrantException,
    grpc.RpcError,
    httpx.HTTPError,
    ValueError,  # local mode, and arguments that the client refuses
    RuntimeError,
)
_GRPC_STATUS = {
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "INVALID_ARGUMENT": 400,
    "UNIMPLEMENTED": 501,
    "RESOURCE_EXHAUSTED": 429,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
_local_locks: weakref.WeakKeyDictionary[QdrantClient, threading.RLock] = weakref.WeakKeyDictionary()
_locks_lock = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When to give up on a server that is busy or unreachable."""

    attempts: int = 5
    first_delay: float = 0.5
    """Seconds; doubled after each attempt, and shortened by up to a half at random."""
    max_delay: float = 8.0
    """Seconds; a longer `Retry-After` of the server is obeyed."""

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first_delay < 0 or self.max_delay < self.first_delay:
            raise ConfigError(
                f"RetryPolicy has attempts={self.attempts}, first_delay={self.first_delay}, "
                f"max_delay={self.max_delay}.",
                "Use attempts >= 1 and 0 <= first_delay <= max_delay.",
            )


def default_timeout() -> int:
    """Seconds to wait for one answer: `CARTQ_TIMEOUT`, or 30.

    Raises:
        UsageError: The variable is no number of seconds.
    """
    given = os.environ.get(TIMEOUT_VARIABLE) or "30"
    if not given.isdecimal() or not 0 < int(given[:9]) <= LONGEST_WAIT:
        raise UsageError(
            f"{TIMEOUT_VARIABLE} is {given!r}, but must be a number of seconds.",
            f"Write for example {TIMEOUT_VARIABLE}=120.",
        )
    return int(given)


def make_client(url: str, api_key: str | None, timeout: int, prefer_grpc: bool) -> QdrantClient:
    """A client for an address of `server_address`; nothing is sent yet."""
    if url == LOCAL:
        return QdrantClient(location=url)
    if api_key and not is_encrypted_or_near(url):
        log.warning("The API key goes to %s unencrypted: https:// keeps it secret.", url)
    with warnings.catch_warnings():
        # The line above is ours; the client's shows a line of its source, also for this machine.
        warnings.filterwarnings("ignore", "Api key is used with an insecure connection")
        return QdrantClient(
            url=url,
            api_key=api_key,
            timeout=timeout,
            prefer_grpc=prefer_grpc,
            check_compatibility=False,  # would send a request now
        )


class Connection:
    """A client, bound to one collection.

    Args:
        client: A client of `qdrant-client`.
        collection: Name of the collection.
        owned: Whether `close` closes the client.
        url: Address for messages; None takes the client's.
        retry: When to give up.
        sleep: Waits for some seconds.
    """

    def __init__(
        self,
        client: QdrantClient,
        collection: str,
        *,
        owned: bool,
        url: str | None,
        retry: RetryPolicy,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        options = client.init_options
        self.client = client
        self.collection = collection
        self.url = url or str(options.get("url") or options.get("location") or options.get("host"))
        self._has_key = bool(options.get("api_key"))
        self.is_local = options.get("location") == ":memory:" or options.get("path") is not None
        self.retry = retry
        self._lock = _lock_of(client) if self.is_local else contextlib.nullcontext()
        self._sleep = sleep
        self._owned = owned
        self._reached = False
        self._closed = False

    @property
    def location(self) -> str:
        """URL and collection, for messages."""
        return f"{self.url}/{self.collection}"

    def check_open(self) -> None:
        """Refuse a connection that was closed.

        Raises:
            StoreError: It was.
        """
        if self._closed:
            raise StoreError(f"The store at {self.location} was closed.", "Make a new ServerStore.")

    def close(self) -> None:
        """Close the client if it is ours; may be called twice."""
        if not self._closed:
            self._closed = True
            if self._owned:
                self.client.close()

    def call(self, method: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call a method of the client on the collection; again, while the server is busy.

        Raises:
            StoreError: Rights, a missing collection, a refusal, or no answer after all attempts.
        """
        self.check_open()
        delay = self.retry.first_delay
        for attempt in range(1, self.retry.attempts + 1):
            try:
                with self._lock:
                    answer = method(self.collection, *args, **kwargs)
            except _CLIENT_ERRORS as error:
                status = status_of(error)
                again = status in _BUSY and (self._reached or not _never_connected(error))
                if not again or attempt == self.retry.attempts:
                    raise self._mapped(error, status, attempt) from error
                wait = max(delay * random.uniform(0.5, 1.0), getattr(error, "retry_after_s", 0))
                log.info("%s: %s; again in %.1f s.", self.location, reason_of(error), wait)
                self._sleep(wait)
                delay = min(2 * delay, self.retry.max_delay)
            else:
                self._reached = True
                return answer
        raise AssertionError("unreachable: the last attempt returns or raises")

    def wait_until(self, done: Callable[[], bool], what: str) -> None:
        """Wait for work that the server has accepted, asking it again with growing pauses.

        Raises:
            StoreError: It is not done after `LONGEST_WAIT` seconds.
        """
        waited, pause = 0.0, 0.05
        while not done():
            if waited > LONGEST_WAIT:
                raise StoreError(
                    f"{self.location} has not finished {what} after {waited / 3600:.0f} hours.",
                    "See how busy the server is, then run the command again.",
                )
            log.info("%s is at work on %s.", self.location, what)
            self._sleep(pause)
            waited += pause
            pause = min(2 * pause, self.retry.max_delay)

    def _mapped(self, error: Exception, status: int | None, attempts: int) -> StoreError:
        if status in _NO_RIGHTS:
            return self._no_rights(error, status)
        version = self.version() if status in NOT_KNOWN else None
        if version is not None and version < OLDEST:
            return StoreError(
                f"{self.url} is Qdrant {_dotted(version)}, but this needs {_dotted(OLDEST)} or "
                f"later: {reason_of(error)}.",
                "Update the server, one minor version at a time.",
            )
        if status == 404:
            return StoreError(
                f"There is no collection {self.collection!r} at {self.url}: {reason_of(error)}.",
                "Create it by indexing, or name another collection.",
            )
        if status in _BUSY:
            return StoreError(
                f"No answer from {self.location} after {attempts} attempt(s): {reason_of(error)}.",
                "Check the URL and that the server runs; try again later, or set "
                f"{TIMEOUT_VARIABLE} to more seconds.",
            )
        return StoreError(f"{self.location} refused a request: {reason_of(error)}.")

    def _no_rights(self, error: Exception, status: int | None) -> StoreError:
        """The error for a request that the key, or the lack of one, does not allow."""
        if not self._has_key:
            what, remedy = "it was asked without an API key", "Set CARTQ_API_KEY to one."
        elif status == 401:
            what, remedy = "it does not know the API key", "Check the key in CARTQ_API_KEY."
        else:
            what = "the API key may not do this"
            remedy = "Give one that may read and write this collection."
        return StoreError(
            f"Missing rights on {self.location}: {what} ({reason_of(error)}).", remedy
        )

    def version(self) -> tuple[int, ...] | None:
        """Version of the server; None where it is not known, and in local mode."""
        if self.is_local:
            return None
        try:
            version = self.client.info().version
        except _CLIENT_ERRORS:
            return None
        return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def lacks_rights(error: StoreError) -> bool:
    """Whether a request failed because the API key may not do it."""
    return status_of(error.__cause__) in _NO_RIGHTS


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status that an error of the client amounts to; None where it is none of them."""
    if isinstance(error, UnexpectedResponse):
        return error.status_code
    if isinstance(error, ResourceExhaustedResponse):
        return 429
    source = getattr(error, "source", error)
    if isinstance(source, httpx.TransportError):
        return 504 if isinstance(source, httpx.TimeoutException) else 503
    if isinstance(error, grpc.RpcError) and hasattr(error, "code"):
        return _GRPC_STATUS.get(error.code().name)
    if isinstance(error, ValueError) and "not found" in str(error):
        return 404  # local mode
    return None


def reason_of(error: BaseException | None) -> str:
    """One line about an error of the client."""
    if isinstance(error, UnexpectedResponse):
        return f"status {error.status_code}, {error.content[:300].decode(errors='replace')}"
    if isinstance(error, grpc.RpcError) and hasattr(error, "details"):
        return str(error.details())
    return str(getattr(error, "source", error)) or type(error).__name__


def _lock_of(client: QdrantClient) -> threading.RLock:
    """The lock of a client in local mode, whose arrays grow in place: a search beside a write
    sees arrays of different lengths. All stores of one client share it."""
    with _locks_lock:
        return _local_locks.setdefault(client, threading.RLock())


def _never_connected(error: Exception) -> bool:
    return isinstance(getattr(error, "source", error), httpx.ConnectError)
