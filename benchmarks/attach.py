"""Identifiers beside the payloads of a collection that others fill.

    python benchmarks/attach.py --points 100000 --dim 512

A collection is filled by plain calls of qdrant-client (`:memory:`) and of the embedded engine, with
vectors from a mixture of Gaussians and payloads of every JSON type. It is attached, then synced
after others added and deleted a hundredth, then synced with --verify. All payloads but ours are
hashed as JSON before and after. Prints one Markdown table.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as edge
from qdrant_client import QdrantClient, models

from cart_qdrant.index.attach import attach
from cart_qdrant.index.index import Index
from cart_qdrant.index.sync import sync
from cart_qdrant.storage.edge import EdgeStore
from cart_qdrant.storage.protocol import Store
from cart_qdrant.storage.server import ServerStore

BLOCK = 1_000
CENTRES = 2_000
NAME = "theirs"


def payload(n: int) -> dict[str, Any]:
    """Numbers, nesting, nulls, and words beyond ASCII."""
    return {
        "url": f"s3://bucket/{n % 97:02d}/{n}.jpg",
        "titel": f"Größe {n}",
        "price": n / 8,
        "tags": ["a", None, {"deep": [n, -1.5, True]}],
        "seen": None,
    }


def make_vectors(count: int, dim: int) -> np.ndarray[Any, Any]:
    """Rows (N, D) around common centres."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CENTRES, dim)).astype(np.float32)
    x = centres[rng.integers(0, CENTRES, count)]
    return x + 0.6 * rng.normal(size=x.shape).astype(np.float32)


def digest(store: Store) -> tuple[str, int]:
    """Of all payloads without what we write, and how many there are."""
    hashes, count = [], 0
    for record in store.scroll():
        kept = {k: v for k, v in (record.payload or {}).items() if not k.startswith("cart")}
        text = f"{record.id} {json.dumps(kept, sort_keys=True)}"
        hashes.append(hashlib.blake2b(text.encode(), digest_size=16).digest())
        count += 1
    return hashlib.blake2b(b"".join(sorted(hashes)), digest_size=16).hexdigest(), count


class Memory:
    """A collection of a client of one's own."""

    name = "qdrant-client `:memory:`"

    def __init__(self, _folder: Path, dim: int) -> None:
        self.client = QdrantClient(":memory:")
        self.client.create_collection(
            NAME, models.VectorParams(size=dim, distance=models.Distance.COSINE)
        )
        self.place: dict[str, Any] = {"client": self.client}

    def store(self) -> Store:
        return ServerStore(self.client, NAME, owned=False)

    def add(self, rows: Iterator[tuple[int, list[float]]]) -> None:
        points = [models.PointStruct(id=n, vector=x, payload=payload(n)) for n, x in rows]
        self.client.upsert(NAME, points)

    def delete(self, ids: list[int]) -> None:
        self.client.delete(NAME, models.PointIdsList(points=ids))


class Engine:
    """A folder of the embedded engine."""

    name = "embedded engine"

    def __init__(self, folder: Path, dim: int) -> None:
        self.folder = folder / NAME
        self.folder.mkdir()
        params = edge.EdgeVectorParams(dim, edge.Distance.Cosine)
        shard = edge.EdgeShard.create(str(self.folder), edge.EdgeConfig(vectors={"": params}))
        shard.close()
        self.place: dict[str, Any] = {"path": self.folder}

    def store(self) -> Store:
        return EdgeStore(self.folder, sidecar=False)

    def _update(self, operation: Any) -> None:
        shard = edge.EdgeShard.load(str(self.folder))
        shard.update(operation)
        shard.flush()
        shard.close()

    def add(self, rows: Iterator[tuple[int, list[float]]]) -> None:
        points = [edge.Point(n, x, payload(n)) for n, x in rows]
        self._update(edge.UpdateOperation.upsert_points(points))

    def delete(self, ids: list[int]) -> None:
        self._update(edge.UpdateOperation.delete_points(ids))


def measure(kind: type[Memory | Engine], vectors: np.ndarray[Any, Any]) -> str:
    """One row of the table."""
    count = len(vectors) - len(vectors) // 100
    with tempfile.TemporaryDirectory() as where:
        root = Path(where) / ".cartq"
        theirs = kind(Path(where), vectors.shape[1])
        for begin in range(0, count, BLOCK):
            end = min(begin + BLOCK, count)
            theirs.add((n, vectors[n].tolist()) for n in range(begin, end))
        with_store = theirs.store()
        before = digest(with_store)
        with_store.close()
        begin_s = time.perf_counter()
        with attach(root, NAME, **theirs.place) as index:
            first = sync(index)
        attached = time.perf_counter() - begin_s
        with_store = theirs.store()
        same = digest(with_store) == before
        with_store.close()
        theirs.add((n, vectors[n].tolist()) for n in range(count, len(vectors)))
        theirs.delete(list(range(len(vectors) // 100)))
        seconds = []
        client = theirs.place.get("client")
        for verify in (False, True):
            with Index.open(root, client=client) as index:
                begin_s = time.perf_counter()
                report = sync(index, verify=verify)
                seconds.append(time.perf_counter() - begin_s)
                if not verify:
                    new, deleted = report.new, report.deleted
        assert report.changed == 0
        return (
            f"| {kind.name} | {first.items} | {attached:.0f} | "
            f"{first.identifiers['unique_ratio']:.3f} | "
            f"{'yes' if same else 'NO'} | {new} / {deleted} | {seconds[0]:.1f} | {seconds[1]:.1f} |"
        )


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    options = parser.parse_args()
    vectors = make_vectors(options.points, options.dim)
    print(
        "| collection | points | attach s | U | their payloads equal | new / gone | sync s | "
        "sync --verify s |\n|---|---:|---:|---:|---|---:|---:|---:|"
    )
    for kind in (Memory, Engine):
        print(measure(kind, vectors), flush=True)


if __name__ == "__main__":
    main()
