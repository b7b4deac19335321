"""Readers beside a writer: is each item found that was acknowledged, and does no search fail?

    python -m benchmarks.faults_readers embedded --minutes 10
    python -m benchmarks.faults_readers memory --minutes 10

`embedded`: eight processes search one index folder, half of them with one open retriever, half
open the index for each search as a command does; a ninth ingests new pictures, removes old ones
and trains now and then, each time as a command does. `memory`: the same with threads of one process
on the client's local mode, where nothing is trained. A search asks for a word that the caption of
one acknowledged picture has; that picture must be a hit. Prints a table, then one JSON row.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.small_index import add_pictures, ingest, word_of, write_vectors
from cart_qdrant.index.index import Index
from cart_qdrant.index.ingest import Ingest
from cart_qdrant.index.migrate import migrate
from cart_qdrant.index.report import IngestOptions
from cart_qdrant.search.retriever import Retriever
from cart_qdrant.storage.store_info import StoreInfo

READERS, FIRST, MORE = 8, 60, 6
"""Readers; pictures at the beginning; pictures that a round adds."""


@dataclass
class Told:
    """What a reader saw."""

    kind: str
    searches: int = 0
    missing: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)


class Acknowledged:
    """Numbers of the pictures that are stored, in a file that the writer appends to."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, sign: str, numbers: list[int]) -> None:
        """Say that pictures are stored (`+`) or about to be removed (`-`)."""
        with self._path.open("a") as file:
            file.write("".join(f"{sign}{n}\n" for n in numbers))

    def read(self) -> set[int]:
        """Those that are stored and stay."""
        found: set[int] = set()
        for line in self._path.read_text().splitlines():
            (found.add if line[0] == "+" else found.discard)(int(line[1:]))
        return found


def read(
    kind: str, search: Callable[[str], set[str]], told: Acknowledged, stop: Callable[[], bool]
) -> Told:
    """Search until it is over."""
    out, rng = Told(kind), random.Random(kind)
    while not stop():
        number = rng.choice(sorted(told.read()))
        begin = time.perf_counter()
        try:
            found = search(word_of(number))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is counted
            out.errors.append(f"{type(error).__name__}: {error}"[:300])
            continue
        out.milliseconds.append((time.perf_counter() - begin) * 1e3)
        out.searches += 1
        # It may have been removed between the choice and the search.
        if not any(f"{number:06}" in path for path in found) and number in told.read():
            out.missing.append(word_of(number))
    return out


def paths_of(retriever: Retriever, word: str) -> set[str]:
    """Paths of the hits for a word."""
    return {hit.path for hit in retriever.search(word, lane="bm25", k=5).hits}


def reader_process(work: Path, number: int, end: float) -> None:
    """One reader of the embedded store; prints what it saw."""
    told, root = Acknowledged(work / "told"), work / ".cartq"

    def over() -> bool:
        return time.time() > end

    if number % 2:
        with Retriever.open(root) as retriever:
            out = read("stays open", lambda word: paths_of(retriever, word), told, over)
    else:

        def once(word: str) -> set[str]:
            with Retriever.open(root) as retriever:
                return paths_of(retriever, word)

        out = read("opens for each", once, told, over)
    print(json.dumps(vars(out)), flush=True)


def write_rounds(work: Path, end: float, add: Callable[[], Any], *, train: bool) -> dict[str, int]:
    """Add and remove pictures, and train now and then, until it is over."""
    told, media, done = Acknowledged(work / "told"), work / "media", {"rounds": 0, "trainings": 0}
    next_number, oldest = FIRST, FIRST
    while time.time() < end:
        fresh = list(range(next_number, next_number + MORE))
        next_number += MORE
        add_pictures(media, fresh)
        add()
        told.write("+", fresh)
        done["rounds"] += 1
        if done["rounds"] % 3 == 0:
            gone = list(range(oldest, oldest + 3))
            oldest += 3
            told.write("-", gone)
            time.sleep(1)  # searches that chose one of them end
            for path in (work / "media").glob("*"):
                if any(f"{n:06}" in path.name for n in gone):
                    path.unlink()
            add()
        if train and done["rounds"] % 10 == 5:
            subprocess.run(
                [sys.executable, "-m", "benchmarks.faults_readers", "train", "--work", str(work)],
                check=True,
            )
            done["trainings"] += 1
    return done


def train_once(root: Path) -> None:
    """A short training, as a command."""
    from cart_qdrant.training.options import GeneratorFitConfig, TowerConfig, TrainOptions
    from cart_qdrant.training.train import train

    options = TrainOptions(
        profile="quick", tower=TowerConfig(epochs=1, min_steps=1),
        generator=GeneratorFitConfig(epochs=1, min_steps=1),
    )  # fmt: skip
    with Index.open(root) as index, index.folder.lock():
        train(index, options)


def run_embedded(work: Path, seconds: float) -> tuple[list[Told], dict[str, int]]:
    """Eight processes read, this one writes."""
    root, vectors = work / ".cartq", work / "vectors.npz"
    end = time.time() + seconds
    command = [sys.executable, "-m", "benchmarks.faults_readers", "reader", "--work", str(work)]
    readers = [
        subprocess.Popen([*command, "--number", str(n), "--end", str(end)], stdout=subprocess.PIPE)
        for n in range(READERS)
    ]
    done = write_rounds(
        work, end, lambda: ingest(root, vectors, work / "media", prune=True), train=True
    )
    return [Told(**json.loads(one.communicate()[0])) for one in readers], done


def run_memory(work: Path, seconds: float) -> tuple[list[Told], dict[str, int]]:
    """Eight threads read and one writes, on local mode."""
    from qdrant_client import QdrantClient

    client, end = QdrantClient(":memory:"), time.time() + seconds
    with Index.open(work / ".cartq") as index:
        index.vectors_file = work / "vectors.npz"
        migrate(index, StoreInfo(kind="client", collection="readers"), client=client)
        told, out = Acknowledged(work / "told"), []

        def one(_: int) -> None:
            with Retriever.open(work / ".cartq", client=client) as retriever:
                search = lambda word: paths_of(retriever, word)  # noqa: E731
                out.append(read("thread", search, told, lambda: time.time() > end))

        def add() -> None:
            with index.folder.lock():
                Ingest(index, IngestOptions(paths=[work / "media"], prune=True)).run()

        threads = [threading.Thread(target=one, args=(n,)) for n in range(READERS)]
        for thread in threads:
            thread.start()
        done = write_rounds(work, end, add, train=False)
        for thread in threads:
            thread.join()
    return out, done


def main() -> None:
    """Run readers and a writer, or be one of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["embedded", "memory", "reader", "train"])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--end", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.what == "reader":
        reader_process(given.work, given.number, given.end)
        return
    if given.what == "train":
        train_once(given.work / ".cartq")
        return
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        write_vectors(work / "vectors.npz")
        add_pictures(work / "media", range(FIRST))
        ingest(work / ".cartq", work / "vectors.npz", work / "media")
        Acknowledged(work / "told").write("+", list(range(FIRST)))
        run = run_embedded if given.what == "embedded" else run_memory
        found, done = run(work, given.minutes * 60)
    print(f"{done['rounds']} rounds of the writer, {done['trainings']} trainings")
    print("| reader | searches | failed | missing hits | p50 ms | p99 ms | longest ms |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for kind in sorted({one.kind for one in found}):
        own = [one for one in found if one.kind == kind]
        ms = np.concatenate([one.milliseconds for one in own])
        print(
            f"| {kind} ({len(own)}) | {sum(one.searches for one in own):,} "
            f"| {sum(len(one.errors) for one in own)} | {sum(len(one.missing) for one in own)} "
            f"| {np.median(ms):.1f} | {np.percentile(ms, 99):.0f} | {ms.max():.0f} |"
        )
    errors = [text for one in found for text in one.errors]
    missing = [text for one in found for text in one.missing]
    for text in sorted(set(errors))[:10]:
        print(text)
    print(
        json.dumps(
            {
                "benchmark": "faults_readers", "what": given.what, "minutes": given.minutes,
                "searches": sum(one.searches for one in found), "failed": len(errors),
                "missing": len(missing), **done,
            }
        )
    )  # fmt: skip
    if errors or missing:
        sys.exit(1)


if __name__ == "__main__":
    main()
