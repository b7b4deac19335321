"""Full disks: does each command end with a clean error, and go on once there is room?

    python -m benchmarks.faults_disk            # as root: it mounts a small tmpfs for each trial

Each trial puts the same state on a disk of its own, fills it up to some free megabytes, and runs
one command in a process of its own. Clean is a `CartError`, or an `OSError` that the command line
shows in one line; death by a signal is not. Then the filler is removed, the index is opened and
compared as in `faults_kills`, and the command is run again. Prints a table, then one JSON row.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import faults_kills
from benchmarks.faults_kills import COMMANDS, State, in_process, look, prepare

FREE_MB = (0.0, 0.1, 1.0, 8.0, 32.0, 64.0, 128.0, 240.0, 257.0, 264.0, 300.0)
"""Free megabytes when the command starts; the embedded store keeps 268 free."""
ROOM_MB = 1200


def work(what: str, folder: Path) -> None:
    """Run a command's work; a search is one, too: the engine writes to its folder."""
    if what == "search":
        if problems := look(folder).problems:
            raise AssertionError(problems)
    else:
        faults_kills.work(what, folder)


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A disk of `ROOM_MB` at a folder."""
    folder.mkdir()
    options = f"size={ROOM_MB}m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, free_mb: float) -> Path:
    """Fill a disk up to some free megabytes."""
    filler = folder / "filler"
    left = shutil.disk_usage(folder).free - int(free_mb * 1e6)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, left))
    return filler


def run_trial(what: str, start: Path, disk: Path, free_mb: float, wanted: State) -> tuple[str, Any]:
    """How a command ended on a disk that is nearly full, and what is wrong."""
    problems: list[str] = []
    with small_disk(disk):
        folder = disk / "work"
        shutil.copytree(start, folder, symlinks=True)
        filler = fill(disk, free_mb)
        ended = "done"
        try:
            in_process(work, what, folder)
        except RuntimeError as error:
            ended = str(error)
            if not ended.split(":")[0].endswith("Error") or "internal" in ended:
                problems.append(ended)
        filler.unlink()
        try:
            state = in_process(look, folder)
            problems += state.problems
            before = in_process(look, start)
            gone = before.points.keys() - wanted.points.keys() if what == "rm" else set()
            if lost := before.points.keys() - state.points.keys() - gone:
                problems.append(f"{len(lost)} points are lost")
            in_process(work, what, folder)
            final = in_process(look, folder)
            problems += final.problems
            if final.points != wanted.points:
                problems.append("after the rerun points differ")
            if final.identifiers.keys() != wanted.identifiers.keys():
                problems.append("after the rerun points lack identifiers")
        except RuntimeError as error:
            problems.append(f"afterwards: {error}")
    return ended, problems


def main() -> None:
    """Run the trials."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commands", nargs="*", default=(*COMMANDS, "search"), metavar="COMMAND")
    given = parser.parse_args()
    print("| command | free MB | ended | wrong |\n|---|---:|---|---|", flush=True)
    bad = trials = 0
    for what in given.commands:
        with tempfile.TemporaryDirectory() as scratch:
            start, whole = Path(scratch) / "start", Path(scratch) / "whole"
            in_process(prepare, what, start)
            shutil.copytree(start, whole)
            in_process(work, what, whole)
            wanted = in_process(look, whole)
            for n, free_mb in enumerate(FREE_MB):
                ended, problems = run_trial(
                    what, start, Path(scratch) / f"disk{n}", free_mb, wanted
                )
                trials += 1
                bad += bool(problems)
                ended = ended.replace(scratch, "...")[:110]
                print(
                    f"| `{what}` | {free_mb:g} | {ended} | {'; '.join(problems) or '-'} |",
                    flush=True,
                )
    print(json.dumps({"benchmark": "faults_disk", "trials": trials, "with_problems": bad}))
    if bad:
        sys.exit(1)


if __name__ == "__main__":
    main()
