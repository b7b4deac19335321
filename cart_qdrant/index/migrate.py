"""The points of an index to another store: embedded to a server, and back.

Points are copied as they are, page by page; a killed run goes on, and one that is made again copies
what has changed. The manifest flips last: until then the index answers from where it was.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from qdrant_client import models

from cart_qdrant.errors import MismatchError, StoreError, UsageError
from cart_qdrant.index.index import Index
from cart_qdrant.index.ownership import check_owner, set_owner
from cart_qdrant.index.points import vector_of
from cart_qdrant.progress import Reporter, Silent
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.factory import open_store
from cart_qdrant.storage.protocol import CAPTION, CAPTION_TEXTS, MEDIA, Store
from cart_qdrant.storage.store_info import StoreInfo

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

PAGE = 500
"""Points copied together."""
SAMPLE = 200
"""Points compared one by one at the end."""
CLOSE = 1e-6
"""How far a component of a copied unit vector may be off: it is normalised again."""


@dataclass(slots=True)
class MigrateReport:
    """What a migration did; `to_json` is the `--json` contract.

    Attributes:
        source: Where the points were.
        target: Where they are.
        points: All of them.
        copied: Those that this run copied.
        removed: Points of the target that the source no longer had.
        compared: Points compared one by one.
    """

    source: str
    target: str
    points: int = 0
    copied: int = 0
    removed: int = 0
    compared: int = 0
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """One object."""
        return {**asdict(self), "seconds": round(self.seconds, 3)}


def migrate(
    index: Index,
    place: StoreInfo,
    *,
    api_key: str | None = None,
    client: QdrantClient | None = None,
    reporter: Reporter | None = None,
) -> MigrateReport:
    """Copy the points to another store, compare, and flip to it. The lock is held.

    The points stay where they were, too: remove them there by hand, once all readers have moved.

    Args:
        place: The other store.
        api_key: Key of its server.
        client: Client of your own to reach it by.

    Raises:
        UsageError: It is where the points are already, or the collection is filled by others.
        MismatchError: There are points of another index, or their number differs.
        StoreError: A store failed, or a copied point differs; run it again to go on.
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
        report.points = source.count()
        reporter.phase("points", report.points)
        report.copied = copy_points(source, target, reporter)
        if target.count() != report.points:
            report.removed = _remove_extra(source, target)
        target.flush()
        reporter.phase("comparing", None)
        report.compared = compare_points(source, target, report.points)
    except BaseException:
        target.close()
        raise
    index.store = target
    index.put(replace(index.manifest, store=place))
    source.close()
    report.seconds = time.perf_counter() - begin
    return report


def _prepare(index: Index, target: Store, place: StoreInfo) -> None:
    """Claim the collection, and make it with its indexes, unless an earlier run has."""
    key, manifest = index.key, index.manifest
    shared = place.kind != "edge"  # the folder's own store is nobody else's
    if shared and target.exists():
        owner = check_owner(target, key, manifest.id)
        if owner is None and (count := target.count()):
            raise MismatchError(
                f"The collection at {target.location} has {count} points that this index "
                "did not bring there.",
                "Move to another collection: --to-collection NAME.",
            )
    index.make_collection(target)
    if shared:
        set_owner(target, key, manifest.id, manifest.revision)
    copy_indexes(index.store, target)


def copy_indexes(source: Store, target: Store) -> None:
    """Make the payload indexes that one store has and another lacks."""
    for field in sorted(source.info().indexed - target.info().indexed - {CAPTION_TEXTS}):
        target.create_keyword_index(field)


def copy_points(source: Store, target: Store, reporter: Reporter) -> int:
    """Copy the points that the target lacks, or has otherwise: of a killed run, the rest.

    Returns:
        How many were copied.
    """
    copied = 0
    empty = not target.count()
    records = source.scroll(with_vectors=[MEDIA, CAPTION], batch=PAGE)
    while page := list(islice(records, PAGE)):
        there: dict[str, qdrant.AnyRecord] = {}
        if not empty:
            ids = [str(record.id) for record in page]
            found = target.retrieve(ids, with_vectors=[MEDIA, CAPTION])
            there = {str(record.id): record for record in found}
        missing = [one for one in page if not _same(one, there.get(str(one.id)))]
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
    """Remove what the source has lost since an earlier run copied it."""
    here = {str(record.id) for record in source.scroll(with_payload=False)}
    extra = [i for record in target.scroll(with_payload=False) if (i := str(record.id)) not in here]
    for begin in range(0, len(extra), PAGE):
        target.delete(extra[begin : begin + PAGE])
    return len(extra)


def compare_points(source: Store, target: Store, count: int) -> int:
    """Compare number, and payloads and vectors of a sample.

    Returns:
        How many were compared one by one.

    Raises:
        MismatchError: The number differs.
        StoreError: A point differs.
    """
    found = target.count()
    if found != count:
        raise MismatchError(
            f"{target.location} has {found} points, but {source.location} has {count}.",
            "Let nobody write to it, and run it again.",
        )
    for record in _sample(source.scroll(with_payload=False), count):
        ids = [str(record.id)]
        one = source.retrieve(ids, with_vectors=[MEDIA, CAPTION])
        other = target.retrieve(ids, with_vectors=[MEDIA, CAPTION])
        if not other or not _same(one[0], other[0]):
            raise StoreError(
                f"The point {ids[0]} at {target.location} is not that at {source.location}.",
                "Let nobody write to it, and run it again.",
            )
    return min(SAMPLE, count)


def _sample(records: Iterable[qdrant.AnyRecord], count: int) -> Sequence[qdrant.AnyRecord]:
    chosen = set(random.Random(0).sample(range(count), min(SAMPLE, count)))
    return [record for n, record in enumerate(records) if n in chosen]


def _same(one: qdrant.AnyRecord, other: qdrant.AnyRecord | None) -> bool:
    """Whether payloads are equal and vectors as good as equal."""
    if other is None or one.payload != other.payload:
        return False
    for name in (MEDIA, CAPTION):
        a, b = vector_of(one, name), vector_of(other, name)
        if (a is None) != (b is None):
            return False
        if a is not None and b is not None and not np.allclose(a, b, atol=CLOSE, rtol=0):
            return False
    return True
