"""Arguments of requests to a Qdrant server, in the client's classes, and what its answers say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from qdrant_client import models

from cart_qdrant.storage.batches import chunks_by_bytes
from cart_qdrant.storage.payloads import json_bytes
from cart_qdrant.storage.protocol import CollectionInfo, CollectionSpec, VectorInfo
from cart_qdrant.storage.validation import QUANTILE

T = TypeVar("T")

REQUEST_BYTES = 4_000_000
"""Size of a request that writes, at most, unless one point alone is larger."""
REQUEST_POINTS = 1000
"""Points of a request, at most."""
FLOAT_BYTES = 22
"""Size of a float32 that is written as JSON, at most."""


def new_collection(spec: CollectionSpec, *, quantized: bool) -> dict[str, Any]:
    """Arguments of `create_collection`.

    Args:
        quantized: Whether graphs are walked by int8, which is kept in memory; hits are scored by
            the vectors themselves. Local mode has no graphs.
    """
    vectors = {
        name: models.VectorParams(size=size, distance=models.Distance.COSINE)
        for name, size in spec.vectors.items()
    }
    if not quantized:
        return {"vectors_config": vectors}
    int8 = models.ScalarQuantizationConfig(
        type=models.ScalarType.INT8, quantile=QUANTILE, always_ram=True
    )
    quantization = models.ScalarQuantization(scalar=int8)
    return {"vectors_config": vectors, "quantization_config": quantization}


def collection_info(found: models.CollectionInfo) -> CollectionInfo:
    """What the server says of a collection."""
    params = found.config.params.vectors
    named = params if isinstance(params, dict) else {"": params} if params else {}
    vectors = {
        name: VectorInfo(one.size, one.distance.value, one.multivector_config is not None)
        for name, one in named.items()
    }
    metadata = found.config.metadata or {}
    schema = found.payload_schema or {}
    return CollectionInfo(
        vectors, {field: one.data_type.value for field, one in schema.items()}, metadata
    )


def groups(items: Sequence[T], size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """The items, as many at a time as go into one request."""
    return chunks_by_bytes(items, size_of, max_bytes=REQUEST_BYTES, max_items=REQUEST_POINTS)


def point_bytes(point: tuple[str, dict[str, list[float]], dict[str, Any]]) -> int:
    """Size of a point (id, vectors, payload) in a request, about."""
    _, vectors, payload = point
    return FLOAT_BYTES * sum(map(len, vectors.values())) + json_bytes(payload)
