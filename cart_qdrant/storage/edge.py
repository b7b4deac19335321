"""`EdgeStore`: a collection in a folder, through the Qdrant engine in this process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import qdrant_edge as edge

from cart_qdrant.arrays.point_ids import as_id, wire_id, wire_ids
from cart_qdrant.storage import edge_requests
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.batches import chunks, in_pages
from cart_qdrant.storage.edge_engine import EdgeEngine, EdgeSettings, disk_free
from cart_qdrant.storage.edge_schema import ON_DISK, EdgeSchema, read_config
from cart_qdrant.storage.payloads import clean_payload, json_bytes, quote_key
from cart_qdrant.storage.protocol import (
    CollectionInfo,
    CollectionSpec,
    RangeKind,
    VectorInfo,
)
from cart_qdrant.storage.search_params import graph_params
from cart_qdrant.storage.validation import (
    check_names,
    check_query,
    check_spec,
    check_vectors,
    prepare_points,
    select_vectors,
    wire_names,
)

if TYPE_CHECKING:
    from qdrant_client import models

log = logging.getLogger(__name__)


class EdgeStore:
    """The `Store` of a folder. Nothing is opened before the first use.

    A store belongs to one process: the engine hangs in a forked child, so there every method
    raises `StoreError`. Points unknown to `set_payload` and `update_vectors` are ignored.

    Args:
        path: Folder of the engine's files; unfinished files are in `work` beside it.
        settings: How it trades speed, safety and recall; None for the defaults.
        sidecar: Whether to keep a file with the `CollectionSpec` beside the folder; without it,
            the engine is asked for the spec at each opening.
        free_bytes: Gives the free space of a folder's disk.
    """

    def __init__(
        self,
        path: Path,
        *,
        settings: EdgeSettings | None = None,
        sidecar: bool = True,
        free_bytes: Callable[[Path], int] = disk_free,
    ) -> None:
        self._settings = settings or EdgeSettings()
        self._engine = EdgeEngine(Path(path), self._settings, free_bytes)
        self._schema = EdgeSchema(self._engine, sidecar=sidecar)

    @property
    def location(self) -> str:
        """The folder, for messages."""
        return str(self._engine.path)

    def exists(self) -> bool:
        """Whether the folder holds a collection."""
        return self._engine.exists()

    # Schema

    def create(self, spec: CollectionSpec) -> None:
        """Create the collection with its payload indexes; in an existing one, make those indexes,
        and the first of the slots, where it lacks them.

        Raises:
            MismatchError: It exists with other vectors.
        """
        if self.exists():
            for name in check_spec(self.location, self._widths(), spec):
                self.add_vector(name, spec.slots[name])
        else:
            first = dict(list(spec.slots.items())[:1])
            self._engine.check_space(0)
            with self._engine.mapped_errors():
                self._schema.make({**spec.vectors, **first})
        self._add_indexes(spec.keywords, spec.texts)

    def create_keyword_index(self, field: str) -> None:
        """Index one more payload field for exact matches."""
        self._add_indexes(keywords=(field,))

    def create_text_index(self, field: str) -> None:
        """Index the words of one more payload field, to rank by them."""
        self._add_indexes(texts=(field,))

    def create_range_index(self, field: str, kind: RangeKind) -> None:
        """Index the numbers or the dates of one more payload field, unless it has an index."""
        if field in self.info().indexed:
            return
        make = edge.FloatIndexParams if kind == "float" else edge.DatetimeIndexParams
        with self._engine.mapped_errors():
            operation = edge.UpdateOperation.create_field_index(field, make(memory=ON_DISK))
        self._engine.update(operation, 0)
        self._engine.flush()

    def _add_indexes(self, keywords: Sequence[str] = (), texts: Sequence[str] = ()) -> None:
        have = self._schema.read()
        merged = replace(
            have,
            keywords=tuple(dict.fromkeys((*have.keywords, *keywords))),
            texts=tuple(dict.fromkeys((*have.texts, *texts))),
        )
        # A run that was killed may have made some of them, and not yet written the spec.
        indexed = self.info().indexed
        keyword = edge.KeywordIndexParams(memory=ON_DISK)
        words = edge.TextIndexParams(scoring=True, lowercase=True, memory=ON_DISK)
        missing: list[tuple[str, Any]] = [(one, keyword) for one in keywords if one not in indexed]
        missing += [(one, words) for one in texts if one not in indexed]
        if missing:
            self._engine.check_space(0)
        for field, params in missing:
            with self._engine.mapped_errors():
                make = edge.UpdateOperation.create_field_index(field, params)
            self._engine.update(make, 0)
        if missing or merged != have:
            self._engine.flush()
            with self._engine.mapped_errors():
                self._schema.write(merged)

    def drop_index(self, field: str) -> None:
        """Remove the index of a payload field; nothing happens where there is none."""
        if field not in self.info().indexed:
            return
        self._engine.update(edge.UpdateOperation.delete_field_index(field), 0)
        self._engine.flush()
        spec = self._schema.read()
        rest = replace(
            spec,
            keywords=tuple(one for one in spec.keywords if one != field),
            texts=tuple(one for one in spec.texts if one != field),
        )
        with self._engine.mapped_errors():
            self._schema.write(rest)

    def info(self) -> CollectionInfo:
        """Vectors and indexed payload fields, asked of the engine each time."""
        with self._engine.use() as shard:
            schema = shard.info().payload_schema
        indexes = {
            field: str(one.data_type).rsplit(".", 1)[-1].lower() for field, one in schema.items()
        }
        vectors = {
            name: VectorInfo(one["size"], one["distance"], bool(one.get("multivector_config")))
            for name, one in read_config(self._engine.path).items()
        }
        return CollectionInfo(vectors, indexes)

    def add_vector(self, name: str, size: int) -> None:
        """Let points have one more named vector, compared by cosine."""
        spec = self._schema.read()
        if name not in self.info().vectors:  # a killed run may have made it
            self._engine.check_space(0)
            make = edge.UpdateOperation.create_dense_vector(name, size, edge.Distance.Cosine)
            self._engine.update(make, 0)
            self._engine.flush()
        with self._engine.mapped_errors():
            self._schema.write(replace(spec, vectors={**spec.vectors, name: size}))

    def clear_vector(self, name: str) -> None:
        """Remove one named vector of all points, and give its room back; `add_vector` makes it
        again. Nothing happens where the collection lacks it."""
        if name in self.info().vectors:
            self._engine.update(edge.UpdateOperation.delete_vector_name(name), 0)
            self._engine.flush()
        spec = self._schema.read()
        if name in spec.vectors:
            rest = {one: size for one, size in spec.vectors.items() if one != name}
            with self._engine.mapped_errors():
                self._schema.write(replace(spec, vectors=rest))

    def set_metadata(self, key: str, value: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Keep nothing: a folder belongs to one index alone."""
        self._engine.check_usable()

    # Writing

    def guard_writes(self, check: Callable[[], None]) -> None:
        """Check nothing: a folder belongs to one index alone."""

    def upsert(self, points: Sequence[models.PointStruct]) -> None:
        """Write points whole (vectors and payload), replacing those with the same id."""
        ready = prepare_points(points, self._widths())
        size = sum(4 * sum(map(len, v.values())) + json_bytes(p) for _, v, p in ready)
        self._engine.check_space(size)
        for part in chunks(ready, self._settings.batch_points):
            batch = [edge.Point(wire_id(i), dict(v), p) for i, v, p in part]
            self._update(edge.UpdateOperation.upsert_points(batch), len(batch))

    def delete(self, ids: Sequence[str]) -> None:
        """Remove points by id; unknown ids are ignored."""
        for part in chunks([as_id(i) for i in ids], self._settings.batch_points):
            self._update(edge.UpdateOperation.delete_points(wire_ids(part)), len(part))

    def set_payload(self, updates: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """Set top-level payload keys of each named point, keeping its other keys."""
        ready = [(as_id(i), clean_payload(payload)) for i, payload in updates]
        self._engine.check_space(sum(json_bytes(payload) for _, payload in ready))
        known = self._engine.known([i for i, _ in ready])
        for i, payload in ready:
            if i in known:
                self._update(edge.UpdateOperation.set_payload([wire_id(i)], payload), 1)

    def delete_payload_key(self, key: str) -> None:
        """Remove a top-level payload key from every point."""
        everything, keys = edge.Filter(), [quote_key(key)]
        self._update(edge.UpdateOperation.delete_payload_by_filter(everything, keys), 1)

    def update_vectors(self, name: str, updates: Sequence[tuple[str, Sequence[float]]]) -> None:
        """Replace one named vector of each named point."""
        ids = [as_id(i) for i, _ in updates]
        rows = check_vectors(name, [row for _, row in updates], self._widths(), ids)
        self._engine.check_space(sum(4 * len(row) for row in rows))
        known = self._engine.known(ids)
        pairs = [(i, row) for i, row in zip(ids, rows, strict=True) if i in known]
        for part in chunks(pairs, self._settings.batch_points):
            batch = [edge.PointVectors(wire_id(i), {name: row}) for i, row in part]
            self._update(edge.UpdateOperation.update_vectors(batch), len(batch))

    def delete_vectors(self, name: str, ids: Sequence[str]) -> None:
        """Remove one named vector of each named point."""
        check_names([name], self._widths())
        for part in chunks([as_id(i) for i in ids], self._settings.batch_points):
            deleted = edge.UpdateOperation.delete_vectors(wire_ids(part), [name])
            self._update(deleted, len(part))

    # Reading

    def retrieve(
        self, ids: Sequence[str], *, with_payload: bool = True, with_vectors: Sequence[str] = ()
    ) -> list[qdrant.Record]:
        """Points by id, in the order asked; unknown ids are left out."""
        names = check_names(with_vectors, self._widths())
        wanted = [as_id(i) for i in ids]
        wanted_names = wire_names(names) or False
        found: dict[str, qdrant.Record] = {}
        for part in chunks(wanted, self._settings.batch_points):
            with self._engine.use() as shard:
                rows = shard.retrieve(wire_ids(part), with_payload, wanted_names)
            found.update((str(row.id), _record(row, names)) for row in rows)
        return [found[i] for i in wanted if i in found]

    def scroll(
        self,
        filter: qdrant.AnyFilter | None = None,
        *,
        with_payload: bool | Sequence[str] = True,
        with_vectors: Sequence[str] = (),
        batch: int = 1000,
    ) -> Iterator[qdrant.Record]:
        """Every point that matches, in order of id, read in pages of `batch`."""
        return in_pages(
            lambda offset: self.page(
                filter, offset=offset, with_payload=with_payload, with_vectors=with_vectors,
                batch=batch,
            )
        )  # fmt: skip

    def page(
        self,
        filter: qdrant.AnyFilter | None = None,
        *,
        offset: str | None = None,
        with_payload: bool | Sequence[str] = True,
        with_vectors: Sequence[str] = (),
        batch: int = 1000,
    ) -> tuple[list[qdrant.Record], str | None]:
        """One page of `scroll`, and the id that the next page begins with; None at the end."""
        names = check_names(with_vectors, self._widths())
        payload = with_payload if isinstance(with_payload, bool) else list(with_payload)
        request = edge.ScrollRequest(
            None if offset is None else wire_id(offset), batch, edge_requests.edge_filter(filter),
            payload, wire_names(names) or False,
        )  # fmt: skip
        with self._engine.use() as shard:
            rows, after = shard.scroll(request)
        records = [_record(row, names) for row in rows]
        return records, None if after is None else str(after)

    def count(self, filter: qdrant.AnyFilter | None = None) -> int:
        """Exact number of points that match."""
        request = edge.CountRequest(True, edge_requests.edge_filter(filter))
        with self._engine.use() as shard:
            return shard.count(request)

    # Searching

    def query_batch(self, requests: Sequence[qdrant.AnyQuery]) -> list[list[qdrant.ScoredPoint]]:
        """Answers of several searches, each best first.

        A nearest-vector search without `params` is exact while few points match, and else runs
        on the graph with ACORN, because plain filtered graph search loses recall.
        """
        return [[_scored(hit) for hit in hits] for hits in self._answers(requests)]

    def query_ids(self, requests: Sequence[qdrant.AnyQuery]) -> list[qdrant.FoundIds]:
        """The answers of `query_batch`, ids and scores alone."""
        return [
            qdrant.FoundIds(ids=[hit.id for hit in hits], scores=[hit.score for hit in hits])
            for hits in self._answers(requests)
        ]

    def _answers(self, requests: Sequence[qdrant.AnyQuery]) -> list[list[edge.ScoredPoint]]:
        for request in requests:
            check_query(request, self._widths())
        native = [edge_requests.edge_query(request, self._params) for request in requests]
        with self._engine.use() as shard:
            return shard.query_batch(edge.QueryBatchRequest(native)) if native else []

    def _params(
        self, using: str, filter: qdrant.AnyFilter | None, limit: int
    ) -> qdrant.SearchParams:
        """Parameters of a nearest-vector search that was given none."""
        request = edge.CountRequest(False, edge_requests.edge_filter(filter))
        with self._engine.use() as shard:
            matches = shard.count(request)  # an estimate, in microseconds
        if matches * self._widths()[using] <= self._settings.exact_multiplications:
            return qdrant.SearchParams(exact=True)
        return graph_params(limit, filtered=filter is not None, ef=self._settings.hnsw_ef)

    # Graph, disk, end

    def build_graph(self) -> None:
        """Build the HNSW graph of each vector; it takes minutes, and every thread of the process
        waits meanwhile. Benchmarks of large collections call it; nothing else does yet."""
        files = (file for file in self._engine.path.rglob("*") if file.is_file())
        self._engine.check_space(sum(file.stat().st_blocks * 512 for file in files))
        log.info("Building the vector index of %s; this may take minutes.", self.location)
        with self._engine.use() as shard:
            shard.optimize()
        self.flush()

    def flush(self) -> None:
        """Return when all that was written survives a crash of the machine."""
        self._engine.flush()

    def forget(self) -> None:
        """Let go of the engine's lock in a forked child."""
        self._engine.forget()

    def close(self) -> None:
        """Flush and release the folder; may be called twice."""
        self._engine.close()

    def _widths(self) -> Mapping[str, int]:
        """Width of each named vector."""
        return self._schema.read().vectors

    def _update(self, operation: edge.UpdateOperation, points: int) -> None:
        self._engine.update(operation, points)


def _record(row: edge.Record, names: Sequence[str]) -> qdrant.Record:
    vector = select_vectors(row.vector, names) if names else None
    return qdrant.Record(id=str(row.id), payload=row.payload, vector=vector)


def _scored(hit: edge.ScoredPoint) -> qdrant.ScoredPoint:
    return qdrant.ScoredPoint(
        id=str(hit.id), score=hit.score, payload=hit.payload, vector=hit.vector
    )
