"""How long an event loop stands still while searches run beside it.

    python benchmarks/heartbeat.py /tmp/new/.cartq /tmp/new/queries-dev.jsonl

A coroutine sleeps for a millisecond again and again, and notes how long each round took, alone and
while others ask: by `asearch`, and by `search` on the loop itself. With --wait, each request to the
store takes so many milliseconds more, as to a server elsewhere, and --threads are compared: whether
threads that wait for answers are what searches lack. Prints one Markdown table.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from cart_qdrant import Retriever

SLEEP = 0.001
ASKING = 8
"""Coroutines that ask at once."""


class Distant:
    """A store behind a line: every request waits."""

    def __init__(self, store: Any, seconds: float) -> None:
        self._store, self._seconds = store, seconds

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name not in ("query_batch", "retrieve", "count"):
            return method

        def waiting(*args: Any, **kwargs: Any) -> Any:
            time.sleep(self._seconds)
            return method(*args, **kwargs)

        return waiting


async def beat(gaps: list[float], done: asyncio.Event) -> None:
    """Milliseconds of each round over what it slept."""
    while not done.is_set():
        begin = time.perf_counter()
        await asyncio.sleep(SLEEP)
        gaps.append(1e3 * (time.perf_counter() - begin - SLEEP))


async def measure(
    texts: list[str], ask: Callable[[str], Awaitable[object]] | None, asking: int = ASKING
) -> tuple[list[float], float]:
    """Gaps of the heartbeat, and searches a second."""
    gaps: list[float] = []
    done = asyncio.Event()
    heart = asyncio.create_task(beat(gaps, done))
    begin = time.perf_counter()
    if ask is None:
        await asyncio.sleep(5)
    else:
        left = iter(texts)

        async def worker() -> None:
            for text in left:
                await ask(text)
                await asyncio.sleep(0)

        await asyncio.gather(*(worker() for _ in range(asking)))
    rate = len(texts) / (time.perf_counter() - begin)
    done.set()
    await heart
    return gaps, rate


def compare_threads(
    retriever: Retriever, texts: list[str], wait: float, threads: list[int]
) -> None:
    """Searches a second, and the loop's gaps, by the number of threads."""
    index = retriever._index
    index.store = Distant(index.store, wait / 1e3)
    print("| threads | searches a second | gaps p50, ms | p99 |\n|---:|---:|---:|---:|")
    for count in threads:
        retriever._threads.shutdown()
        retriever._threads = ThreadPoolExecutor(count)
        gaps, rate = asyncio.run(measure(texts, retriever.asearch, asking=2 * count))
        p50, p99 = np.quantile(gaps, [0.5, 0.99])
        print(f"| {count} | {rate:.0f} | {p50:.1f} | {p99:.1f} |", flush=True)


def main() -> None:
    """Open a copy of the index, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("index", type=Path, help="trained index")
    parser.add_argument("queries", type=Path, help="JSON Lines with `query`")
    parser.add_argument("--asked", type=int, default=400, help="queries at most")
    parser.add_argument("--wait", type=float, help="milliseconds that a request takes more")
    parser.add_argument("--threads", type=int, nargs="+", default=[4, 8, 16, 32])
    given = parser.parse_args()
    rows = [json.loads(line)["query"] for line in given.queries.read_text().splitlines()]
    texts = rows[: given.asked]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(shutil.copytree(given.index, Path(folder) / ".cartq"))
        with Retriever.open(root) as retriever:
            retriever.search(texts[0])  # everything is loaded
            if given.wait is not None:
                compare_threads(retriever, texts, given.wait, given.threads)
                return

            async def blocking(text: str) -> object:
                return retriever.search(text)

            print("| searches | a second | gaps p50, ms | p95 | p99 | greatest |")
            print("|---|---:|---:|---:|---:|---:|")
            for name, ask in (
                ("none", None), ("`await asearch`", retriever.asearch),
                ("`search` on the loop", blocking),
            ):  # fmt: skip
                gaps, rate = asyncio.run(measure(texts, ask))
                found = np.quantile(gaps, [0.5, 0.95, 0.99, 1.0])
                cells = [name, "-" if ask is None else f"{rate:.0f}", *(f"{x:.1f}" for x in found)]
                print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
