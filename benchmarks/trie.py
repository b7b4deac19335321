"""The prefix tree from ten thousand to ten million identifiers.

    python benchmarks/trie.py --sizes 10000 1000000

Identifiers are made as collections have them: clusters of unequal sizes (Zipf), each with its own
distribution of the codes of three further levels, and a counter for those that clash; hubness too.
Queries are noisy sums of the code vectors of stored identifiers. Opening and decoding run in a
process of their own, the file in the page cache. Prints one Markdown table: `grow` and `shrink`
insert and delete 10,000 identifiers, `first` is the first decoding after opening, by 400 beams;
then medians of single queries by so many beams in ms, and of a batch of 64 by 400, in ms a query;
the memory is that of the process that decoded, after opening and at its end.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from cart_qdrant.arrays.types import FloatArray, IntArray
from cart_qdrant.generator.beam_search import PriorScorer, beam_search
from cart_qdrant.generator.prior import NodeBonus
from cart_qdrant.identifiers.trie import Trie
from cart_qdrant.identifiers.trie_edits import delete, insert

T = TypeVar("T")

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
WIDTHS = (200, 400, 2_000)
CODES, LEVELS = 256, 3
"""Codes of a level, and levels after the clusters."""
SPREAD = 40
"""Codes that most items of a cluster share at a level."""
CHANGED = 10_000
DIM = 64
SCALE, WEIGHT = 26.0, 20.8
"""Of inner products and of hubness, as training finds them."""
HUBS = (0.137, 0.023, 0.024, 0.019)
"""Mean hubness, and how far clusters, codes of the next level, and items spread, as of photos."""
LENGTHS = (1.0, 0.5, 0.4, 0.3)
"""Of the code vectors of each level."""
QUERIES, WARM, BATCH = 256, 56, 64
"""Queries of a width, of which the first are not counted, and those of a batch."""


def main() -> None:
    """Measure each size, print a row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="identifiers")
    parser.add_argument("--coarse", type=int, default=16_384, help="clusters at most")
    parser.add_argument("--folder", type=Path, help="where trees are written; temporary if not")
    given = parser.parse_args()
    widths = " | ".join(f"{width:,}" for width in WIDTHS)
    print("| identifiers | U | bytes | build s | save s | open ms | first ms | grow ms | shrink ms"
          f" | {widths} | {BATCH} | MB opened | MB |")  # fmt: skip
    print("|---:" * (12 + len(WIDTHS)) + "|")
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for size in given.sizes:
            row = measure(size, min(given.coarse, clusters(size)), Path(folder) / f"{size}")
            print(f"| {size:,} | " + " | ".join(row) + " |", flush=True)


def clusters(size: int) -> int:
    """As many as a collection of that size gets: a power of two near a 24th."""
    return int(2 ** round(np.log2(size / 24)))


def measure(size: int, coarse: int, path: Path) -> list[str]:
    """The cells of one size."""
    rows_NL, hub_N = make(size + CHANGED, coarse)
    more, more_hubs = rows_NL[size:], hub_N[size:]
    built, trie = timed(lambda: Trie.build(rows_NL[:size], None, hub_N[:size]), 3)
    saved, _ = timed(lambda: trie.save(path), 3)
    grown_in, grown = timed(lambda: insert(trie, more, more_hubs), 5)
    shrunk_in, shrunk = timed(lambda: delete(grown, more), 5)
    assert len(grown) == size + CHANGED and len(shrunk) == size
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        opened, first, *decoded, small, large = pool.apply(
            decode, (path, coarse, rows_NL[:QUERIES])
        )
    return [
        f"{trie.unique_ratio:.3f}", f"{trie.nbytes / size:.1f}", f"{built:.2f}", f"{saved:.2f}",
        f"{1e3 * opened:.1f}", f"{1e3 * first:.1f}", f"{1e3 * grown_in:.0f}",
        f"{1e3 * shrunk_in:.0f}", *(f"{1e3 * one:.2f}" for one in decoded), f"{small:.0f}",
        f"{large:.0f}",
    ]  # fmt: skip


def make(count: int, coarse: int) -> tuple[IntArray, FloatArray]:
    """Identifiers (N, L) in no order, and the hubness of each."""
    rng = np.random.default_rng(0)
    share = (np.arange(coarse) + 20.0) ** -0.7
    rows = np.empty((count, LEVELS + 2), dtype=np.int32)
    rows[:, 0] = rng.permutation(coarse)[rng.choice(coarse, count, p=share / share.sum())]
    offsets = rng.integers(0, CODES, (coarse, LEVELS))
    for level in range(LEVELS):
        near = np.abs(SPREAD * rng.standard_normal(count, dtype=np.float32)).astype(np.int32)
        rows[:, 1 + level] = (offsets[rows[:, 0], level] + near) % CODES
    keys = np.zeros(count, dtype=np.int64)
    for code_N in rows[:, :-1].T:
        keys = keys * coarse + code_N
    order = np.argsort(keys, kind="stable")
    begins = np.append(True, np.diff(keys[order]) > 0)
    rows[order, -1] = np.arange(count) - np.maximum.accumulate(begins * np.arange(count))
    hub_N = HUBS[0] + HUBS[-1] * rng.standard_normal(count, dtype=np.float32)
    for length, spread in zip((1, 2), HUBS[1:], strict=False):
        of_prefix = spread * rng.standard_normal(1 << 20, dtype=np.float32)
        hub_N += of_prefix[rows[:, :length] @ (CODES, 1)[-length:] % len(of_prefix)]
    return rows, hub_N


def tables(rows_QL: IntArray, coarse: int) -> list[FloatArray]:
    """Scores (Q, V) of each level for queries near stored identifiers."""
    rng = np.random.default_rng(1)
    books: list[FloatArray] = []
    for length, codes in zip(LENGTHS, (coarse, *[CODES] * LEVELS), strict=True):
        book = rng.standard_normal((codes, DIM), dtype=np.float32)
        books.append(length * book / np.linalg.norm(book, axis=1, keepdims=True))
    q_QD = sum(book[code_Q] for book, code_Q in zip(books, rows_QL.T, strict=False))
    q_QD = q_QD + rng.standard_normal((len(rows_QL), DIM), dtype=np.float32) / np.sqrt(DIM)
    q_QD /= np.linalg.norm(q_QD, axis=1, keepdims=True)
    return [(SCALE * q_QD @ book.T).astype(np.float32) for book in books]


def decode(path: Path, coarse: int, rows_QL: IntArray) -> list[float]:
    """Seconds to open and to decode, and the process's memory in MB before and after that."""
    levels = tables(rows_QL, coarse)

    def search(begin: int, width: int, count: int = 1) -> None:
        some = PriorScorer([table[begin : begin + count] for table in levels])
        beam_search(trie, some, count, width, NodeBonus(trie, WEIGHT))

    opened, trie = timed(lambda: Trie.load(path), 1)
    small = memory()
    first, _ = timed(lambda: search(0, 400), 1)
    out = [opened, first]
    for width in WIDTHS:
        times = [timed(partial(search, n, width), 1)[0] for n in range(QUERIES)]
        out.append(float(np.median(times[WARM:])))
    batches = [timed(partial(search, n, 400, BATCH), 1)[0] for n in range(0, QUERIES, BATCH)]
    out.append(float(np.median(batches)) / BATCH)
    return [*out, small, memory()]


def memory() -> float:
    """MB of this process that are in memory now, mapped files included."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def timed(work: Callable[[], T], repeats: int) -> tuple[float, T]:
    """Median of seconds, and the last result."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - begin)
    return float(np.median(times)), result


if __name__ == "__main__":
    main()
