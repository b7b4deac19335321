"""`ServerStore`: a collection of a Qdrant server or cloud, or of `:memory:` in tests.

Every request is safe to send twice, so all are retried when the server is busy or unreachable.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc  # type: ignore[import-untyped]
import httpx
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ApiException, UnexpectedResponse

from cart_qdrant.errors import ConfigError, MismatchError, StoreError
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage import validation as common
from cart_qdrant.storage.protocol import CollectionInfo, CollectionSpec, VectorInfo

log = logging.getLogger(__name__)
T = TypeVar("T")

REQUEST_BYTES = 4_000_000
REQUEST_POINTS = 1000
_FLOAT_BYTES = 22  # a float32 written as JSON
OLDEST = (1, 16)
"""Version of the server that has all that is asked: metadata of collections, ACORN."""
_NOT_KNOWN = {400, 404, 405, 422, 501}
_BUSY = {408, 425, 429, 500, 502, 503, 504}
_FOREIGN = (
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


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When to give up on a server that is busy or unreachable."""

    attempts: int = 5
    first_delay: float = 0.5
    """Seconds; doubled after each attempt, and shortened by up to a half at random."""
    max_delay: float = 8.0
    """Seconds; a longer `Retry-After` of the server is kept to."""

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first_delay < 0 or self.max_delay < self.first_delay:
            raise ConfigError(
                f"RetryPolicy has attempts={self.attempts}, first_delay={self.first_delay}, "
                f"max_delay={self.max_delay}.",
                "Use attempts >= 1 and 0 <= first_delay <= max_delay.",
            )


class ServerStore:
    """See `Store`. Points unknown to `set_payload` and `update_vectors` are ignored.

    Args:
        client: A client of `qdrant-client`.
        collection: Name of the collection.
        owned: Whether `close` closes the client.
        url: Shown in messages.
        retry: See `RetryPolicy`.
        sleep: Waits for some seconds.
    """

    def __init__(
        self,
        client: QdrantClient,
        collection: str,
        *,
        url: str = "",
        retry: RetryPolicy | None = None,
        sleep: Callable[[float], None] = time.sleep,
        owned: bool = True,
    ) -> None:
        options = client.init_options
        self._client = client
        self._collection = collection
        self._url = url or str(options.get("url") or options.get("location") or options.get("host"))
        self._local = options.get("location") == ":memory:" or options.get("path") is not None
        self._retry = retry or RetryPolicy()
        self._sleep = sleep
        self._owned = owned
        self._dims: dict[str, int] | None = None
        self._reached = False
        self._closed = False

    @classmethod
    def connect(
        cls,
        url: str,
        api_key: str | None = None,
        collection: str = "media",
        timeout: int = 30,
        prefer_grpc: bool = False,
    ) -> ServerStore:
        """Make a client for `url`, or for `:memory:`; nothing is sent yet.

        Args:
            url: Such as `http://localhost:6333`.
            api_key: Key of the server or cloud, if it wants one.
            collection: Name of the collection.
            timeout: Seconds to wait for one answer.
            prefer_grpc: Use gRPC (port 6334), which is faster for large answers.

        Raises:
            StoreError: The URL is not one.
        """
        if url == ":memory:":
            return cls(QdrantClient(location=url), collection)
        try:
            client = QdrantClient(
                url=url,
                api_key=api_key,
                timeout=timeout,
                prefer_grpc=prefer_grpc,
                check_compatibility=False,  # would send a request now
            )
        except ValueError as error:
            raise StoreError(
                f"{url!r} is not a Qdrant address: {error}.", "Write http://HOST:6333."
            ) from error
        return cls(client, collection, url=url)

    @property
    def location(self) -> str:
        """URL and collection."""
        return f"{self._url}/{self._collection}"

    def exists(self) -> bool:
        """See `Store.exists`."""
        return self._call(self._client.collection_exists)

    def create(self, spec: CollectionSpec) -> None:
        """See `Store.create`."""
        if not self.exists():
            params = {
                name: models.VectorParams(size=size, distance=models.Distance.COSINE)
                for name, size in spec.vectors.items()
            }
            try:
                self._call(
                    self._client.create_collection, vectors_config=params, **self._quantization()
                )
            except StoreError:
                # A retried request, or another process, may have made it.
                if not self.exists():
                    raise
        self._dims = None
        for name, vector in self.info().vectors.items():
            if not vector.is_usable:
                raise MismatchError(
                    f"Vector {name!r} of {self.location} is compared by {vector.distance}; "
                    "this needs Cosine.",
                    "Use another collection.",
                )
        common.check_same_vectors(self.location, self._widths(), spec.vectors)
        for field in spec.keywords:
            self.create_keyword_index(field)
        for field in spec.texts:
            self.create_text_index(field)

    def _quantization(self) -> dict[str, models.ScalarQuantization]:
        """Graphs are walked by int8, in memory; the vectors themselves score what is found."""
        if self._local:  # has no graphs
            return {}
        int8 = models.ScalarQuantizationConfig(
            type=models.ScalarType.INT8, quantile=common.QUANTILE, always_ram=True
        )
        return {"quantization_config": models.ScalarQuantization(scalar=int8)}

    def info(self) -> CollectionInfo:
        """See `Store.info`."""
        found = self._call(self._client.get_collection)
        params = found.config.params.vectors
        named = params if isinstance(params, dict) else {"": params} if params else {}
        vectors = {
            name: VectorInfo(one.size, one.distance.value, one.multivector_config is not None)
            for name, one in named.items()
        }
        metadata = found.config.metadata or {}
        return CollectionInfo(vectors, frozenset(found.payload_schema or {}), metadata)

    def create_keyword_index(self, field: str) -> None:
        """See `Store.create_keyword_index`."""
        if not self._local:  # which has no payload indexes, and warns
            kind = models.PayloadSchemaType.KEYWORD
            self._call(self._client.create_payload_index, field, kind, wait=True)

    def create_text_index(self, field: str) -> None:
        """See `Store.create_text_index`."""
        schema = models.TextIndexParams(
            type=models.TextIndexType.TEXT, lowercase=True, scoring=True
        )
        try:
            self._call(self._client.create_payload_index, field, schema, wait=True)
        except StoreError as error:
            if _status(error.__cause__) not in (400, 422):
                raise
            log.warning("%s cannot rank text; indexing %r without.", self.location, field)
            plain = schema.model_copy(update={"scoring": None})
            self._call(self._client.create_payload_index, field, plain, wait=True)

    def add_vector(self, name: str, size: int) -> None:
        """See `Store.add_vector`.

        Raises:
            StoreError: The server is too old: it needs Qdrant 1.18.
        """
        config = models.DenseVectorNameConfig(
            dense=models.DenseVectorConfig(size=size, distance=models.Distance.COSINE)
        )
        try:
            self._call(self._client.create_vector_name, name, config)
        except StoreError as error:
            if _status(error.__cause__) not in _NOT_KNOWN:
                raise
            raise StoreError(
                f"{self.location} cannot be given another vector: {_reason(error.__cause__)}.",
                "That needs Qdrant 1.18; go without caption vectors on an older one.",
            ) from error
        self._dims = None

    def set_metadata(self, key: str, value: Mapping[str, Any]) -> None:
        """See `Store.set_metadata`. A key that may not manage collections leaves it unset."""
        try:
            self._call(self._client.update_collection, metadata={key: dict(value)})
        except StoreError as error:
            if _status(error.__cause__) not in (401, 403):
                raise
            log.warning(
                "The key may not write the metadata of %s: whether readers have the right model "
                "is not checked.",
                self.location,
            )

    def drop_index(self, field: str) -> None:
        """See `Store.drop_index`."""
        if not self._local and field in self.info().indexed:
            self._call(self._client.delete_payload_index, field, wait=True)

    def upsert(self, points: Sequence[models.PointStruct]) -> None:
        """See `Store.upsert`."""
        ready = common.prepare_points(points, self._widths())
        for part in _groups(ready, _point_bytes):
            batch = [
                models.PointStruct(id=common.wire_id(i), vector=dict(v), payload=p)
                for i, v, p in part
            ]
            self._call(self._client.upsert, batch, wait=True)

    def delete(self, ids: Sequence[str]) -> None:
        """See `Store.delete`."""
        for part in common.chunks([common.as_id(i) for i in ids], REQUEST_POINTS):
            which = models.PointIdsList(points=common.wire_ids(part))
            self._call(self._client.delete, which, wait=True)

    def set_payload(self, updates: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """See `Store.set_payload`."""
        ready = [(common.as_id(i), common.clean_payload(payload)) for i, payload in updates]

        def write(updates: Sequence[tuple[str, Any]]) -> None:
            operations: list[models.UpdateOperation] = [
                models.SetPayloadOperation(
                    set_payload=models.SetPayload(payload=payload, points=[common.wire_id(i)])
                )
                for i, payload in updates
            ]
            self._call(self._client.batch_update_points, operations, wait=True)

        for batch in _groups(ready, lambda update: 100 + common.json_bytes(update[1])):
            self._write_known(batch, write)

    def delete_payload_key(self, key: str) -> None:
        """See `Store.delete_payload_key`."""
        keys = [common.quote_key(key)]
        everything = models.FilterSelector(filter=models.Filter())
        self._call(self._client.delete_payload, keys, everything, wait=True)

    def update_vectors(self, name: str, updates: Sequence[tuple[str, Sequence[float]]]) -> None:
        """See `Store.update_vectors`."""
        ids = [common.as_id(i) for i, _ in updates]
        rows = common.check_vectors(name, [r for _, r in updates], self._widths(), ids)
        pairs = list(zip(ids, rows, strict=True))

        def write(updates: Sequence[tuple[str, list[float]]]) -> None:
            points = [
                models.PointVectors(id=common.wire_id(i), vector={name: row}) for i, row in updates
            ]
            self._call(self._client.update_vectors, points, wait=True)

        for batch in _groups(pairs, lambda pair: 100 + _FLOAT_BYTES * len(pair[1])):
            self._write_known(batch, write)

    def delete_vectors(self, name: str, ids: Sequence[str]) -> None:
        """See `Store.delete_vectors`."""
        common.check_names([name], self._widths())
        for part in common.chunks([common.as_id(i) for i in ids], REQUEST_POINTS):
            which = models.PointIdsList(points=common.wire_ids(part))
            self._call(self._client.delete_vectors, [name], which, wait=True)

    def retrieve(
        self, ids: Sequence[str], *, with_payload: bool = True, with_vectors: Sequence[str] = ()
    ) -> list[models.Record]:
        """See `Store.retrieve`."""
        names = common.check_names(with_vectors, self._widths()) if with_vectors else []
        wanted = [common.as_id(i) for i in ids]
        found: dict[str, models.Record] = {}
        for part in common.chunks(wanted, REQUEST_POINTS):
            rows = self._call(
                self._client.retrieve,
                common.wire_ids(part),
                with_payload=with_payload,
                with_vectors=common.wire_names(names),
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
        """See `Store.scroll`."""
        names = common.check_names(with_vectors, self._widths()) if with_vectors else []
        payload = with_payload if isinstance(with_payload, bool) else list(with_payload)
        scroll_filter = qdrant.to_client(filter)
        offset: models.ExtendedPointId | None = None
        while True:
            rows, offset = self._call(
                self._client.scroll,
                scroll_filter=scroll_filter,
                limit=batch,
                offset=offset,
                with_payload=payload,
                with_vectors=common.wire_names(names),
            )
            yield from (_record(row, names) for row in rows)
            if offset is None:
                return

    def query_batch(self, requests: Sequence[qdrant.AnyQuery]) -> Sequence[Sequence[qdrant.AnyHit]]:
        """See `Store.query_batch`."""
        if not requests:
            return []
        for request in requests:
            common.check_query(request, self._widths())
        asked: list[models.QueryRequest] = qdrant.to_client(list(requests))
        if self._local:  # always exact; warns about parameters
            asked = [request.model_copy(update={"params": None}) for request in asked]
        else:
            asked = [_rescored(request) for request in asked]
        answers = self._call(self._client.query_batch_points, asked)
        return [answer.points for answer in answers]

    def query_ids(self, requests: Sequence[qdrant.AnyQuery]) -> list[qdrant.FoundIds]:
        """See `Store.query_ids`."""
        return common.ids_alone(self.query_batch(requests))

    def count(self, filter: qdrant.AnyFilter | None = None) -> int:
        """See `Store.count`."""
        return self._call(self._client.count, qdrant.to_client(filter), exact=True).count

    def optimize(self) -> None:
        """Nothing: the server builds its indexes by itself."""
        self._check_open()

    def flush(self) -> None:
        """Nothing: every write waited until the server had it."""
        self._check_open()

    def close(self) -> None:
        """See `Store.close`; may be called twice."""
        if not self._closed:
            self._closed = True
            if self._owned:
                self._client.close()

    # Talking to the server

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"The store at {self.location} was closed.", "Make a new ServerStore.")

    def _call(self, method: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call a method of the client on the collection, again while the server is busy.

        Raises:
            StoreError: Rights, a missing collection, a refusal, or no answer after all attempts.
        """
        self._check_open()
        delay = self._retry.first_delay
        for attempt in range(1, self._retry.attempts + 1):
            try:
                answer = method(self._collection, *args, **kwargs)
            except _FOREIGN as error:
                status = _status(error)
                again = status in _BUSY and (self._reached or not _never_connected(error))
                if not again or attempt == self._retry.attempts:
                    raise self._mapped(error, status, attempt) from error
                wait = max(delay * random.uniform(0.5, 1.0), getattr(error, "retry_after_s", 0))
                log.info("%s: %s; again in %.1f s.", self.location, _reason(error), wait)
                self._sleep(wait)
                delay = min(2 * delay, self._retry.max_delay)
            else:
                self._reached = True
                return answer
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _mapped(self, error: Exception, status: int | None, attempts: int) -> StoreError:
        if status in (401, 403):
            return StoreError(
                f"Missing rights on {self.location} (status {status}).",
                "Give an API key that may read and write this collection.",
            )
        old = self._too_old() if status in _NOT_KNOWN else None
        if old is not None:
            return StoreError(
                f"{self._url} is Qdrant {old}, but this needs {'.'.join(map(str, OLDEST))} or "
                f"later: {_reason(error)}.",
                "Bring the server up to date, one minor version at a time.",
            )
        if status == 404:
            return StoreError(
                f"There is no collection {self._collection!r} at {self._url}: {_reason(error)}.",
                "Create it by indexing, or name another collection.",
            )
        if status in _BUSY:
            return StoreError(
                f"No answer from {self.location} after {attempts} attempt(s): {_reason(error)}.",
                "Check the URL and that the server runs; try again later, or raise the timeout.",
            )
        return StoreError(f"{self.location} refused a request: {_reason(error)}.")

    def _too_old(self) -> str | None:
        """Version of a server that lacks what is asked of it."""
        if self._local:
            return None
        try:
            version = self._client.info().version
        except _FOREIGN:
            return None
        numbers = [int(part) for part in re.findall(r"\d+", version)[:2]]
        return version if tuple(numbers) < OLDEST else None

    def _widths(self) -> dict[str, int]:
        """Width of each named vector, asked for once."""
        if self._dims is None:
            self._dims = {name: one.size for name, one in self.info().vectors.items()}
        return self._dims

    def _write_known(
        self,
        updates: Sequence[tuple[str, T]],
        write: Callable[[Sequence[tuple[str, T]]], None],
    ) -> None:
        """Write the updates of points that are there; again, when some have gone meanwhile."""
        for attempt in range(1, self._retry.attempts + 1):
            known = self._known([i for i, _ in updates])
            there = [update for update in updates if update[0] in known]
            if not there:
                return
            try:
                write(there)
            except StoreError as error:
                deleted = _status(error.__cause__) == 404 and self.exists()
                if not deleted or attempt == self._retry.attempts:
                    raise
            else:
                return

    def _known(self, ids: Sequence[str]) -> set[str]:
        rows = self._call(
            self._client.retrieve,
            common.wire_ids(ids),
            with_payload=False,
            with_vectors=False,
        )
        return {str(row.id) for row in rows}


def _groups(items: Sequence[T], size_of: Callable[[T], int]) -> Iterator[list[T]]:
    return common.chunks_by_bytes(items, size_of, max_bytes=REQUEST_BYTES, max_items=REQUEST_POINTS)


def _point_bytes(point: tuple[str, dict[str, list[float]], dict[str, Any]]) -> int:
    _, vectors, payload = point
    return _FLOAT_BYTES * sum(map(len, vectors.values())) + common.json_bytes(payload)


def _record(row: models.Record, names: Sequence[str]) -> models.Record:
    return row.model_copy(
        update={"id": str(row.id), "vector": common.select_vectors(row.vector, names)}
    )


def _status(error: BaseException | None) -> int | None:
    """The HTTP status that an error amounts to; None when it is none of them."""
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


def _never_connected(error: Exception) -> bool:
    return isinstance(getattr(error, "source", error), httpx.ConnectError)


def _reason(error: BaseException | None) -> str:
    """One line about a foreign error."""
    if isinstance(error, UnexpectedResponse):
        return f"status {error.status_code}, {error.content[:300].decode(errors='replace')}"
    if isinstance(error, grpc.RpcError) and hasattr(error, "details"):
        return str(error.details())
    return str(getattr(error, "source", error)) or type(error).__name__


def _rescored(request: models.QueryRequest) -> models.QueryRequest:
    """A search by a vector, with cosines of the vectors themselves where these are quantised."""
    if not isinstance(request.query, list) or request.params is not None:
        return request
    rescore = models.QuantizationSearchParams(rescore=True, oversampling=common.OVERSAMPLING)
    return request.model_copy(update={"params": models.SearchParams(quantization=rescore)})
