"""Flipped bytes in each file of an index: is the damage told, or does it change nothing?

    python -m benchmarks.faults_flips               # three flips a file, seed 0
    python -m benchmarks.faults_flips --flips 10 --seed 1

A trained index of small pictures is copied, one random byte of one file is changed, and the index
is opened and searched in every lane in a process of its own. `told`: a `CartError` with advice.
`same`: the answers of the undamaged index. `other`: other answers, untold. `bare`: an error of
another library, or the process died. A flip is made twice: as a write, which changes the file's
time, and as a disk that rots, which does not: then sizes and times are those of the last check, and
what is not hashed is seen by `cartq doctor` alone. The files below `store/` are the engine's, which
keeps no checksums of what it maps. Prints a table, then one JSON row.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cart_qdrant.errors import CartError
from cart_qdrant.index.folder import IndexFolder
from cart_qdrant.index.index import Index
from cart_qdrant.search.retriever import Retriever

PICTURES = 40
SECONDS = 60.0
"""After which a search counts as hanging."""
LANES = ("dense", "caption", "bm25", "generative", "fused", "auto")
OUTCOMES = ("told", "same", "other", "bare")
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(
    [
        "cart_qdrant.embedders.text.onnx_encoder", "cart_qdrant.search.retriever",
        "cart_qdrant.storage.shared", "cart_qdrant.search.trained_model",
    ]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Trial:
    """One flipped byte.

    Attributes:
        file: Path within the index folder.
        rotten: Whether size and time of the file stayed.
        outcome: One of `OUTCOMES`.
        told: The error, if there was one.
        doctor: Whether hashing all files finds the damage; None for files without a hash.
    """

    file: str
    rotten: bool
    outcome: str
    told: str
    doctor: bool | None


def make(folder: Path) -> Path:
    """A trained index of small pictures; its folder."""
    from benchmarks.small_index import add_pictures, ingest, write_vectors
    from cart_qdrant.training.train import train
    from tests.conftest import short_training

    folder.mkdir(parents=True, exist_ok=True)
    write_vectors(folder / "vectors.npz")
    add_pictures(folder / "media", range(PICTURES))
    ingest(folder / ".cartq", folder / "vectors.npz", folder / "media")
    with Index.open(folder / ".cartq") as index, index.folder.lock():
        train(index, short_training())
    return folder / ".cartq"


def files_of(root: Path) -> list[Path]:
    """One file of each kind that holds something, relative to the index folder."""
    found: dict[str, Path] = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.stat().st_size:
            found.setdefault(_kind(str(path.relative_to(root))), path.relative_to(root))
    return list(found.values())


def _data(path: Path) -> Iterator[range]:
    """The parts of a file that are no holes."""
    with path.open("rb") as file:
        at, size = 0, path.stat().st_size
        while at < size:
            try:
                begin = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                return
            at = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            yield range(begin, at)


def flip(path: Path, rng: random.Random, *, rotten: bool) -> bool:
    """Change one byte of a file; False where it has nothing but holes."""
    parts = list(_data(path))
    if not parts:
        return False
    spot = rng.randrange(sum(map(len, parts)))
    for part in parts:
        if spot < len(part):
            break
        spot -= len(part)
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(part[spot])
        (old,) = file.read(1)
        file.seek(part[spot])
        file.write(bytes([old ^ rng.randrange(1, 256)]))
    later = stat.st_mtime_ns if rotten else stat.st_mtime_ns + 1_000_000
    os.utime(path, ns=(stat.st_atime_ns, later))
    return True


def answers(root: Path) -> dict[str, Any]:
    """Hits of two queries in each lane."""
    out: dict[str, Any] = {}
    with Retriever.open(root) as retriever:
        for query in ("a picture of word000003 by day", "something by night"):
            for lane in LANES:
                hits = retriever.search(query, k=5, lane=lane).hits  # type: ignore[arg-type]
                out[f"{lane} {query}"] = [(hit.path, round(hit.score, 4)) for hit in hits]
    return out


def _answer(pipe: Any, root: Path) -> None:
    import torch

    torch.set_num_threads(1)
    try:
        pipe.send(("answers", answers(root)))
    except CartError as error:
        pipe.send(("told" if error.remedy else "bare", str(error)))
    except BaseException as error:  # noqa: BLE001 - the engine's panics are no Exception
        pipe.send(("bare", f"{type(error).__name__}: {error}"))


def ask(root: Path) -> tuple[str, Any]:
    """What a search in a process of its own gives."""
    here, there = _PROCESSES.Pipe()
    process = _PROCESSES.Process(target=_answer, args=(there, root))
    process.start()
    there.close()
    try:
        found: tuple[str, Any] = here.recv() if here.poll(SECONDS) else ("bare", "it hangs")
    except EOFError:
        process.join()
        found = ("bare", f"the process ended with {process.exitcode}")
    if process.is_alive() and found[1] == "it hangs":
        process.kill()
    process.join()
    return found


def run_trial(
    start: Path, target: Path, file: Path, right: Any, rng: random.Random, *, rotten: bool
) -> Trial | None:
    """Flip one byte of a copy and search; None where the file has nothing but holes."""
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run(["cp", "-a", "--sparse=always", str(start), str(target)], check=True)
    if not flip(target / file, rng, rotten=rotten):
        return None
    kind, told = ask(target)
    outcome = kind if kind != "answers" else "same" if told == right else "other"
    return Trial(
        str(file), rotten, outcome, told if isinstance(told, str) else "", _doctor(target, file)
    )


def _doctor(root: Path, file: Path) -> bool | None:
    """Whether `cartq doctor`, which hashes all files, sees the damage; None for other files."""
    folder = IndexFolder(root)
    try:
        artifacts = folder.read().artifacts()
    except CartError:
        return True
    for artifact in artifacts:
        if artifact.name == file.parts[0]:
            try:
                folder.path(artifact, rehash=True)
            except CartError:
                return True
            return False
    return None


def run(
    scratch: Path, *, flips: int, seed: int, only: Collection[str] | None = None
) -> list[Trial]:
    """All trials.

    Args:
        scratch: Empty folder to work in.
        flips: Flipped bytes of each file, one a trial.
        seed: Seed of places and values.
        only: Kinds of files whose bytes are flipped; None takes all.
    """
    start = make(scratch / "made")
    ask(start)  # the engine and the checks of hashes write at the first opening
    kind, right = ask(start)
    assert kind == "answers", right
    rng = random.Random(seed)
    trials = []
    for file in files_of(start):
        if only is not None and _kind(str(file)) not in only:
            continue
        for rotten in (False, True) if file.parts[0] != "store" else (True,):
            for _ in range(flips):
                one = run_trial(start, scratch / "copy", file, right, rng, rotten=rotten)
                if one is not None:
                    trials.append(one)
                    print(f"{file} {one.outcome} {one.told[:80]}", file=sys.stderr, flush=True)
    return trials


def _kind(file: str) -> str:
    """Files of one kind, whatever number or hash is in their names."""
    name = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|(?<=/)[0-9a-z]{24}-", "*", file)
    name = re.sub(r"(?<=payload_index/)[^/]+(?=/)", "*", name)  # the same files for each field
    return re.sub(r"-[0-9a-f]{6,}(?=\.)", "-*", name)


def table(trials: Sequence[Trial]) -> str:
    """Markdown: one row for each kind of file."""
    rows: dict[tuple[str, bool], Counter[str]] = {}
    seen: Counter[tuple[str, bool]] = Counter()
    for one in trials:
        key = (_kind(one.file), one.rotten)
        rows.setdefault(key, Counter())[one.outcome] += 1
        seen[key] += one.doctor is True
    lines = ["| file | time | " + " | ".join(OUTCOMES) + " | doctor sees |"]
    lines.append("|---|---|" + "---:|" * (len(OUTCOMES) + 1))
    for (file, rotten), counts in sorted(rows.items()):
        time = "kept" if rotten else "changed"
        numbers = " | ".join(str(counts[outcome]) for outcome in OUTCOMES)
        lines.append(f"| `{file}` | {time} | {numbers} | {seen[file, rotten]} |")
    return "\n".join(lines)


def main() -> None:
    """Run the trials."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flips", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        trials = run(Path(scratch), flips=given.flips, seed=given.seed)
    print(table(trials))
    for one in trials:
        if one.outcome == "bare":
            print(f"bare: {one.file}: {one.told[:200]}", file=sys.stderr)
    counts = Counter(one.outcome for one in trials)
    ours = Counter(one.outcome for one in trials if not one.file.startswith("store/"))
    print(json.dumps({"benchmark": "faults_flips", "trials": len(trials), **counts, "ours": ours}))


if __name__ == "__main__":
    main()
