"""`ServerStore`: a collection of a Qdrant server or cloud, or of `:memory:` in tests."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from qdrant_client import models

from cart_qdrant.arrays.point_ids import as_id, wire_id, wire_ids
from cart_qdrant.errors import StoreError, VectorError
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage import server_requests
from cart_qdrant.storage.address import server_address
from cart_qdrant.storage.batches import chunks, in_pages
from cart_qdrant.storage.payloads import clean_payload, json_bytes
from cart_qdrant.storage.server_collection import ServerCollection
from cart_qdrant.storage.server_connection import (
    default_timeout,
    make_client,
    status_of,
)
from cart_qdrant.storage.server_search import SearchLimits, tuned
from cart_qdrant.storage.validation import (
    check_names,
    check_query,
    check_vectors,
    prepare_points,
    select_vectors,
    wire_names,
)

log = logging.getLogger(__name__)
T = TypeVar("T")

FRESH = 300.0
"""Seconds after which it is asked again how many points a collection has."""


class ServerStore(ServerCollection):
    """The `Store` of a server's collection. Nothing is sent before the first use.

    Points unknown to `set_payload` and `update_vectors` are ignored.

    Args:
        client: A client of `qdrant-client`.
        collection: Name of the collection.
        url: Address for messages; None takes the client's.
        retry: When to give up on a server that is busy or unreachable; None for the defaults.
        sleep: Waits for some seconds.
        owned: Whether `close` closes the client.
    """

    _known_limits: tuple[float, SearchLimits] | None = None
    """When they were asked for, and the limits of searches."""

    @classmethod
    def connect(
        cls,
        url: str,
        api_key: str | None = None,
        collection: str = "media",
        timeout: int | None = None,
        prefer_grpc: bool = False,
    ) -> ServerStore:
        """Make a client for `url`, or for `:memory:`; nothing is sent yet.

        Args:
            url: Such as `http://localhost:6333`.
            api_key: Key of the server or cloud, if it wants one.
            collection: Name of the collection.
            timeout: Seconds to wait for one answer; None for `CARTQ_TIMEOUT`, or 30.
            prefer_grpc: Use gRPC (port 6334), which is faster for large answers.

        Raises:
            UsageError: The URL is not one, or `CARTQ_TIMEOUT` is no number of seconds.
        """
        url = server_address(url)
        timeout = default_timeout() if timeout is None else timeout
        return cls(make_client(url, api_key, timeout, prefer_grpc), collection, url=url)

    # Writing

    def guard_writes(self, check: Callable[[], None]) -> None:
        """Call `check` before points are written."""
        self._before_write = check

    def upsert(self, points: Sequence[models.PointStruct]) -> None:
        """Write points whole (vectors and payload), replacing those with the same id."""
        self._before_write()
        named = {name for one in points if isinstance(one.vector, dict) for name in one.vector}
        ready = prepare_points(points, self._widths(*named))
        for part in server_requests.groups(ready, server_requests.point_bytes):
            batch = [
                models.PointStruct(id=wire_id(i), vector=dict(v), payload=p) for i, v, p in part
            ]
            self._call(self._client.upsert, batch, wait=True)

    def delete(self, ids: Sequence[str]) -> None:
        """Remove points by id; unknown ids are ignored."""
        self._before_write()
        for part in chunks([as_id(i) for i in ids], server_requests.REQUEST_POINTS):
            which = models.PointIdsList(points=wire_ids(part))
            self._call(self._client.delete, which, wait=True)

    def set_payload(self, updates: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """Set top-level payload keys of each named point, keeping its other keys."""
        self._before_write()
        ready = [(as_id(i), clean_payload(payload)) for i, payload in updates]

        def write(updates: Sequence[tuple[str, Any]]) -> None:
            operations: list[models.UpdateOperation] = [
                models.SetPayloadOperation(
                    set_payload=models.SetPayload(payload=payload, points=[wire_id(i)])
                )
                for i, payload in updates
            ]
            self._call(self._client.batch_update_points, operations, wait=True)

        for batch in server_requests.groups(ready, _payload_bytes):
            self._write_known(batch, write)

    def update_vectors(self, name: str, updates: Sequence[tuple[str, Sequence[float]]]) -> None:
        """Replace one named vector of each named point."""
        self._before_write()
        ids = [as_id(i) for i, _ in updates]
        rows = check_vectors(name, [row for _, row in updates], self._widths(name), ids)
        pairs = list(zip(ids, rows, strict=True))

        def write(updates: Sequence[tuple[str, list[float]]]) -> None:
            points = [models.PointVectors(id=wire_id(i), vector={name: row}) for i, row in updates]
            self._call(self._client.update_vectors, points, wait=True)

        for batch in server_requests.groups(pairs, _row_bytes):
            self._write_known(batch, write)

    def delete_vectors(self, name: str, ids: Sequence[str]) -> None:
        """Remove one named vector of each named point."""
        self._before_write()
        check_names([name], self._widths(name))
        for part in chunks([as_id(i) for i in ids], server_requests.REQUEST_POINTS):
            which = models.PointIdsList(points=wire_ids(part))
            self._call(self._client.delete_vectors, [name], which, wait=True)

    def _write_known(
        self,
        updates: Sequence[tuple[str, T]],
        write: Callable[[Sequence[tuple[str, T]]], None],
    ) -> None:
        """Write the updates of points that exist; again, when some were deleted meanwhile."""
        attempts = self._connection.retry.attempts
        for attempt in range(1, attempts + 1):
            known = self._known([i for i, _ in updates])
            there = [update for update in updates if update[0] in known]
            if not there:
                return
            try:
                write(there)
            except StoreError as error:
                deleted = status_of(error.__cause__) == 404 and self.exists()
                if not deleted or attempt == attempts:
                    raise
            else:
                return

    def _known(self, ids: Sequence[str]) -> set[str]:
        """Those of the canonical ids that the collection has."""
        rows = self._call(
            self._client.retrieve, wire_ids(ids), with_payload=False, with_vectors=False
        )
        return {str(row.id) for row in rows}

    # Reading

    def retrieve(
        self, ids: Sequence[str], *, with_payload: bool = True, with_vectors: Sequence[str] = ()
    ) -> list[models.Record]:
        """Points by id, in the order asked; unknown ids are left out."""
        names = check_names(with_vectors, self._widths(*with_vectors)) if with_vectors else []
        wanted = [as_id(i) for i in ids]
        found: dict[str, models.Record] = {}
        for part in chunks(wanted, server_requests.REQUEST_POINTS):
            rows = self._call(
                self._client.retrieve,
                wire_ids(part),
                with_payload=with_payload,
                with_vectors=wire_names(names),
            )
            found.update((str(row.id), _record(row, names)) for row in rows)
        return [found[i] for i in wanted if i in found]

    def scroll(
        self,
        filter: qdrant.AnyFilter | None = None,
        *,
        with_payload: bool | Sequence[str] = True,
        with_vectors: Sequence[str] = (),
        batch: int = 1000,
    ) -> Iterator[models.Record]:
        """Every point that matches, in order of id, read in pages of `batch`."""
        names = check_names(with_vectors, self._widths(*with_vectors)) if with_vectors else []
        payload = with_payload if isinstance(with_payload, bool) else list(with_payload)
        scroll_filter = qdrant.to_client(filter)

        def page(
            begin: models.ExtendedPointId | None,
        ) -> tuple[list[models.Record], models.ExtendedPointId | None]:
            return self._call(
                self._client.scroll, scroll_filter=scroll_filter, limit=batch, offset=begin,
                with_payload=payload, with_vectors=wire_names(names),
            )  # fmt: skip

        for row in in_pages(page):
            yield _record(row, names)

    def count(self, filter: qdrant.AnyFilter | None = None) -> int:
        """Exact number of points that match."""
        return self._call(self._client.count, qdrant.to_client(filter), exact=True).count

    # Searching

    def query_batch(self, requests: Sequence[qdrant.AnyQuery]) -> Sequence[Sequence[qdrant.AnyHit]]:
        """Answers of several searches in one request, each best first."""
        if not requests:
            return []
        for request in requests:
            self._check_query(request)
        asked: list[models.QueryRequest] = qdrant.to_client(list(requests))
        if self._connection.is_local:  # always exact; warns about parameters
            asked = [request.model_copy(update={"params": None}) for request in asked]
        else:
            limits, widths = self._limits(), self._widths()
            asked = [tuned(one, widths.get(one.using or ""), limits) for one in asked]
        answers = self._call(self._client.query_batch_points, asked)
        return [answer.points for answer in answers]

    def _check_query(self, request: qdrant.AnyQuery) -> None:
        """Check a request, by the vectors that the collection has now where it needs another one
        than it had."""
        try:
            check_query(request, self._widths())
        except VectorError:
            self._dims = None
            check_query(request, self._widths())

    def _limits(self) -> SearchLimits:
        """Size and strict mode of the collection, asked at most every `FRESH` seconds."""
        now = time.monotonic()
        if self._known_limits is None or now - self._known_limits[0] > FRESH:
            self._known_limits = now, SearchLimits.of(self._call(self._client.get_collection))
        return self._known_limits[1]

    def query_ids(self, requests: Sequence[qdrant.AnyQuery]) -> list[qdrant.FoundIds]:
        """The answers of `query_batch`, ids and scores alone."""
        return qdrant.ids_alone(self.query_batch(requests))

    # End

    def flush(self) -> None:
        """Do nothing: every write waited until the server had it."""
        self._connection.check_open()

    def close(self) -> None:
        """Close the client if it is ours; may be called twice."""
        self._connection.close()


def _payload_bytes(update: tuple[str, Any]) -> int:
    return 100 + json_bytes(update[1])


def _row_bytes(update: tuple[str, Sequence[float]]) -> int:
    return 100 + server_requests.FLOAT_BYTES * len(update[1])


def _record(row: models.Record, names: Sequence[str]) -> models.Record:
    return row.model_copy(update={"id": str(row.id), "vector": select_vectors(row.vector, names)})
