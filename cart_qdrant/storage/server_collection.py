"""The schema of a server's collection, and work on all of its points."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from qdrant_client import QdrantClient, models

from cart_qdrant.errors import MismatchError, StoreError
from cart_qdrant.storage import server_requests
from cart_qdrant.storage.payloads import quote_key
from cart_qdrant.storage.protocol import CollectionInfo, CollectionSpec, RangeKind
from cart_qdrant.storage.server_connection import (
    NOT_KNOWN,
    TIMED_OUT,
    Connection,
    RetryPolicy,
    lacks_rights,
    reason_of,
    status_of,
)
from cart_qdrant.storage.validation import check_same_vectors, check_spec

log = logging.getLogger(__name__)
T = TypeVar("T")

ADDS_VECTORS = (1, 18)
"""Version of the server from which a collection can be given another vector."""
NO_POINT = "00000000-0000-0000-0000-000000000000"
"""Id of no point."""


class ServerCollection:
    """A collection of a server, without its points. See `ServerStore` for the arguments."""

    def __init__(
        self,
        client: QdrantClient,
        collection: str,
        *,
        url: str | None = None,
        retry: RetryPolicy | None = None,
        sleep: Callable[[float], None] = time.sleep,
        owned: bool = True,
    ) -> None:
        self._client = client
        self._connection = Connection(
            client, collection, owned=owned, url=url, retry=retry or RetryPolicy(), sleep=sleep
        )
        self._dims: dict[str, int] | None = None
        self._before_write: Callable[[], None] = lambda: None

    @property
    def location(self) -> str:
        """URL and collection, for messages."""
        return self._connection.location

    def exists(self) -> bool:
        """Whether the server has the collection."""
        return self._call(self._client.collection_exists)

    # Schema

    def create(self, spec: CollectionSpec) -> None:
        """Create the collection with its payload indexes; in an existing one, make those indexes,
        and the first of the slots, where it lacks them.

        Raises:
            MismatchError: It exists with other vectors, or they are not compared by cosine.
        """
        if not self.exists():
            try:
                self._call(self._client.create_collection, **self._parameters(spec))
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
        for name in check_spec(self.location, self._widths(), spec):
            self.add_vector(name, spec.slots[name])
        for field in spec.keywords:
            self.create_keyword_index(field)
        for field in spec.texts:
            self.create_text_index(field)

    def _parameters(self, spec: CollectionSpec) -> dict[str, Any]:
        count = 1 if self._adds_vectors() else len(spec.slots)
        slots = dict(list(spec.slots.items())[:count])
        whole = replace(spec, vectors={**spec.vectors, **slots})
        return server_requests.new_collection(whole, quantized=not self._connection.is_local)

    def _adds_vectors(self) -> bool:
        """Whether a collection that is there can be given another vector."""
        version = self._connection.version()
        return self._connection.is_local or (version is not None and version >= ADDS_VECTORS)

    def info(self) -> CollectionInfo:
        """Vectors, indexed payload fields and metadata, asked of the server each time."""
        return server_requests.collection_info(self._call(self._client.get_collection))

    def create_keyword_index(self, field: str) -> None:
        """Index one more payload field for exact matches, unless it has an index."""
        if not self._connection.is_local:  # which has no payload indexes, and warns
            self._make_index(field, models.PayloadSchemaType.KEYWORD)

    def create_range_index(self, field: str, kind: RangeKind) -> None:
        """Index the numbers or the dates of one more payload field, unless it has an index."""
        if not self._connection.is_local:
            self._make_index(field, models.PayloadSchemaType(kind))

    def create_text_index(self, field: str) -> None:
        """Index the words of one more payload field, to rank by them where the server can."""
        schema = models.TextIndexParams(
            type=models.TextIndexType.TEXT, lowercase=True, scoring=True
        )
        try:
            self._make_index(field, schema)
        except StoreError as error:
            if status_of(error.__cause__) not in (400, 422):
                raise
            log.warning("%s cannot rank text; indexing %r without.", self.location, field)
            self._make_index(field, schema.model_copy(update={"scoring": None}))

    def _make_index(self, field: str, schema: models.PayloadFieldSchema) -> None:
        """Ask for an index and wait until the server has it: of millions of points that takes
        minutes, and a request that is sent again would have it made again."""
        if self._connection.is_local:
            self._call(self._client.create_payload_index, field, schema)
        elif field not in self.info().indexed:
            self._call(self._client.create_payload_index, field, schema, wait=False)
            self._connection.wait_until(
                lambda: field in self.info().indexed, f"the index of {field!r}"
            )

    def drop_index(self, field: str) -> None:
        """Remove the index of a payload field; nothing happens where there is none."""
        if not self._connection.is_local and field in self.info().indexed:
            self._call(self._client.delete_payload_index, field, wait=False)
            self._connection.wait_until(
                lambda: field not in self.info().indexed, f"the removal of the index of {field!r}"
            )

    def add_vector(self, name: str, size: int) -> None:
        """Let points have one more named vector, compared by cosine.

        Nothing happens where they can already.

        Raises:
            StoreError: The server is too old: it needs Qdrant 1.18.
            MismatchError: They have it with another width.
        """
        if self._has_vector(name, size):
            return
        config = models.DenseVectorNameConfig(
            dense=models.DenseVectorConfig(size=size, distance=models.Distance.COSINE)
        )
        try:
            self._call(self._client.create_vector_name, name, config)
        except StoreError as error:
            if status_of(error.__cause__) not in NOT_KNOWN:
                raise
            # A request whose answer was lost is sent again, and refused as done.
            if self._has_vector(name, size):
                return
            raise StoreError(
                f"{self.location} cannot be given another vector: {reason_of(error.__cause__)}.",
                "That needs Qdrant 1.18; go without caption vectors on an older one.",
            ) from error
        self._dims = None

    def _has_vector(self, name: str, size: int) -> bool:
        self._dims = None
        found = self._widths()
        if name in found:
            check_same_vectors(self.location, {name: found[name]}, {name: size})
        return name in found

    def set_metadata(self, key: str, value: Mapping[str, Any]) -> None:
        """Put a value into the collection's metadata; without the rights for it, warn."""
        try:
            self._call(self._client.update_collection, metadata={key: dict(value)})
        except StoreError as error:
            if not lacks_rights(error):
                raise
            log.warning(
                "The key may not write the metadata of %s: whether readers have the right model "
                "is not checked.",
                self.location,
            )

    def delete_payload_key(self, key: str) -> None:
        """Remove a top-level payload key from every point."""
        self._before_write()
        keys = [quote_key(key)]
        everything = models.FilterSelector(filter=models.Filter())
        self._call(self._client.delete_payload, keys, everything, wait=self._connection.is_local)
        self._settle()

    def clear_vector(self, name: str) -> None:
        """Remove one named vector of all points; nothing happens where the collection lacks it.

        The vector itself stays in the collection: a reader with an older copy of the index folder
        finds less there, but gets no error.
        """
        self._before_write()
        if name not in self._widths(name):
            return
        having = models.Filter(must=[models.HasVectorCondition(has_vector=name)])
        which = models.FilterSelector(filter=having)
        self._call(self._client.delete_vectors, [name], which, wait=self._connection.is_local)
        self._settle()

    def _settle(self) -> None:
        """Wait until the server has done all that it accepted: each shard works in order, so that
        a request which changes nothing is answered after what was sent before it."""
        if self._connection.is_local:
            return
        nothing = models.Filter(must=[models.HasIdCondition(has_id=[NO_POINT])])
        selector = models.FilterSelector(filter=nothing)

        def answered() -> bool:
            try:
                self._call(self._client.delete_payload, ["cartq"], selector, wait=True)
            except StoreError as error:
                if status_of(error.__cause__) != TIMED_OUT:
                    raise
                return False
            return True

        self._connection.wait_until(answered, "a change of all points")

    def _call(self, method: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        return self._connection.call(method, *args, **kwargs)

    def _widths(self, *needed: str) -> dict[str, int]:
        """Width of each named vector, asked for once, and again where one of `needed` is not among
        them: another process may have added it."""
        if self._dims is None or not self._dims.keys() >= set(needed):
            self._dims = {name: one.size for name, one in self.info().vectors.items()}
        return self._dims
