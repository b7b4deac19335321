"""How long an event loop stands still while searches run beside it.

    python benchmarks/heartbeat.py /tmp/new/.cartq queries.jsonl

A coroutine sleeps for a millisecond again and again, and notes how long each round took, alone and
while others ask: by `asearch`, and by `search` on the loop itself. Prints one Markdown table.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np

from cart_qdrant import Retriever

SLEEP = 0.001
ASKING = 8
"""Coroutines that ask at once."""


async def beat(gaps: list[float], done: asyncio.Event) -> None:
    """Milliseconds of each round over what it slept."""
    while not done.is_set():
        begin = time.perf_counter()
        await asyncio.sleep(SLEEP)
        gaps.append(1e3 * (time.perf_counter() - begin - SLEEP))


async def measure(
    texts: list[str], ask: Callable[[str], Awaitable[object]] | None
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

        await asyncio.gather(*(worker() for _ in range(ASKING)))
    rate = len(texts) / (time.perf_counter() - begin)
    done.set()
    await heart
    return gaps, rate


def main() -> None:
    """Open a copy of the index, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("index", type=Path, help="trained index")
    parser.add_argument("queries", type=Path, help="JSON Lines with `query`")
    parser.add_argument("--asked", type=int, default=400, help="queries at most")
    given = parser.parse_args()
    rows = [json.loads(line)["query"] for line in given.queries.read_text().splitlines()]
    texts = rows[: given.asked]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(shutil.copytree(given.index, Path(folder) / ".cartq"))
        with Retriever.open(root) as retriever:
            retriever.search(texts[0])  # everything is loaded

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
