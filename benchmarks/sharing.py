"""What it costs a search that another process has the embedded store open: a Markdown table, then
JSON rows.

    python -m benchmarks.sharing --items 1000 10000 100000

`alone`: the process has the store open itself. `guest`: another process has it, and answers through
the socket. `opens each time`: how long opening and closing the store takes, which each search would
pay if the store were handed over for each. Items are random unit vectors of the widths of `lite`,
each with a caption; requests are those of a search: two lists of 100, then ten payloads.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.protocol import CAPTION, CAPTION_TEXTS, MEDIA, CollectionSpec
from cart_qdrant.storage.shared import SharedStore

WIDTHS = {MEDIA: 512, CAPTION: 384}
SPEC = CollectionSpec(
    vectors=WIDTHS, keywords=["cart.id", "cart.p1", "modality", "path", "hash"],
    texts=[CAPTION_TEXTS],
)  # fmt: skip
BLOCK = 1000


def store_of(folder: Path) -> SharedStore:
    """The shared store of a folder."""
    return SharedStore(folder / "store", lock_file=folder / "store.lock")


def unit(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    """Random unit vectors (count, width)."""
    x_ND = rng.normal(size=(count, width)).astype(np.float32)
    return np.asarray(x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True))


def fill(folder: Path, items: int) -> None:
    """Make the store."""
    rng, store = np.random.default_rng(0), store_of(folder)
    store.create(SPEC)
    for begin in range(0, items, BLOCK):
        rows = {name: unit(rng, BLOCK, width) for name, width in WIDTHS.items()}
        store.upsert(
            [
                qdrant.PointStruct(
                    id=str(uuid.UUID(int=begin + n + 1)),
                    vector={name: rows[name][n].tolist() for name in WIDTHS},
                    payload={
                        "path": f"photos/{begin + n}.jpg", "hash": f"{begin + n:032x}",
                        "modality": "image", "cart": {"id": f"{n % 30}-{begin + n}"},
                        "captions": [{"text": f"a dog runs past house {begin + n}"}],
                    },
                )
                for n in range(min(BLOCK, items - begin))
            ]
        )  # fmt: skip
    store.close()


def search(store: SharedStore, rng: np.random.Generator) -> None:
    """The requests of one search."""
    found = store.query_ids(
        [
            qdrant.QueryRequest(query=unit(rng, 1, width)[0], using=name, limit=100)
            for name, width in WIDTHS.items()
        ]
    )
    assert len(store.retrieve([str(one) for one in found[0].ids[:10]])) == 10


def p50(work: Callable[[], None], times: int) -> float:
    """Median of the milliseconds that work takes."""
    took = []
    for _ in range(times):
        begin = time.perf_counter()
        work()
        took.append((time.perf_counter() - begin) * 1e3)
    return float(np.median(took))


def main() -> None:
    """Measure all sizes, or be the process that has the store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--times", type=int, default=300, help="searches of each row")
    parser.add_argument("--hold", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.hold is not None:
        holder = store_of(given.hold)
        print(holder.count(), flush=True)
        sys.stdin.read()
        holder.close()
        return
    print("| items | alone, p50 ms | guest, p50 ms | more, ms | opens each time, ms |")
    print("|---:|---:|---:|---:|---:|")
    for items in given.items:
        with tempfile.TemporaryDirectory() as scratch:
            folder, rng = Path(scratch), np.random.default_rng(1)
            fill(folder, items)

            def reopen() -> None:
                one = store_of(folder)  # noqa: B023 - called at once
                one.count()
                one.close()

            opens = p50(reopen, 5)
            store = store_of(folder)
            store.count()
            alone = p50(lambda: search(store, rng), given.times)  # noqa: B023
            store.close()
            command = [sys.executable, "-m", "benchmarks.sharing", "--hold", str(folder)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert process.stdout is not None
            process.stdout.readline()
            store = store_of(folder)
            guest = p50(lambda: search(store, rng), given.times)  # noqa: B023
            store.close()
            process.communicate()
        print(
            f"| {items:,} | {alone:.2f} | {guest:.2f} | {guest - alone:.2f} | {opens:.0f} |",
            flush=True,
        )
        row = {"items": items, "alone_ms": alone, "guest_ms": guest, "open_ms": opens}
        print(json.dumps({"benchmark": "sharing", **row}), file=sys.stderr)


if __name__ == "__main__":
    main()
