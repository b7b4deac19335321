"""Kill -9 at random moments: does the index open, is all there that was stored, does a rerun end?

    python -m benchmarks.crash ingest --times 10
    python -m benchmarks.crash refit --times 10
    python -m benchmarks.crash train --times 10

Each trial starts from the same state, is killed once, is checked, and runs again to its end; the
result is compared with that of a run that was not killed. Prints a table, then one JSON row.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from cart_qdrant.index.folder import IndexFolder
from cart_qdrant.index.identifier_files import load_codec, load_trie
from cart_qdrant.index.identify import refit
from cart_qdrant.index.index import Index
from cart_qdrant.records import Identifier
from cart_qdrant.search.retriever import Retriever

ROOT = Path(__file__).resolve().parents[1]
_WRITE = 8
"""Points written together here: few, so that a kill often falls between two writes."""
LOG = "steps"
"""File beside the index: one line a finished writing step, its name and the points it wrote."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One kill.

    Attributes:
        steps: Writing steps before it.
        last: The last of them.
        killed: Whether the run was still going on.
        points: Points in the index afterwards.
        acknowledged: Points that the store had said are written.
        identifiers: Version of the identifiers in force afterwards.
        problems: Empty when all is well.
    """

    steps: int
    last: str
    killed: bool
    points: int
    acknowledged: int
    identifiers: int | None
    problems: list[str]


@dataclass(frozen=True, slots=True)
class State:
    """What an index holds.

    Attributes:
        payloads: Payload of each point without its identifiers.
        vectors: Media vector of each point.
        names: Identifier of each point in the field in force.
        version: Version of the identifiers in force.
    """

    payloads: dict[str, dict[str, Any]]
    vectors: dict[str, list[float]]
    names: dict[str, str]
    version: int | None


def read_state(index: Path, problems: list[str]) -> State | None:
    """Open an index and look at all of it; None where it was not made yet.

    Args:
        problems: Gains what is wrong: unreadable files, tree and points apart, shared identifiers.
    """
    if not IndexFolder(index).exists():
        return None
    with Index.open(index) as opened:
        info, trie = opened.manifest.identifiers, load_trie(opened)
        load_codec(opened)  # its hash is checked
        payloads, vectors, names = {}, {}, {}
        rows = set()
        for record in opened.store.scroll(with_vectors=["media"]):
            payload, key = dict(record.payload or {}), str(record.id)
            if info is not None and info.field in payload:
                one = Identifier.from_payload(payload[info.field])
                if one.id in names.values():
                    problems.append(f"two points are named {one.id}")
                names[key] = one.id
                rows.add((*one.codes, one.u))
            payloads[key] = {k: v for k, v in payload.items() if not k.startswith("cart")}
            assert isinstance(record.vector, dict)
            vectors[key] = record.vector["media"]  # type: ignore[assignment]
    in_tree = set() if trie is None else set(map(tuple, trie.rows().tolist()))
    unnamed = len(payloads) - len(names)
    if info is not None and unnamed == 0 and rows != in_tree:
        problems.append(f"{len(rows ^ in_tree)} identifiers differ between tree and points")
    return State(payloads, vectors, names, None if info is None else info.version)


def compare(found: State | None, wanted: State | None, problems: list[str]) -> None:
    """Tell where a finished index differs from one that was never killed."""
    if found is None or wanted is None:
        problems.append("there is no index after the rerun")
        return
    if found.payloads != wanted.payloads:
        odd = {
            i
            for i in {*found.payloads, *wanted.payloads}
            if found.payloads.get(i) != wanted.payloads.get(i)
        }
        problems.append(f"{len(odd)} points differ from an uninterrupted run")
    for key in found.vectors.keys() & wanted.vectors.keys():
        if np.dot(found.vectors[key], wanted.vectors[key]) < 0.999:
            problems.append(f"vector of {key} differs")
    if found.names.keys() != found.payloads.keys():
        problems.append(f"{len(found.payloads) - len(found.names)} points have no identifier")


def run_trial(
    command: Sequence[str],
    start: Path | None,
    wanted: State,
    index: Path,
    seconds: float,
    steps: int = 0,
) -> Trial:
    """Kill one run, look, and run again.

    Args:
        command: What to run; it works on `index`.
        start: Index to begin with; None begins with none.
        wanted: State after an uninterrupted run.
        seconds: When to kill it, counted from when it has logged `steps` steps.
        steps: Lines of its log.
    """
    shutil.rmtree(index, ignore_errors=True)
    if start is not None:
        shutil.copytree(start, index)
    log = index.parent / LOG
    log.unlink(missing_ok=True)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT)
    while process.poll() is None and len(_steps(log)) < steps:
        time.sleep(0.005)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    killed = process.returncode == -signal.SIGKILL
    problems: list[str] = []
    logged = _steps(log)
    sure = {one for step in logged if step[0] == "upsert" for one in step[1:]}
    between = read_state(index, problems)
    there = set(between.payloads) if between is not None else set()
    if lost := sure - there:
        problems.append(f"{len(lost)} acknowledged points are gone")
    if start is not None and between is not None and between.names.keys() != there:
        problems.append("points lost their identifiers")
    if start is not None and not answers(index):
        problems.append("a search finds nothing")
    again = subprocess.run(command, capture_output=True, cwd=ROOT, text=True, check=False)
    if again.returncode:
        problems.append(f"the rerun failed: {again.stderr.strip().splitlines()[-1:]}")
    compare(read_state(index, problems), wanted, problems)
    version = None if between is None else between.version
    last = logged[-1][0] if logged else ""
    return Trial(len(logged), last, killed, len(there), len(sure), version, problems)


def answers(index: Path) -> bool:
    """Whether a search finds the one picture that has a caption, with whatever is in force."""
    with Retriever.open(index) as retriever:
        found = retriever.search("a dog on a surfboard", k=3)
    return any(hit.caption == "a dog on a surfboard" for hit in found.hits)


def _steps(log: Path) -> list[list[str]]:
    """Whole lines of a log, in words."""
    if not log.exists():
        return []
    text = log.read_text()
    return [line.split() for line in text[: text.rfind("\n") + 1].splitlines()]


def run_trials(what: str, scratch: Path, times: int, *, seed: int = 0) -> list[Trial]:
    """Kill a run that many times, each time at another moment.

    Args:
        what: `ingest`, `refit` or `train`.
        scratch: Empty folder to work in.
        seed: Of the moments.
    """
    media, index = scratch / "media", scratch / ".cartq"
    make_media(media)
    own = [sys.executable, "-m", "benchmarks.crash"]
    ingest = [*own, "--work", "ingest", str(index), str(media)]
    if what == "ingest":
        words, start = ingest, None
    else:
        words = [*own, "--work", what, str(index), str(media)]
        subprocess.run(ingest, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        start = scratch / "start"
        shutil.copytree(index, start)
    (scratch / LOG).unlink(missing_ok=True)
    begin = time.perf_counter()
    subprocess.run(words, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    whole, steps = time.perf_counter() - begin, len(_steps(scratch / LOG))
    problems: list[str] = []
    wanted = read_state(index, problems)
    assert wanted is not None and not problems, problems
    rng = random.Random(seed)
    trials = []
    for n in range(times):
        share = (n + rng.random()) / times  # one moment in each of `times` equal parts
        if steps and n % 2 == 0:  # just after a step is written; else anywhere
            moment, after = rng.uniform(0, 0.05), int(share * steps)
        else:
            moment, after = share * whole, 0
        trial = run_trial(words, start, wanted, index, moment, after)
        while not trial.killed:  # this run was quicker than the one that was timed
            moment, after = 0.7 * moment, int(0.7 * after)
            trial = run_trial(words, start, wanted, index, moment, after)
        trials.append(trial)
    return trials


def make_media(folder: Path) -> None:
    """Thirty pictures with captions, a video with sound, and a sound."""
    from tests import media_factory as make

    folder.mkdir(parents=True)
    for n in range(30):
        make.write_image(folder / f"p{n:02}.png", make.scene(n))
    (folder / "p00.txt").write_text("a dog on a surfboard\n")
    frames = make.moving(50, 24) + make.moving(51, 24)
    make.write_video(folder / "clip.mp4", frames, sound=make.tone(6.0))
    make.write_audio(folder / "bell.wav", make.tone(3.0, hertz=880))


def _logged(method: Callable[..., Any], name: str, log: TextIO) -> Callable[..., Any]:
    """The method, followed by a line in the log."""

    def call(*args: Any) -> Any:
        out = method(*args)
        ids = [point.id for point in args[0]] if name == "upsert" else []
        log.write(" ".join((name, *ids)) + "\n")
        log.flush()
        return out

    return call


def work(what: str, index: Path, media: Path) -> None:
    """The process that is killed: one run, which logs what the store acknowledged."""
    from cart_qdrant.embedders.registry import open_embedder
    from cart_qdrant.index import corpus_stats as warmup
    from cart_qdrant.index import identify, pipeline, writer
    from cart_qdrant.index.ingest import Ingest
    from cart_qdrant.index.report import IngestOptions
    from cart_qdrant.training import generator_fit as fit_generator
    from cart_qdrant.training import tower, train
    from cart_qdrant.training import trained_model as model

    writer.WRITE = pipeline.BATCH = warmup.PART = _WRITE
    folder = IndexFolder(index)
    with folder.lock():
        embedder = open_embedder("lite")
        opened = Index.open(index) if folder.exists() else Index.create(index, embedder)
        opened.set_embedder(embedder)
        with opened, (index.parent / LOG).open("a") as log:
            for owner, name in (
                *((opened.store, n) for n in ("create_keyword_index", "delete", "flush")),
                *((opened.store, n) for n in ("upsert", "set_payload", "delete_payload_key")),
                (opened, "put"),
                (warmup, "_write_part"),
                (identify, "save_part"),
                (tower, "save_checkpoint"),
                (fit_generator, "save_checkpoint"),
                (model.Model, "save"),
            ):
                setattr(owner, name, _logged(getattr(owner, name), name, log))
            if what == "refit":
                refit(opened)
            elif what == "train":
                train.train(opened, train.TrainOptions(profile="quick"))
            else:
                Ingest(opened, IngestOptions(paths=[media])).run()


def main() -> None:
    """Run the trials of one kind."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["ingest", "refit", "train"])
    parser.add_argument("rest", nargs="*", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.what, *given.rest)
        return
    with tempfile.TemporaryDirectory() as scratch:
        trials = run_trials(given.what, Path(scratch), given.times, seed=given.seed)
    heads = ("steps", "last step", "killed", "points", "sure", "version", "problems")
    print("{:>5} {:22} {:6} {:>6} {:>6} {:>7}  {}".format(*heads))
    for one in trials:
        print(
            f"{one.steps:5} {one.last:22} {one.killed!s:6} {one.points:6} {one.acknowledged:6} "
            f"{one.identifiers!s:>7}  {'; '.join(one.problems) or 'none'}"
        )
    bad = sum(bool(one.problems) for one in trials)
    killed = sum(one.killed for one in trials)
    row = {"benchmark": "crash", "what": given.what, "trials": len(trials), "killed": killed}
    print(json.dumps({**row, "with_problems": bad}))
    if bad:
        sys.exit(1)


if __name__ == "__main__":
    main()
