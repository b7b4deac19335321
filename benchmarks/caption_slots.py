"""What a second vector for captions costs, and how quickly captions are encoded.

    python -m benchmarks.caption_slots store
    python -m benchmarks.caption_slots encode captions.jsonl --graph .cartq/generator-2

`store`: disk, memory and times of an embedded store with one vector for captions, with an empty
second one, with both full, and with the second one removed again; each in a process of its own.
`encode`: captions a second by the text encoder in torch, and by the graph of a trained model.
Prints a table, then one JSON row.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from qdrant_client import models

from cart_qdrant.embedders.text.folder import text_encoder_folder
from cart_qdrant.index.collection import TEXT_DIM, collection_spec
from cart_qdrant.storage.edge import EdgeStore
from cart_qdrant.storage.protocol import CAPTION, CAPTION_2, MEDIA

DIM = 512
BATCH = 1_000
STATES = ("one", "second empty", "both full", "second removed")


def fill(folder: Path, state: str, count: int) -> dict[str, float]:
    """Make a store; returns its size in MB and the seconds that the second vector took."""
    rng, store = np.random.default_rng(0), EdgeStore(folder / "store")
    store.create(collection_spec(DIM, "cart", CAPTION))
    ids = [str(uuid.UUID(int=n + 1)) for n in range(count)]
    for begin in range(0, count, BATCH):
        some = ids[begin : begin + BATCH]
        vectors = [
            {MEDIA: rng.normal(size=DIM).tolist(), CAPTION: rng.normal(size=TEXT_DIM).tolist()}
            for _ in some
        ]
        store.upsert(
            [
                models.PointStruct(id=i, vector=x, payload={"path": f"{i}.jpg"})
                for i, x in zip(some, vectors, strict=True)
            ]
        )
    store.flush()
    begun = time.perf_counter()
    if state != "one":
        store.add_vector(CAPTION_2, TEXT_DIM)
    if state in ("both full", "second removed"):
        for begin in range(0, count, BATCH):
            some = ids[begin : begin + BATCH]
            store.update_vectors(CAPTION_2, [(i, rng.normal(size=TEXT_DIM).tolist()) for i in some])
        store.flush()
    if state == "second removed":
        store.clear_vector(CAPTION_2)
    seconds = time.perf_counter() - begun
    store.close()
    return {"seconds": seconds}


def look(folder: Path) -> dict[str, float]:
    """Size of a store, and what opening it takes."""
    begun, store = time.perf_counter(), EdgeStore(folder / "store")
    store.count()
    opened = time.perf_counter() - begun
    segments = [f for f in (folder / "store" / "segments").rglob("*") if f.is_file()]
    every = [f for f in (folder / "store").rglob("*") if f.is_file()]
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    out = {
        "segments_mb": _megabytes(segments),
        "with_log_mb": _megabytes(every),
        "open_ms": opened * 1e3,
        "mapped_mb": int(status["RssFile"].split()[0]) / 1e3,
        "own_mb": int(status["RssAnon"].split()[0]) / 1e3,
    }
    store.close()
    return out


def _megabytes(files: list[Path]) -> float:
    return sum(file.stat().st_blocks * 512 for file in files) / 1e6


def stores(count: int) -> list[dict[str, Any]]:
    """One row for each state of the second vector."""
    rows: list[dict[str, Any]] = []
    for state in STATES:
        with tempfile.TemporaryDirectory() as where:
            row: dict[str, Any] = {"state": state}
            for step in ("fill", "look"):
                command = [sys.executable, "-m", "benchmarks.caption_slots", step, where]
                command += ["--state", state, "--count", str(count)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                row |= json.loads(done.stdout)
            rows.append(row)
    return rows


def encode(table: Path, graph: Path, count: int) -> list[dict[str, Any]]:
    """One row for each encoder: captions a second on the clock and of processor time, median of
    three."""
    from cart_qdrant.embedders.text.minilm import TextEncoder
    from cart_qdrant.index.caption_encoder import SentenceEncoder, TunedEncoder

    texts: dict[str, None] = {}
    for line in table.read_text().splitlines():
        texts |= dict.fromkeys(json.loads(line)["captions"])
    some = list(texts)[:count]
    encoders = {
        "text encoder, torch": SentenceEncoder(TextEncoder(text_encoder_folder())).embed,
        "query graph, ONNX": TunedEncoder(graph).embed,
    }
    return [{"encoder": name, **_speed(embed, some)} for name, embed in encoders.items()]


def _speed(embed: Callable[[list[str]], Any], texts: list[str]) -> dict[str, float]:
    embed(texts[:20])
    runs = []
    for _ in range(3):
        begun, used = time.perf_counter(), _processor()
        embed(texts)
        seconds = time.perf_counter() - begun, _processor() - used
        runs.append([len(texts) / one for one in seconds])
    clock, processor = np.median(runs, axis=0)
    return {"per_second": float(clock), "per_cpu_second": float(processor)}


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["store", "encode", "fill", "look"])
    parser.add_argument("path", nargs="?", type=Path, help="encode: a metadata.jsonl with captions")
    parser.add_argument("--graph", type=Path, help="encode: folder of a trained model")
    parser.add_argument("--count", type=int, help="points, or captions")
    parser.add_argument("--state", choices=STATES)
    given = parser.parse_args()
    if given.what == "fill":
        print(json.dumps(fill(given.path, given.state, given.count)))
        return
    if given.what == "look":
        print(json.dumps(look(given.path)))
        return
    if given.what == "store":
        rows = stores(given.count or 10_000)
    else:
        rows = encode(given.path, given.graph, given.count or 1_000)
    for row in rows:
        print("  ".join(f"{k} {v:.1f}" if isinstance(v, float) else str(v) for k, v in row.items()))
    print(json.dumps({"benchmark": "caption_slots", "what": given.what, "rows": rows}))


if __name__ == "__main__":
    main()
