"""`EdgeStore`: a collection in a folder, through the Qdrant engine in this process.

The folder `PATH` is the engine's; `PATH.json` beside it holds the `CollectionSpec`. A collection
is made under a temporary name and renamed, so it is there whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import qdrant_edge as edge

from cart_qdrant.errors import CartError, ConfigError, StoreError
from cart_qdrant.storage import edge_requests
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage import validation as common
from cart_qdrant.storage.protocol import CollectionInfo, CollectionSpec, VectorInfo

if TYPE_CHECKING:
    from qdrant_client import models

log = logging.getLogger(__name__)
_ON_DISK = edge.Memory.Cold
"""Payload indexes and int8 vectors are read where they lie: loading them is most of what opening
takes."""
_DISK_COPIES = 4  # write-ahead log, segment, and both again while they are rewritten


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeSettings:
    """How the embedded store trades speed, safety and recall."""

    batch_points: int = 1000
    """Points handed to the engine at once."""
    flush_points: int = 5000
    """Points written between two flushes to disk."""
    reserve_bytes: int = 256 * 2**20
    """Free disk space to keep: a full disk kills the process inside the engine."""
    exact_multiplications: int = 10_000_000
    """Scan exactly while matching points times width stay under this (about 1 ms)."""
    hnsw_ef: int = 256
    """Least beam of the graph search that is used above it."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < (0 if name in ("reserve_bytes", "exact_multiplications") else 1):
                raise ConfigError(f"EdgeSettings.{name} is {value}.", "Give a positive number.")


def disk_free(folder: Path) -> int:
    """Bytes that this user may still write on the disk of `folder`."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


class EdgeStore:
    """See `Store`. Nothing is opened before the first use.

    A store belongs to one process: the engine hangs in a forked child, so there every method
    raises `StoreError`. Points unknown to `set_payload` and `update_vectors` are ignored.

    Args:
        path: Folder of the engine's files; what is not finished is in `work` beside it.
        settings: See `EdgeSettings`.
        sidecar: Whether to keep the file beside the folder; without, what it holds is asked of the
            engine each time.
        free_bytes: Tells the free space of a folder's disk.
    """

    def __init__(
        self,
        path: Path,
        *,
        settings: EdgeSettings | None = None,
        sidecar: bool = True,
        free_bytes: Callable[[Path], int] = disk_free,
    ) -> None:
        self._path = Path(path)
        self._sidecar = self._path.with_name(f"{self._path.name}.json")
        self._drafts = self._path.with_name("work")
        self._settings = settings or EdgeSettings()
        self._keeps_sidecar = sidecar
        self._free_bytes = free_bytes
        self._lock = threading.Lock()
        self._shard: edge.EdgeShard | None = None
        self._spec: CollectionSpec | None = None
        self._pid = 0
        self._unflushed = 0
        self._written = False
        self._closed = False

    @property
    def location(self) -> str:
        """The folder."""
        return str(self._path)

    def exists(self) -> bool:
        """Whether the folder holds a collection."""
        self._check_usable()
        return (self._path / "edge_config.json").is_file()

    def create(self, spec: CollectionSpec) -> None:
        """Create the collection with its payload indexes; in an existing one, make those indexes
        that it lacks."""
        if self.exists():
            common.check_same_vectors(self.location, self._open_spec().vectors, spec.vectors)
        else:
            self._check_space(0)
            with self._mapped():
                self._make(spec)
        have = self._open_spec()
        merged = common.merge_specs(have, spec)
        with self._engine() as shard:
            there = shard.info().payload_schema.keys()  # a killed run may have made some of them
        keyword = edge.KeywordIndexParams(memory=_ON_DISK)
        words = edge.TextIndexParams(scoring=True, lowercase=True, memory=_ON_DISK)
        for fields, params in ((spec.keywords, keyword), (spec.texts, words)):
            for field in fields:
                if field not in there:
                    self._index(field, params)
        if merged != have or not there >= {*spec.keywords, *spec.texts}:
            self.flush()
            with self._mapped():
                self._write_spec(merged)

    def create_keyword_index(self, field: str) -> None:
        """See `Store.create_keyword_index`."""
        self.create(CollectionSpec(vectors=self._open_spec().vectors, keywords=(field,)))

    def create_text_index(self, field: str) -> None:
        """See `Store.create_text_index`."""
        self.create(CollectionSpec(vectors=self._open_spec().vectors, texts=(field,)))

    def drop_index(self, field: str) -> None:
        """See `Store.drop_index`."""
        if field not in self.info().indexed:
            return
        self._update(edge.UpdateOperation.delete_field_index(field), 0)
        self.flush()
        spec = self._open_spec()
        with self._mapped():
            self._write_spec(
                CollectionSpec(
                    vectors=spec.vectors,
                    keywords=tuple(one for one in spec.keywords if one != field),
                    texts=tuple(one for one in spec.texts if one != field),
                )
            )

    def info(self) -> CollectionInfo:
        """See `Store.info`."""
        with self._engine() as shard:
            indexed = frozenset(shard.info().payload_schema)
        config = json.loads((self._path / "edge_config.json").read_text())
        vectors = {
            name: VectorInfo(one["size"], one["distance"], bool(one.get("multivector_config")))
            for name, one in config["vectors"].items()
        }
        return CollectionInfo(vectors, indexed)

    def add_vector(self, name: str, size: int) -> None:
        """See `Store.add_vector`."""
        spec = self._open_spec()
        if name not in self.info().vectors:  # a killed run may have made it
            make = edge.UpdateOperation.create_dense_vector(name, size, edge.Distance.Cosine)
            self._update(make, 0)
            self.flush()
        with self._mapped():
            self._write_spec(
                CollectionSpec(
                    vectors={**spec.vectors, name: size}, keywords=spec.keywords, texts=spec.texts
                )
            )

    def set_metadata(self, key: str, value: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Nothing: the folder belongs to one index."""
        self._check_usable()

    def upsert(self, points: Sequence[models.PointStruct]) -> None:
        """See `Store.upsert`."""
        ready = common.prepare_points(points, self._open_spec().vectors)
        size = sum(4 * sum(map(len, v.values())) + common.json_bytes(p) for _, v, p in ready)
        self._check_space(size)
        for part in common.chunks(ready, self._settings.batch_points):
            batch = [edge.Point(common.wire_id(i), dict(v), p) for i, v, p in part]
            self._update(edge.UpdateOperation.upsert_points(batch), len(batch))

    def delete(self, ids: Sequence[str]) -> None:
        """See `Store.delete`."""
        for part in common.chunks([common.as_id(i) for i in ids], self._settings.batch_points):
            deleted = edge.UpdateOperation.delete_points(common.wire_ids(part))
            self._update(deleted, len(part))

    def set_payload(self, updates: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """See `Store.set_payload`."""
        ready = [(common.as_id(i), common.clean_payload(payload)) for i, payload in updates]
        self._check_space(sum(common.json_bytes(payload) for _, payload in ready))
        known = self._known([i for i, _ in ready])
        for i, payload in ready:
            if i in known:
                at = [common.wire_id(i)]
                self._update(edge.UpdateOperation.set_payload(at, payload), 1)

    def delete_payload_key(self, key: str) -> None:
        """See `Store.delete_payload_key`."""
        everything = edge.Filter()
        keys = [common.quote_key(key)]
        self._update(edge.UpdateOperation.delete_payload_by_filter(everything, keys), 1)

    def update_vectors(self, name: str, updates: Sequence[tuple[str, Sequence[float]]]) -> None:
        """See `Store.update_vectors`."""
        ids = [common.as_id(i) for i, _ in updates]
        rows = common.check_vectors(name, [r for _, r in updates], self._open_spec().vectors, ids)
        self._check_space(sum(4 * len(row) for row in rows))
        known = self._known(ids)
        pairs = [(i, row) for i, row in zip(ids, rows, strict=True) if i in known]
        for part in common.chunks(pairs, self._settings.batch_points):
            batch = [edge.PointVectors(common.wire_id(i), {name: row}) for i, row in part]
            self._update(edge.UpdateOperation.update_vectors(batch), len(batch))

    def delete_vectors(self, name: str, ids: Sequence[str]) -> None:
        """See `Store.delete_vectors`."""
        common.check_names([name], self._open_spec().vectors)
        for part in common.chunks([common.as_id(i) for i in ids], self._settings.batch_points):
            deleted = edge.UpdateOperation.delete_vectors(common.wire_ids(part), [name])
            self._update(deleted, len(part))

    def retrieve(
        self, ids: Sequence[str], *, with_payload: bool = True, with_vectors: Sequence[str] = ()
    ) -> list[qdrant.Record]:
        """See `Store.retrieve`."""
        names = common.check_names(with_vectors, self._open_spec().vectors)
        wanted = [common.as_id(i) for i in ids]
        wanted_names = common.wire_names(names) or False
        found: dict[str, qdrant.Record] = {}
        for part in common.chunks(wanted, self._settings.batch_points):
            with self._engine() as shard:
                rows = shard.retrieve(common.wire_ids(part), with_payload, wanted_names)
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
        """See `Store.scroll`."""
        names = common.check_names(with_vectors, self._open_spec().vectors)
        payload = with_payload if isinstance(with_payload, bool) else list(with_payload)
        native, offset = edge_requests.edge_filter(filter), None
        while True:
            with self._engine() as shard:
                wanted = common.wire_names(names) or False
                request = edge.ScrollRequest(offset, batch, native, payload, wanted)
                rows, offset = shard.scroll(request)
            yield from (_record(row, names) for row in rows)
            if offset is None:
                return

    def query_batch(self, requests: Sequence[qdrant.AnyQuery]) -> list[list[qdrant.ScoredPoint]]:
        """See `Store.query_batch`.

        A nearest-vector search without `params` is exact while few points match, and else runs
        on the graph with ACORN, because plain filtered graph search loses recall.
        """
        return [[_scored(hit) for hit in hits] for hits in self._answers(requests)]

    def query_ids(self, requests: Sequence[qdrant.AnyQuery]) -> list[qdrant.FoundIds]:
        """See `Store.query_ids`."""
        return [
            qdrant.FoundIds(ids=[hit.id for hit in hits], scores=[hit.score for hit in hits])
            for hits in self._answers(requests)
        ]

    def _answers(self, requests: Sequence[qdrant.AnyQuery]) -> list[list[edge.ScoredPoint]]:
        for request in requests:
            common.check_query(request, self._open_spec().vectors)
        native = [edge_requests.edge_query(request, self._params) for request in requests]
        with self._engine() as shard:
            return shard.query_batch(edge.QueryBatchRequest(native)) if native else []

    def count(self, filter: qdrant.AnyFilter | None = None) -> int:
        """See `Store.count`."""
        request = edge.CountRequest(True, edge_requests.edge_filter(filter))
        with self._engine() as shard:
            return shard.count(request)

    def optimize(self) -> None:
        """See `Store.optimize`. Every thread of the process waits meanwhile."""
        self._check_space(
            sum(f.stat().st_blocks * 512 for f in self._path.rglob("*") if f.is_file())
        )
        log.info("Building the vector index of %s; this may take minutes.", self.location)
        with self._engine() as shard:
            shard.optimize()
        self.flush()

    def flush(self) -> None:
        """See `Store.flush`."""
        with self._engine() as shard:
            shard.flush()
        self._unflushed = 0

    def close(self) -> None:
        """See `Store.close`; may be called twice."""
        shard, self._shard, self._closed = self._shard, None, True
        if shard is not None and self._pid == os.getpid():
            with self._mapped():
                if self._written:
                    shard.flush()
                shard.close()

    # Opening

    def _check_usable(self) -> None:
        if self._closed:
            raise StoreError(f"The store at {self.location} was closed.", "Make a new EdgeStore.")
        if self._shard is not None and self._pid != os.getpid():
            raise StoreError(
                f"The store at {self.location} was opened by process {self._pid} and is used in "
                f"its fork {os.getpid()}, where the engine would hang.",
                'Start workers with the "spawn" method, or use the store in one process.',
            )

    def _open(self) -> edge.EdgeShard:
        self._check_usable()
        with self._lock:
            if self._shard is None:
                if not self.exists():
                    raise StoreError(
                        f"There is no collection at {self.location}.", "Create it by indexing."
                    )
                with self._mapped():
                    self._shard, self._pid = edge.EdgeShard.load(str(self._path)), os.getpid()
            return self._shard

    @contextlib.contextmanager
    def _engine(self) -> Iterator[edge.EdgeShard]:
        shard = self._open()
        with self._mapped():
            yield shard

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        """Map the engine's errors, which are all plain `Exception`."""
        try:
            yield
        except CartError:
            raise
        except Exception as error:
            if "WouldBlock" in str(error):
                raise StoreError(
                    f"The store at {self.location} is in use by another process (or by another "
                    "EdgeStore of this one).",
                    "Wait for it or stop it; use a Qdrant server to share a collection.",
                ) from error
            raise StoreError(f"The store at {self.location} failed: {error}") from error

    # Making, and the sidecar

    def _make(self, spec: CollectionSpec) -> None:
        draft = self._drafts / f"{self._path.name}.creating"
        shutil.rmtree(draft, ignore_errors=True)  # left by a crash
        if self._path.exists() and any(self._path.iterdir()):
            aside = self._path.with_name(f"{self._path.name}.broken-{os.urandom(4).hex()}")
            self._path.rename(aside)
            log.warning("%s held no collection; moved to %s.", self._path, aside)
        draft.mkdir(parents=True)
        # Graphs are built on and walked by int8, found points are scored by the vectors themselves.
        int8 = edge.ScalarQuantizationConfig(
            edge.ScalarType.Int8, quantile=common.QUANTILE, memory=_ON_DISK
        )
        vectors = {
            name: edge.EdgeVectorParams(size, edge.Distance.Cosine, quantization_config=int8)
            for name, size in spec.vectors.items()
        }
        shard = edge.EdgeShard.create(str(draft), edge.EdgeConfig(vectors=vectors))
        shard.flush()
        shard.close()
        self._write_spec(CollectionSpec(vectors=dict(spec.vectors)))
        draft.rename(self._path)

    def _write_spec(self, spec: CollectionSpec) -> None:
        self._spec = spec
        if not self._keeps_sidecar:
            return
        text = json.dumps(
            {
                "vectors": dict(spec.vectors),
                "keywords": list(spec.keywords),
                "texts": list(spec.texts),
            }
        )
        self._drafts.mkdir(parents=True, exist_ok=True)
        draft = self._drafts / f"{self._sidecar.name}.writing"
        with draft.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._sidecar)

    def _open_spec(self) -> CollectionSpec:
        self._open()
        if self._spec is None:
            self._spec = self._read_spec()
        return self._spec

    def _read_spec(self) -> CollectionSpec:
        if not self._keeps_sidecar:
            with self._mapped():
                return self._recover_spec()
        if not self._sidecar.is_file():
            log.warning("%s is missing; made again from the store.", self._sidecar)
            with self._mapped():
                self._write_spec(self._recover_spec())
        try:
            data = json.loads(self._sidecar.read_text())
            return CollectionSpec(
                vectors={str(name): int(size) for name, size in data["vectors"].items()},
                keywords=tuple(data["keywords"]),
                texts=tuple(data["texts"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise StoreError(
                f"{self._sidecar} cannot be read ({error!r}).",
                "Delete that file: it is made again from the store.",
            ) from error

    def _recover_spec(self) -> CollectionSpec:
        config = json.loads((self._path / "edge_config.json").read_text())
        with self._engine() as shard:
            schema = {
                field: index.data_type for field, index in shard.info().payload_schema.items()
            }
        kinds = edge.PayloadSchemaType
        return CollectionSpec(
            vectors={name: vector["size"] for name, vector in config["vectors"].items()},
            keywords=tuple(f for f, kind in schema.items() if kind == kinds.Keyword),
            texts=tuple(f for f, kind in schema.items() if kind == kinds.Text),
        )

    # Writing

    def _index(self, field: str, schema: Any) -> None:
        with self._mapped():
            make = edge.UpdateOperation.create_field_index(field, schema)
        self._update(make, 0)

    def _update(self, operation: edge.UpdateOperation, points: int) -> None:
        self._written = True
        with self._engine() as shard:
            shard.update(operation)
        self._unflushed += points
        if self._unflushed >= self._settings.flush_points:
            self.flush()

    def _known(self, ids: Sequence[str]) -> set[str]:
        with self._engine() as shard:
            found = shard.retrieve(common.wire_ids(ids), False, False)
            return {str(row.id) for row in found}

    def _check_space(self, batch_bytes: int) -> None:
        need = batch_bytes * _DISK_COPIES + self._settings.reserve_bytes
        free = self._free_bytes(self._path)
        if free < need:
            raise StoreError(
                f"The disk of {self.location} has {free / 1e6:.0f} MB free; this needs "
                f"{need / 1e6:.0f} MB.",
                "Free some space, or move the index to another disk.",
            )

    # Searching

    def _params(
        self, using: str, filter: qdrant.AnyFilter | None, limit: int
    ) -> qdrant.SearchParams:
        """How to run a nearest-vector search that leaves it open."""
        request = edge.CountRequest(False, edge_requests.edge_filter(filter))
        with self._engine() as shard:
            matches = shard.count(request)  # an estimate, in microseconds
        if matches * self._open_spec().vectors[using] <= self._settings.exact_multiplications:
            return qdrant.SearchParams(exact=True)
        acorn = qdrant.AcornSearchParams(enable=filter is not None, max_selectivity=1.0)
        int8 = qdrant.QuantizationSearchParams(rescore=True, oversampling=common.OVERSAMPLING)
        ef = max(self._settings.hnsw_ef, 2 * limit)
        return qdrant.SearchParams(hnsw_ef=ef, acorn=acorn, quantization=int8)


def _record(row: edge.Record, names: Sequence[str]) -> qdrant.Record:
    vector = common.select_vectors(row.vector, names) if names else None
    return qdrant.Record(id=str(row.id), payload=row.payload, vector=vector)


def _scored(hit: edge.ScoredPoint) -> qdrant.ScoredPoint:
    return qdrant.ScoredPoint(
        id=str(hit.id), score=hit.score, payload=hit.payload, vector=hit.vector
    )
