"""Kill -9 after each writing step: does the index open, is all there that was stored, does a rerun
complete it?

    python -m benchmarks.crash ingest
    python -m benchmarks.crash refit --times 20
    python -m benchmarks.crash captions
    python -m benchmarks.crash train

Each trial starts from the same state. The run kills itself after a given step (such as the second
`upsert`), the index is checked, the same run is started again, and its result is compared with that
of a run that was not killed. Prints a table, then one JSON row.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from cart_qdrant.index.caption_vectors import with_captions, write_sentence_vectors
from cart_qdrant.index.folder import IndexFolder
from cart_qdrant.index.identifier_files import load_codec, load_trie
from cart_qdrant.index.identify import refit, remove_stale
from cart_qdrant.index.index import Index
from cart_qdrant.progress import Silent
from cart_qdrant.records import Identifier
from cart_qdrant.search.retriever import Retriever

_WRITE = 8
"""Points that are written together here: few, so that there are many steps."""
LOG = "steps"
"""File beside the index: one line a finished writing step, its name and the points it wrote."""
Step = tuple[str, int]
"""Name of a writing step, and how often a run has done it, counted from 1."""

# One process imports everything once; each trial's processes are forked from it.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(
    [
        "cart_qdrant.embedders.lite.embedder",
        "cart_qdrant.embedders.text.minilm",
        "cart_qdrant.embedders.text.onnx_encoder",
        "cart_qdrant.index.ingest",
        "cart_qdrant.storage.edge",
        "cart_qdrant.search.retriever",
    ]
)


@dataclass(frozen=True, slots=True)
class Trial:
    """One kill.

    Attributes:
        step: Name of the step after which the run was killed.
        count: How often it had been done.
        killed: Whether the run came to this step.
        points: Points in the index afterwards.
        acknowledged: Points that the store had said are written.
        identifiers: Version of the identifiers in force afterwards.
        problems: Empty when all is well.
    """

    step: str
    count: int
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
        captions: Caption vector in force of each point that has one.
        names: Identifier of each point in the field in force.
        version: Version of the identifiers in force.
    """

    payloads: dict[str, dict[str, Any]]
    vectors: dict[str, list[float]]
    captions: dict[str, list[float]]
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
        payloads, vectors, captions, names = {}, {}, {}, {}
        slot = opened.caption_vector
        rows = set()
        for record in opened.store.scroll(with_vectors=["media", slot]):
            payload, key = dict(record.payload or {}), str(record.id)
            if info is not None and info.field in payload:
                one = Identifier.from_payload(payload[info.field])
                if one.id in names.values():
                    problems.append(f"two points have the identifier {one.id}")
                names[key] = one.id
                rows.add((*one.codes, one.u))
            payloads[key] = {k: v for k, v in payload.items() if not k.startswith("cart")}
            assert isinstance(record.vector, dict)
            vectors[key] = record.vector["media"]  # type: ignore[assignment]
            if slot in record.vector:
                captions[key] = record.vector[slot]  # type: ignore[assignment]
            if payload["captions"] and key not in captions:
                problems.append(f"the captions of {key} have no vector")
    in_tree = set() if trie is None else set(map(tuple, trie.rows().tolist()))
    complete = len(payloads) == len(names)
    if info is not None and complete and rows != in_tree:
        problems.append(f"{len(rows ^ in_tree)} identifiers differ between tree and points")
    return State(payloads, vectors, captions, names, None if info is None else info.version)


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
    if found.captions.keys() != wanted.captions.keys():
        problems.append("other points have a caption vector")
    for key in found.captions.keys() & wanted.captions.keys():
        if np.dot(found.captions[key], wanted.captions[key]) < 0.999:
            problems.append(f"caption vector of {key} differs")
    if found.names.keys() != found.payloads.keys():
        problems.append(f"{len(found.payloads) - len(found.names)} points have no identifier")


def run_trial(
    what: str, start: Path | None, wanted: State, index: Path, media: Path, kill_after: Step
) -> Trial:
    """Kill one run, check the index, and run again.

    Args:
        what: `ingest`, `refit`, `captions` or `train`.
        start: Index to begin with; None begins with none.
        wanted: State after a run that was not killed.
        index: Where the run works.
        media: Folder of the media files.
        kill_after: Step after which the run kills itself.
    """
    shutil.rmtree(index, ignore_errors=True)
    if start is not None:
        shutil.copytree(start, index)
    (index.parent / LOG).unlink(missing_ok=True)
    killed = _run(what, index, media, kill_after) == -signal.SIGKILL
    with ProcessPoolExecutor(1, mp_context=_PROCESSES) as pool:
        found = pool.submit(check_and_rerun, what, index, media, wanted, start is not None)
        points, acknowledged, version, problems = found.result()
    return Trial(*kill_after, killed, points, acknowledged, version, problems)


def _run(what: str, index: Path, media: Path, kill_after: Step | None = None) -> int | None:
    """Exit code of a run in a process of its own."""
    process = _PROCESSES.Process(target=work, args=(what, index, media, kill_after))
    process.start()
    process.join()
    return process.exitcode


def check_and_rerun(
    what: str, index: Path, media: Path, wanted: State, complete: bool
) -> tuple[int, int, int | None, list[str]]:
    """Check the index of a killed run, run again and compare.

    Args:
        what: `ingest`, `refit`, `captions` or `train`.
        index: Index of the killed run.
        media: Folder of the media files.
        wanted: State after a run that was not killed.
        complete: Whether the run began with a complete index, which must still answer.

    Returns:
        Points, points that were acknowledged, version of the identifiers in force, and problems.
    """
    problems: list[str] = []
    acknowledged = {
        id for name, *ids in _steps(index.parent / LOG) if name == "upsert" for id in ids
    }
    between = read_state(index, problems)
    there = set(between.payloads) if between is not None else set()
    if lost := acknowledged - there:
        problems.append(f"{len(lost)} acknowledged points are lost")
    if complete and between is not None and between.names.keys() != there:
        problems.append("points lost their identifiers")
    if complete and not answers(index):
        problems.append("a search finds nothing")
    try:
        work(what, index, media)
    except Exception as error:  # noqa: BLE001 - whatever it is, the trial reports it
        problems.append(f"the rerun failed: {type(error).__name__}: {error}")
    compare(read_state(index, problems), wanted, problems)
    return len(there), len(acknowledged), between and between.version, problems


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


def run_trials(what: str, scratch: Path, times: int | None = None) -> list[Trial]:
    """Kill a run after different steps.

    Args:
        what: `ingest`, `refit`, `captions` or `train`.
        scratch: Empty folder to work in.
        times: Number of kills, evenly spaced over all steps; None kills once after the first step
            of each name.
    """
    media, index = scratch / "media", scratch / ".cartq"
    make_media(media)
    start: Path | None = None
    if what != "ingest":
        _must(_run("ingest", index, media))
        if what in ("refit", "captions"):  # the second one also removes what the first replaced
            _must(_run(what, index, media))
        start = scratch / "start"
        shutil.copytree(index, start)
    (scratch / LOG).unlink(missing_ok=True)
    _must(_run(what, index, media))
    steps = _numbered(_steps(scratch / LOG))
    with ProcessPoolExecutor(1, mp_context=_PROCESSES) as pool:
        wanted = pool.submit(_sound_state, index).result()
    if times is None:
        chosen = [step for step in steps if step[1] == 1]
    else:
        chosen = [steps[n * len(steps) // times] for n in range(min(times, len(steps)))]
    return [run_trial(what, start, wanted, index, media, step) for step in chosen]


def _must(code: int | None) -> None:
    assert code == 0, f"a run that was not killed ended with {code}"


def _sound_state(index: Path) -> State:
    problems: list[str] = []
    state = read_state(index, problems)
    assert state is not None and not problems, problems
    return state


def _numbered(steps: Sequence[Sequence[str]]) -> list[Step]:
    """Each step with how often its name has come so far."""
    seen: Counter[str] = Counter()
    out = []
    for name, *_ in steps:
        seen[name] += 1
        out.append((name, seen[name]))
    return out


def make_media(folder: Path) -> None:
    """Fourteen images, one of them with a caption, a video with audio, and an audio file."""
    from tests import media_factory as make

    folder.mkdir(parents=True)
    for n in range(14):
        make.write_image(folder / f"p{n:02}.png", make.scene(n))
    (folder / "p00.txt").write_text("a dog on a surfboard\n")
    frames = make.moving(50, 24) + make.moving(51, 24)
    make.write_video(folder / "clip.mp4", frames, sound=make.tone(6.0))
    make.write_audio(folder / "bell.wav", make.tone(3.0, hertz=880))


class _Recorder:
    """Logs writing steps, and kills the process after one of them."""

    def __init__(self, log: TextIO, kill_after: Step | None) -> None:
        self._log, self._kill_after = log, kill_after
        self._seen: Counter[str] = Counter()

    def wrap(self, method: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The method, followed by a line in the log."""

        def call(*args: Any) -> Any:
            out = method(*args)
            ids = [point.id for point in args[0]] if name == "upsert" else []
            self._log.write(" ".join((name, *ids)) + "\n")
            self._log.flush()
            self._seen[name] += 1
            if (name, self._seen[name]) == self._kill_after:
                os.kill(os.getpid(), signal.SIGKILL)
            return out

        return call


def work(what: str, index: Path, media: Path, kill_after: Step | None = None) -> None:
    """One run, which logs what the store acknowledged, in the process that calls this.

    Args:
        what: `ingest`, `refit`, `captions` or `train`.
        index: Where the run works.
        media: Folder of the media files.
        kill_after: Step after which the process kills itself.
    """
    import torch

    from cart_qdrant.embedders.registry import open_embedder
    from cart_qdrant.index import corpus_stats, identify, pipeline, writer
    from cart_qdrant.index.ingest import Ingest
    from cart_qdrant.index.report import IngestOptions

    torch.set_num_threads(1)  # threads cost more than they gain on so little
    writer.WRITE = pipeline.BATCH = corpus_stats.PART = _WRITE
    modules: list[tuple[Any, str]] = [(corpus_stats, "_write_part"), (identify, "save_part")]
    if what == "train":
        from cart_qdrant.training import generator_fit, tower, trained_model

        modules += [(tower, "save_checkpoint"), (generator_fit, "save_checkpoint")]
        modules += [(trained_model.Model, "save")]
    folder = IndexFolder(index)
    with folder.lock(), (index.parent / LOG).open("a") as log:
        recorder = _Recorder(log, kill_after)
        embedder = open_embedder("lite")
        opened = Index.open(index) if folder.exists() else Index.create(index, embedder)
        opened.set_embedder(embedder)
        store_steps = (
            "add_vector", "clear_vector", "create_keyword_index", "delete", "delete_payload_key",
            "flush", "set_payload", "update_vectors", "upsert",
        )  # fmt: skip
        for owner, name in (
            *((opened.store, name) for name in store_steps),
            (opened, "put"),
            *modules,
        ):
            setattr(owner, name, recorder.wrap(getattr(owner, name), name))
        with opened:
            if what == "refit":
                refit(opened)
            elif what == "captions":
                remove_stale(opened)
                made = write_sentence_vectors(opened, Silent())
                opened.put(with_captions(opened.manifest, made))
            elif what == "train":
                from cart_qdrant.training.options import TrainOptions
                from cart_qdrant.training.train import train

                train(opened, TrainOptions(profile="quick"))
            else:
                Ingest(opened, IngestOptions(paths=[media])).run()


def main() -> None:
    """Run the trials of one kind."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["ingest", "refit", "captions", "train"])
    parser.add_argument("--times", type=int, help="kills; default: one for each name of a step")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        trials = run_trials(given.what, Path(scratch), given.times)
    heads = ("step", "count", "killed", "points", "acknowledged", "version", "problems")
    print("{:22} {:>5} {:6} {:>6} {:>12} {:>7}  {}".format(*heads))
    for one in trials:
        print(
            f"{one.step:22} {one.count:5} {one.killed!s:6} {one.points:6} {one.acknowledged:12} "
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
