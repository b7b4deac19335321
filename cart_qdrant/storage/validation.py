"""Checks vectors before they are written or searched for, and brings them to unit length.

Nothing of a batch is written unless all of it is right. Unit vectors are made here, in float64: the
engine leaves vectors of a squared length under 1e-7 as they are, and overflows on very long ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cart_qdrant.arrays.point_ids import as_id
from cart_qdrant.arrays.vectors import unit_of_any_length
from cart_qdrant.errors import MismatchError, VectorError
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.payloads import clean_payload
from cart_qdrant.storage.protocol import CollectionSpec

if TYPE_CHECKING:
    from qdrant_client import models

QUANTILE = 0.99
"""Share of a vector's values within the range of int8; those outside are cut to its ends
(docs/experiments.md)."""
OVERSAMPLING = 2.0
"""Candidates that int8 finds for each point that is wanted; exact scores choose among them."""


def wire_names(names: Sequence[str]) -> list[str] | bool:
    """Names of vectors to return, as Qdrant takes them.

    The vector without a name cannot be asked for by name: all are returned then.
    """
    return True if "" in names else list(names)


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
    filled_N = x_ND.any(axis=1)
    if not filled_N.all():
        bad = ids[int(np.argmin(filled_N))]
        raise VectorError(
            f"Vector {name!r} of {bad} is zero and has no direction.",
            "Leave this item out, or embed it again.",
        )
    rows_out: list[list[float]] = unit_of_any_length(x_ND).tolist()
    return rows_out


def prepare_points(
    points: Sequence[models.PointStruct], dims: Mapping[str, int]
) -> list[tuple[str, dict[str, list[float]], dict[str, Any]]]:
    """Check a whole batch, and give (id, unit vectors by name, payload) of each point.

    Raises:
        VectorError: A vector is refused by `check_vectors`, or is not given by name.
        StoreError: An id is neither a UUID nor a number, or a payload has no JSON form.
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
    """Check the query vectors of a request and of its prefetches; nothing is changed.

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
    for prefetch in qdrant.as_list(getattr(request, "prefetch", None)):
        check_query(prefetch, dims)


def check_spec(location: str, have: Mapping[str, int], spec: CollectionSpec) -> list[str]:
    """Refuse a collection that was made for other vectors than those of a spec.

    Returns:
        The first of the spec's slots, if the collection lacks it.

    Raises:
        MismatchError: Names or widths differ.
    """
    slots = {name: size for name, size in have.items() if name in spec.slots}
    rest = {name: size for name, size in have.items() if name not in slots}
    check_same_vectors(location, rest, spec.vectors)
    check_same_vectors(location, slots, {name: spec.slots[name] for name in slots})
    return [name for name in list(spec.slots)[:1] if name not in slots]


def check_same_vectors(location: str, have: Mapping[str, int], want: Mapping[str, int]) -> None:
    """Refuse a collection that was made for other vectors.

    Raises:
        MismatchError: Names or widths differ.
    """
    if dict(have) != dict(want):
        raise MismatchError(
            f"The collection at {location} has vectors {dict(have)}; asked for {dict(want)}.",
            "Use the embedder it was made with, or another collection.",
        )


def select_vectors(vector: Any, names: Sequence[str]) -> dict[str, list[float]] | None:
    """The named vectors that a point has, as lists; None when none were asked for."""
    if not names:
        return None
    found = vector if isinstance(vector, Mapping) else {} if vector is None else {"": vector}
    return {name: list(found[name]) for name in names if name in found}
