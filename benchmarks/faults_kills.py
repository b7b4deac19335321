"""Kill -9 at random moments: does every index open, is all there that was stored, and does the same
command complete it?

    python -m benchmarks.faults_kills --times 100
    python -m benchmarks.faults_kills ingest train --times 20

Each trial copies the same state, starts one command in a process of its own, and kills it after a
random share of the time that it takes alone. Then the index is opened and compared: points that
were there or acknowledged must be there, points of others must be as they were, a search must find
one of them. The command is run again, and its result compared with that of a run that was not
killed. The page cache survives such a kill; power cuts are replayed by
`tests/integration/test_power_cut.py`. Prints a table, then one JSON row.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.small_index import WIDTH, add_pictures, ingest, name_of, word_of, write_vectors
from cart_qdrant.index.attach import AttachOptions, attach
from cart_qdrant.index.folder import IndexFolder
from cart_qdrant.index.identifier_files import load_table, load_trie
from cart_qdrant.index.index import Index
from cart_qdrant.index.migrate import migrate
from cart_qdrant.index.remove import choose, remove
from cart_qdrant.index.sync import sync
from cart_qdrant.records import Identifier, Modality
from cart_qdrant.search.retriever import Retriever
from cart_qdrant.storage.edge import EdgeStore
from cart_qdrant.storage.protocol import CollectionSpec
from cart_qdrant.storage.shared import SharedStore
from cart_qdrant.storage.store_info import StoreInfo

COMMANDS = ("ingest", "train", "attach", "sync", "migrate", "rm")
PICTURES, NEW, GONE = 60, 30, 10
OTHERS = ("attach", "sync")
"""Commands on a collection that others fill."""
OF_DISK = frozenset({"ctime", "inode"})
"""Payload fields that differ between copies of one file."""
ACKNOWLEDGED = "acknowledged"
"""File of the ids that the store had said are written, one a line."""

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(
    [
        "cart_qdrant.embedders.precomputed",
        "cart_qdrant.embedders.text.onnx_encoder",
        "cart_qdrant.index.ingest",
        "cart_qdrant.index.migrate",
        "cart_qdrant.index.sync",
        "cart_qdrant.search.retriever",
        "cart_qdrant.storage.shared",
        "cart_qdrant.training.train",
    ]
)


@dataclass
class State:
    """What an index holds; whatever a second run may change legitimately is left out."""

    points: dict[str, Any] = field(default_factory=dict)
    identifiers: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    version: int | None = None


def client_of(folder: Path) -> Any:
    """A client in local mode on a folder, from where `migrate` moves."""
    from qdrant_client import QdrantClient

    return QdrantClient(path=str(folder / "local"))


def others_point(n: int) -> Any:
    """A point of others, with a field of theirs."""
    from qdrant_client import models

    x_D = np.random.default_rng(n).normal(size=WIDTH)
    payload = {"file": name_of(n), "words": f"a picture of {word_of(n)} by day", "theirs": [n]}
    return models.PointStruct(id=n + 1, vector={"pic": x_D.tolist()}, payload=payload)


def prepare(what: str, folder: Path) -> None:
    """The state that each trial of a command begins with."""
    folder.mkdir()
    if what in OTHERS:
        with_closing = EdgeStore(folder / "theirs", sidecar=False)
        with_closing.create(CollectionSpec(vectors={"pic": WIDTH}))
        with_closing.upsert([others_point(n) for n in range(PICTURES)])
        with_closing.close()
        if what == "sync":
            work("attach", folder)
            store = EdgeStore(folder / "theirs", sidecar=False)
            store.upsert([others_point(n) for n in range(PICTURES, PICTURES + NEW)])
            store.delete([str(n + 1) for n in range(GONE)])
            store.close()
        return
    write_vectors(folder / "vectors.npz")
    add_pictures(folder / "media", range(PICTURES))
    ingest(folder / ".cartq", folder / "vectors.npz", folder / "media")
    if what == "migrate":  # back into the embedded store
        with _Closing(client_of(folder)) as client, Index.open(folder / ".cartq") as index:
            migrate(index, StoreInfo(kind="client", collection="moved"), client=client)
        shutil.rmtree(folder / ".cartq" / "store")
    if what == "ingest":
        add_pictures(folder / "media", range(PICTURES, PICTURES + NEW))
        for n in range(GONE):
            (folder / "media" / name_of(n)).with_suffix(".txt").write_text(f"{word_of(n)} again\n")


def work(what: str, folder: Path) -> None:
    """Run a command's work, as the command line does."""
    import torch

    torch.set_num_threads(1)
    root = folder / ".cartq"
    with ExitStack() as stack:
        if what == "ingest":
            ingest(root, folder / "vectors.npz", folder / "media")
        elif what == "train":
            from benchmarks.faults_readers import train_once

            train_once(root)
        elif what == "attach":
            stack.enter_context(IndexFolder(root).lock())
            if IndexFolder(root).exists():
                index = stack.enter_context(Index.open(root))
            else:
                options = AttachOptions(
                    modality=Modality.IMAGE, fields={"captions": "words", "path": "file"}
                )
                where = folder / "theirs"
                index = stack.enter_context(attach(root, "theirs", path=where, options=options))
            sync(index)
        else:
            stack.enter_context(IndexFolder(root).lock())
            client = None
            if IndexFolder(root).read().store.kind == "client":
                client = stack.enter_context(_Closing(client_of(folder)))
            index = stack.enter_context(Index.open(root, client=client))
            if what == "sync":
                sync(index)
            elif what == "rm":
                names = [str(folder / "media" / name_of(n)) for n in range(GONE)]
                remove(index, choose(index, names))
            elif client is not None:
                migrate(index, StoreInfo())


class _Closing:
    """Closes a client at the end of a block."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __enter__(self) -> Any:
        return self._client

    def __exit__(self, *_: object) -> None:
        self._client.close()


def look(folder: Path) -> State:
    """Open an index and look at all of it."""
    state, root = State(), folder / ".cartq"
    if not IndexFolder(root).exists():
        return state
    with ExitStack() as stack:
        client = None
        if IndexFolder(root).read().store.kind == "client":
            client = stack.enter_context(_Closing(client_of(folder)))
        index = stack.enter_context(Index.open(root, client=client))
        info, trie = index.manifest.identifiers, load_trie(index)
        load_table(index)
        rows = set()
        for record in index.store.scroll(with_vectors=["media"]):
            payload, key = dict(record.payload or {}), str(record.id)
            if info is not None and info.field in payload:
                one = Identifier.from_payload(payload[info.field])
                state.identifiers[key] = one.id
                rows.add((*one.codes, one.u))
            kept = {
                k: v for k, v in payload.items() if not k.startswith("cart") and k not in OF_DISK
            }
            assert isinstance(record.vector, dict)
            vector = np.round(record.vector["media"], 4).tolist()  # type: ignore[arg-type]
            state.points[key] = (kept, vector)
        if len(set(state.identifiers.values())) < len(state.identifiers):
            state.problems.append("two points have one identifier")
        if info is not None:
            state.version = info.version
            if trie is None or not set(map(tuple, trie.rows().tolist())):
                state.problems.append("the tree is empty")
        if state.identifiers:  # an attached collection can be searched after its first `sync`
            word, lane = word_of(PICTURES - 1), "bm25" if client is None else "rrf"
            with Retriever(index) as retriever:
                found = retriever.search(word, lane=lane, k=10)  # type: ignore[arg-type]
            if not any(name_of(PICTURES - 1) in hit.path for hit in found.hits):
                state.problems.append(f"a search for {word} does not find its picture")
    return state


def in_process(function: Callable[..., Any], *args: object) -> Any:
    """The answer of a function that runs in a process of its own.

    Raises:
        RuntimeError: It failed; its error is told.
    """
    here, there = _PROCESSES.Pipe()
    process = _PROCESSES.Process(target=_answer, args=(there, function, args))
    process.start()
    there.close()
    try:
        ok, value = here.recv()
    except EOFError:
        ok, value = False, f"the process ended with {process.exitcode}"
    process.join()
    if not ok:
        raise RuntimeError(value)
    return value


def _answer(pipe: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        pipe.send((True, function(*args)))
    except Exception as error:  # noqa: BLE001 - whatever it is, the trial reports it
        pipe.send((False, f"{type(error).__name__}: {error}"[:400]))


def logged_work(what: str, folder: Path) -> None:
    """`work`, while the ids of written points go to a file once the store has acknowledged them."""
    upsert = SharedStore.upsert

    def logged(self: SharedStore, points: Any) -> None:
        upsert(self, points)
        with (folder / ACKNOWLEDGED).open("a") as log:
            log.write("".join(f"{point.id}\n" for point in points))

    SharedStore.upsert = logged  # type: ignore[method-assign]
    work(what, folder)


def run_trial(what: str, start: Path, folder: Path, seconds: float, wanted: State) -> list[str]:
    """Kill one run after some seconds, check, run again and compare; what is wrong is returned.

    Raises:
        TimeoutError: The run had ended before.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(start, folder, symlinks=True)
    process = _PROCESSES.Process(target=logged_work, args=(what, folder))
    process.start()
    process.join(seconds)
    if process.exitcode is not None:
        raise TimeoutError
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    problems: list[str] = []
    log = folder / ACKNOWLEDGED
    acknowledged = set(log.read_text().split()) if log.exists() else set()
    try:
        before, after = in_process(look, start), in_process(look, folder)
        problems += after.problems
        gone = before.points.keys() - wanted.points.keys() if what == "rm" else set()
        if lost := (before.points.keys() | acknowledged) - after.points.keys() - gone:
            problems.append(f"{len(lost)} points are lost")
        kept = before.points.keys() & after.points.keys()
        if what in OTHERS and any(after.points[k] != before.points[k] for k in kept):
            problems.append("points of others were changed")
    except RuntimeError as error:
        problems.append(f"it does not open: {error}")
    try:
        in_process(work, what, folder)
        final = in_process(look, folder)
        problems += final.problems
        if final.points != wanted.points:
            odd = [k for k in {*final.points, *wanted.points}
                   if final.points.get(k) != wanted.points.get(k)]  # fmt: skip
            problems.append(f"after the rerun {len(odd)} points differ")
        if final.identifiers.keys() != wanted.identifiers.keys():
            problems.append("after the rerun points lack identifiers")
    except RuntimeError as error:
        problems.append(f"the rerun failed: {error}")
    return problems


def main() -> None:
    """Run the trials."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commands", nargs="*", default=COMMANDS, metavar="COMMAND")
    parser.add_argument("--times", type=int, default=100, help="kills of each command")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng, bad = random.Random(given.seed), 0
    print("| command | seconds alone | kills | with problems |\n|---|---:|---:|---:|", flush=True)
    told: list[str] = []
    row: dict[str, Any] = {"benchmark": "faults_kills", "seed": given.seed}
    for what in given.commands:
        with tempfile.TemporaryDirectory() as scratch:
            start, folder = Path(scratch) / "start", Path(scratch) / "trial"
            in_process(prepare, what, start)
            took = []
            for _ in range(3):
                shutil.rmtree(folder, ignore_errors=True)
                shutil.copytree(start, folder)
                begin = time.perf_counter()
                in_process(logged_work, what, folder)
                took.append(time.perf_counter() - begin)
            alone = sorted(took)[1]
            wanted = in_process(look, folder)
            assert not wanted.problems, wanted.problems
            kills = with_problems = 0
            while kills < given.times:
                after = rng.uniform(0, alone)
                try:
                    problems = run_trial(what, start, folder, after, wanted)
                except TimeoutError:  # it was quicker this time: another moment is drawn
                    continue
                kills += 1
                with_problems += bool(problems)
                told += [f"{what}, killed after {after:.2f} s: {one}" for one in problems]
            bad += with_problems
            row[what] = {"kills": kills, "with_problems": with_problems}
            print(f"| `{what}` | {alone:.1f} | {kills} | {with_problems} |", flush=True)
    for line in told:
        print(line)
    print(json.dumps(row))
    if bad:
        sys.exit(1)


if __name__ == "__main__":
    main()
