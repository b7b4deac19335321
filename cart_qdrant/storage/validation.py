"""What both stores share: checks made before anything is written, and small mappings.

Vectors are normalised here, in float64: the engine leaves vectors of a squared length under 1e-7
as they are, and overflows on very long ones.
"""

from __future__ import annotations

import json
import math
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from cart_qdrant.errors import MismatchError, StoreError, VectorError
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.protocol import CollectionSpec

if TYPE_CHECKING:
    from qdrant_client import models

T = TypeVar("T")
QUANTILE = 0.99
"""Share of a vector's values that int8 tells apart; the rest is cut (docs/experiments.md)."""
OVERSAMPLING = 2.0
"""Points found by int8 for each one that is wanted; the vectors themselves choose among them."""
DEFAULT_LIMIT = 10  # what Qdrant uses when a request names none
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_INT64 = range(-(2**63), 2**63)
_DIGITS = len(str(2**64))


def as_id(value: object) -> str:
    """The canonical form of a point id, as text. Ours are UUIDs; others use whole numbers too.

    Raises:
        StoreError: It is neither.
    """
    text = str(value)
    if _UUID.fullmatch(text):
        return text
    # A UUID without hyphens may be all digits, too.
    if text.isascii() and text.isdigit() and len(text) <= _DIGITS and int(text) < 2**64:
        return str(int(text))
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise StoreError(
            f"Point id {value!r} is not a UUID, nor a whole number of 64 bits.",
            "Use Segment.id, or a UUID of your own.",
        ) from None


def wire_id(text: str) -> models.ExtendedPointId:
    """A canonical id as Qdrant takes it."""
    return int(text) if text.isdigit() else text


def wire_ids(ids: Iterable[str]) -> list[models.ExtendedPointId]:
    """Canonical ids as Qdrant takes them."""
    return [wire_id(text) for text in ids]


def wire_names(names: Sequence[str]) -> list[str] | bool:
    """Names of vectors to return as Qdrant takes them: the one without a name comes with all."""
    return True if "" in names else list(names)


def is_plain_key(key: str) -> bool:
    """Whether a payload key is a JSON path without quotes."""
    return _PLAIN_KEY.fullmatch(key) is not None


def quote_key(key: str) -> str:
    """A top-level payload key as a JSON path: quoted unless it is plain."""
    if '"' in key or not key:
        raise StoreError(f"Payload key {key!r} cannot be addressed.", "Use a key without quotes.")
    return key if is_plain_key(key) else f'"{key}"'


def json_path(dotted: str) -> str:
    """A dotted path as Qdrant takes it: parts with unusual characters are quoted."""
    return ".".join(quote_key(part) for part in dotted.split("."))


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Consecutive slices of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def chunks_by_bytes(
    items: Iterable[T], size_of: Callable[[T], int], *, max_bytes: int, max_items: int
) -> Iterator[list[T]]:
    """Consecutive groups under both limits; an item larger than `max_bytes` goes alone."""
    group: list[T] = []
    total = 0
    for item in items:
        size = size_of(item)
        if group and (total + size > max_bytes or len(group) >= max_items):
            yield group
            group, total = [], 0
        group.append(item)
        total += size
    if group:
        yield group


def json_bytes(payload: Mapping[str, Any] | None) -> int:
    """Size of a payload as JSON."""
    return len(json.dumps(payload)) if payload else 0


def clean_payload(value: Any, where: str = "payload") -> Any:
    """A copy of a payload made of plain JSON types only.

    Raises:
        StoreError: Something in it has no JSON form, or none that Qdrant keeps unchanged.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _clean_text(value, where)
    if isinstance(value, int) and value in _INT64:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, Mapping):
        return {_clean_key(k, where): clean_payload(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [clean_payload(v, where) for v in value]
    if isinstance(value, np.generic):
        return clean_payload(value.item(), where)
    raise StoreError(
        f"{where} holds {value!r} ({type(value).__name__}), which cannot be stored.",
        "Use strings, finite numbers of at most 64 bits, booleans, null, lists and objects.",
    )


def _clean_key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise StoreError(f"{where} has the key {key!r}.", "Keys must be strings.")
    return _clean_text(key, where)


def _clean_text(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise StoreError(
            f"{where} holds {text!r}, which is not valid Unicode.",
            "Rename the file, or escape the text before storing it.",
        ) from None
    return str(text)


def check_vectors(
    name: str, rows: Sequence[Sequence[float]], dims: Mapping[str, int], ids: Sequence[str]
) -> list[list[float]]:
    """Check and normalise the vectors of one name.

    Args:
        name: Name of the vector.
        rows: (N, D) vectors.
        dims: Width of each vector of the collection.
        ids: (N,) names of the rows in messages.

    Returns:
        (N, D) unit vectors, rounded to float32.

    Raises:
        VectorError: Unknown name, wrong width, zero or non-finite vector; says which one.
    """
    if name not in dims:
        raise VectorError(
            f"Vector {name!r} is not in the collection, which has {sorted(dims)}.",
            "Use one of its vectors, or create the collection again with this one.",
        )
    for i, row in zip(ids, rows, strict=True):
        if not isinstance(row, list | tuple | np.ndarray) or len(row) != dims[name]:
            got = len(row) if hasattr(row, "__len__") else type(row).__name__
            raise VectorError(
                f"Vector {name!r} of {i} has width {got}; the collection has {dims[name]}.",
                "Use the embedder that the collection was made with.",
            )
    try:
        x_ND = np.asarray(rows, dtype=np.float64).reshape(len(rows), dims[name])
    except (TypeError, ValueError) as error:
        raise VectorError(f"Vector {name!r} is not made of numbers: {error}.") from error
    finite_N = np.isfinite(x_ND).all(axis=1)
    if not finite_N.all():
        bad = ids[int(np.argmin(finite_N))]
        raise VectorError(
            f"Vector {name!r} of {bad} holds NaN or infinity.",
            "Leave this item out, or embed it again.",
        )
    # Scaled first, so that squares neither overflow nor vanish.
    peak_N1 = np.abs(x_ND).max(axis=1, keepdims=True, initial=0.0)
    if not peak_N1.all():
        bad = ids[int(np.argmin(peak_N1[:, 0]))]
        raise VectorError(
            f"Vector {name!r} of {bad} is zero and has no direction.",
            "Leave this item out, or embed it again.",
        )
    x_ND = x_ND / peak_N1
    unit_ND = x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)
    rows_out: list[list[float]] = unit_ND.astype(np.float32).tolist()
    return rows_out


def prepare_points(
    points: Sequence[models.PointStruct], dims: Mapping[str, int]
) -> list[tuple[str, dict[str, list[float]], dict[str, Any]]]:
    """Check a whole batch, and give (id, unit vectors, payload) of each point.

    Raises:
        VectorError: See `check_vectors`; also when vectors are not given by name.
        StoreError: An id is not a UUID, or a payload has no JSON form.
    """
    ids = [as_id(point.id) for point in points]
    by_name: dict[str, list[int]] = {}
    for n, point in enumerate(points):
        if not isinstance(point.vector, Mapping):
            raise VectorError(
                f"The vector of {ids[n]} has no name; the collection has {sorted(dims)}.",
                "Give vectors as {name: values}.",
            )
        for name in point.vector:
            by_name.setdefault(name, []).append(n)
    vectors: list[dict[str, list[float]]] = [{} for _ in points]
    for name, members in by_name.items():
        rows: list[Any] = [points[n].vector[name] for n in members]  # type: ignore[index,call-overload]
        units = check_vectors(name, rows, dims, [ids[n] for n in members])
        for n, unit in zip(members, units, strict=True):
            vectors[n][name] = unit
    payloads = [clean_payload(point.payload or {}) for point in points]
    return list(zip(ids, vectors, payloads, strict=True))


def check_names(names: Sequence[str], dims: Mapping[str, int]) -> list[str]:
    """Names of vectors to return.

    Raises:
        VectorError: The collection lacks one of them.
    """
    for name in names:
        if name not in dims:
            raise VectorError(
                f"Vector {name!r} is not in the collection, which has {sorted(dims)}.",
                "Ask for one of its vectors.",
            )
    return list(names)


def check_query(request: qdrant.AnyQuery | models.Prefetch, dims: Mapping[str, int]) -> None:
    """Check the query vectors of a request and of its prefetches.

    Raises:
        VectorError: Unknown name, wrong width, zero or non-finite vector.
    """
    query = getattr(request.query, "nearest", request.query)
    using = request.using or ""
    if isinstance(query, np.ndarray):
        if len(query) == dims.get(using) and 0 < float(query @ query) < np.inf:
            return
        query = query.tolist()
    if isinstance(query, list):
        check_vectors(using, [query], dims, ["the query"])
    for prefetch in as_list(getattr(request, "prefetch", None)):
        check_query(prefetch, dims)


def ids_alone(answers: Sequence[Sequence[qdrant.AnyHit]]) -> list[qdrant.FoundIds]:
    """Answers of searches without their payloads."""
    return [
        qdrant.FoundIds(ids=[hit.id for hit in hits], scores=[hit.score for hit in hits])
        for hits in answers
    ]


def as_list(value: T | list[T] | None) -> list[T]:
    """Qdrant accepts one item where it accepts a list of them."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def check_same_vectors(location: str, have: Mapping[str, int], want: Mapping[str, int]) -> None:
    """Refuse a collection made for other vectors.

    Raises:
        MismatchError: Names or widths differ.
    """
    if dict(have) != dict(want):
        raise MismatchError(
            f"The collection at {location} has vectors {dict(have)}; asked for {dict(want)}.",
            "Use the embedder it was made with, or another collection.",
        )


def merge_specs(have: CollectionSpec, want: CollectionSpec) -> CollectionSpec:
    """`have` with the indexes of `want` added."""
    return CollectionSpec(
        vectors=have.vectors,
        keywords=tuple(dict.fromkeys((*have.keywords, *want.keywords))),
        texts=tuple(dict.fromkeys((*have.texts, *want.texts))),
    )


def select_vectors(vector: Any, names: Sequence[str]) -> dict[str, list[float]] | None:
    """Those of the named vectors that a point has; None when none were asked for."""
    if not names:
        return None
    found = vector if isinstance(vector, Mapping) else {} if vector is None else {"": vector}
    return {name: list(found[name]) for name in names if name in found}
