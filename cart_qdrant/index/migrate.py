"""Moves the points of an index to another store: from the embedded store to a server, and back.

Points are copied unchanged, page by page. After a kill, the same command continues; a second run
copies what has changed since. The manifest is replaced last: until then, the old store is searched.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np
from qdrant_client import models

from cart_qdrant.errors import MismatchError, StoreError, UsageError
from cart_qdrant.index.consent import remember_key
from cart_qdrant.index.index import Index
from cart_qdrant.index.ownership import Owner, check_owner, set_owner
from cart_qdrant.index.points import vector_of
from cart_qdrant.progress import Reporter, Silent
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.factory import open_store
from cart_qdrant.storage.protocol import MEDIA, RangeKind, Store
from cart_qdrant.storage.store_info import StoreInfo

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

PAGE = 500
"""Points copied together."""
SAMPLE = 200
"""Points that are compared one by one at the end."""
CLOSE = 1e-6
"""How far a component of a copied unit vector may differ: the store normalises it again."""


@dataclass(slots=True)
class MigrateReport:
    """What a migration did; `to_json` is the `--json` contract.

    Attributes:
        source: Location of the store that was left.
        target: Location of the store that is used now.
        points: Number of points.
        copied: Points that this run copied.
        removed: Points of the target that the source no longer had.
        compared: Points that were compared one by one.
    """

    source: str
    target: str
    points: int = 0
    copied: int = 0
    removed: int = 0
    compared: int = 0
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {**asdict(self), "seconds": round(self.seconds, 3)}


def migrate(
    index: Index,
    place: StoreInfo,
    *,
    api_key: str | None = None,
    client: QdrantClient | None = None,
    reporter: Reporter | None = None,
) -> MigrateReport:
    """Copy the points to another store, compare them, and use that store from then on.

    The points stay in the old store, too: remove them there by hand when all readers have moved.

    Args:
        index: Open index; its lock is held.
        place: The other store.
        api_key: Key of its server, which the caller names: `place` is never read from a folder.
        client: A client of the caller's by which the other store is reached.
        reporter: Is called with the progress.

    Raises:
        UsageError: The points are there already, or the collection is filled by others.
        MismatchError: The target holds points of another index, or the numbers of points differ.
        StoreError: A store failed, or a copied point differs; run it again to continue.
    """
    index.require_own()
    begin = time.perf_counter()
    reporter = reporter or Silent()
    source = index.store
    target = open_store(place, index.folder.store, api_key, client)
    try:
        if place == index.manifest.store or target.location == source.location:
            raise UsageError(f"The points are at {source.location} already.")
        report = MigrateReport(source.location, target.location)
        _prepare(index, target, place)
        remember_key(api_key, place.url)
        report.points = source.count()
        reporter.phase("points", report.points)
        vectors = [MEDIA, index.caption_vector]
        report.copied = copy_points(source, target, vectors, reporter)
        if target.count() != report.points:
            report.removed = _remove_extra(source, target)
        target.flush()
        reporter.phase("comparing", None)
        report.compared = compare_points(source, target, vectors, report.points)
    except BaseException:
        target.close()
        raise
    previous = index.manifest
    index.own(target)
    index.put(replace(previous, store=place))
    if previous.store.kind != "edge":
        _say_moved(source, index)
    source.close()
    report.seconds = time.perf_counter() - begin
    return report


def _prepare(index: Index, target: Store, place: StoreInfo) -> None:
    """Make the collection with its payload indexes and record this index as its owner."""
    key, manifest = index.key, index.manifest
    on_server = place.kind != "edge"  # an embedded store belongs to its folder
    if on_server and target.exists():
        owner = check_owner(target, key, manifest.id)
        if owner is not None and not (owner.moved or owner.accepts(manifest.revision)):
            raise MismatchError(
                f"The collection at {target.location} was last written with the revision "
                f"{owner.revision!r} by {owner.place}, and {index.folder.root} has "
                f"{manifest.revision!r}: its points would be overwritten.",
                "Move to another collection: --to-collection NAME; or delete that collection.",
            )
        if owner is None and (count := target.count()):
            raise MismatchError(
                f"The collection at {target.location} has {count} points that this index "
                "did not copy there.",
                "Move to another collection: --to-collection NAME.",
            )
    index.make_collection(target)
    if on_server:
        set_owner(target, key, Owner(manifest.id, manifest.revision, moved=True))
    copy_indexes(index.store, target)


def _say_moved(source: Store, index: Index) -> None:
    """Record in the collection that was left that the points are elsewhere: this index may be moved
    back there, and copies of its folder may still read it."""
    owner = check_owner(source, index.key, index.manifest.id)
    if owner is not None:
        set_owner(source, index.key, replace(owner, moved=True))


def copy_indexes(source: Store, target: Store) -> None:
    """Make the payload indexes that the source has and the target lacks."""
    there = target.info().indexed
    for field, kind in sorted(source.info().indexes.items()):
        if field in there:
            continue
        if kind == "keyword":
            target.create_keyword_index(field)
        elif kind in get_args(RangeKind):
            target.create_range_index(field, cast("RangeKind", kind))


def copy_points(source: Store, target: Store, vectors: Sequence[str], reporter: Reporter) -> int:
    """Copy the points, with some of their vectors, that the target lacks or that differ there.

    Returns:
        How many points were copied.
    """
    copied = 0
    empty = not target.count()
    records = source.scroll(with_vectors=vectors, batch=PAGE)
    while page := list(islice(records, PAGE)):
        there: dict[str, qdrant.AnyRecord] = {}
        if not empty:
            ids = [str(record.id) for record in page]
            found = target.retrieve(ids, with_vectors=vectors)
            there = {str(record.id): record for record in found}
        missing = [one for one in page if not _same(one, there.get(str(one.id)), vectors)]
        if missing:
            target.upsert([_point(record) for record in missing])
            copied += len(missing)
        reporter.advance(len(page))
    return copied


def _point(record: qdrant.AnyRecord) -> models.PointStruct:
    assert isinstance(record.vector, dict)
    return models.PointStruct(
        id=str(record.id), vector=dict(record.vector), payload=record.payload or {}
    )


def _remove_extra(source: Store, target: Store) -> int:
    """Remove points that were deleted from the source after an earlier run had copied them.

    Returns:
        How many points were removed.
    """
    here = {str(record.id) for record in source.scroll(with_payload=False)}
    extra = [i for record in target.scroll(with_payload=False) if (i := str(record.id)) not in here]
    for begin in range(0, len(extra), PAGE):
        target.delete(extra[begin : begin + PAGE])
    return len(extra)


def compare_points(source: Store, target: Store, vectors: Sequence[str], count: int) -> int:
    """Compare the number of points, and payloads and some vectors of a random sample.

    Returns:
        How many points were compared one by one.

    Raises:
        MismatchError: The numbers of points differ.
        StoreError: A point differs.
    """
    found = target.count()
    if found != count:
        raise MismatchError(
            f"{target.location} has {found} points, but {source.location} has {count}.",
            "Stop whatever else writes to it, and run this again.",
        )
    for record in _sample(source.scroll(with_payload=False), count):
        ids = [str(record.id)]
        one = source.retrieve(ids, with_vectors=vectors)
        other = target.retrieve(ids, with_vectors=vectors)
        if not other or not _same(one[0], other[0], vectors):
            raise StoreError(
                f"The point {ids[0]} at {target.location} differs from that at {source.location}.",
                "Stop whatever else writes to it, and run this again.",
            )
    return min(SAMPLE, count)


def _sample(records: Iterable[qdrant.AnyRecord], count: int) -> Sequence[qdrant.AnyRecord]:
    chosen = set(random.Random(0).sample(range(count), min(SAMPLE, count)))
    return [record for n, record in enumerate(records) if n in chosen]


def _same(one: qdrant.AnyRecord, other: qdrant.AnyRecord | None, vectors: Sequence[str]) -> bool:
    """Whether payloads are equal, and some vectors are equal up to rounding."""
    if other is None or one.payload != other.payload:
        return False
    for name in vectors:
        a, b = vector_of(one, name), vector_of(other, name)
        if (a is None) != (b is None):
            return False
        if a is not None and b is not None and not np.allclose(a, b, atol=CLOSE, rtol=0):
            return False
    return True
