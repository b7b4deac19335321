"""Retrieval quality of every lane on real media, before and after training.

    python benchmarks/quality.py new ../shared/data --work /tmp/new --seeds 3
    python benchmarks/quality.py captioned ../shared/data --work /tmp/captioned --seeds 3
    python benchmarks/quality.py videos ../shared/data --work /tmp/videos --seeds 3
    python benchmarks/quality.py sounds ../shared/data --work /tmp/sounds --seeds 3
    python benchmarks/quality.py mixed ../shared/data --work /tmp/mixed

`new`: the dev photos are ingested without captions; queries are all their captions. `captioned`:
they keep captions 0 to 3; the query is caption 4. `videos`: every second clip has its caption as a
sidecar, then the other half; queries are the captions of all. `sounds`: every second sound has its
first caption, then the other half; queries are the second wordings of the ten labels of ESC-10,
right are all clips of the label. `mixed`: photos as in `new`, clips and sounds as in the first
half, in one collection. Runs the command line as a user would, in `--work`; what is ingested or
trained already is used again. Prints one Markdown table: means over seeds and halves, with standard
deviations.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CARTQ = Path(sys.executable).with_name("cartq")
BASELINES = ("dense", "caption", "bm25", "rrf")
LANES = (*BASELINES, "generative", "fused", "auto")

Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One folder that is ingested and asked.

    Attributes:
        queries: By kind; each `{"query": ..., "relevant": [...]}`.
        pools: What each kind is asked in, by name: further words of the command line.
        depth: Of average precision; 10 unless a query has many answers.
    """

    folder: Path
    queries: Mapping[str, list[Row]]
    pools: Mapping[str, Mapping[str, list[str]]]
    depth: int = 10


def main() -> None:
    """Make the folders, run the command line, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("protocol", choices=[*PROTOCOLS])
    parser.add_argument("data", type=Path, help="folder with photos/, videos/ and sounds/")
    parser.add_argument("--work", type=Path, required=True, help="folder to work in; it is kept")
    parser.add_argument("--profile", default="default", help="of `cartq train`")
    parser.add_argument("--again", action="store_true", help="train again on what is ingested")
    parser.add_argument("--seeds", type=int, default=1, help="train so often")
    parser.add_argument("--first-seed", type=int, default=0, help="where to begin instead of 0")
    parser.add_argument("--no-zero-shot", action="store_true", help="do not search before training")
    given = parser.parse_args()
    found: dict[tuple[str, ...], list[Row]] = {}
    for task in PROTOCOLS[given.protocol](given.data, given.work):
        fresh = not (task.folder / ".cartq").exists()
        if fresh:
            report = run(task.folder, "ingest", "media", "--follow")
            say(f"ingest: {report['files']} files, {report['seconds']:.0f} s")
            if not given.no_zero_shot:
                evaluate(task, "before", [*BASELINES, "fused"], found)
        for seed in range(given.first_seed, given.first_seed + given.seeds):
            path = task.folder / f"train-{seed}.json"
            # Of several seeds the index holds the last one only.
            marks = {"profile": given.profile, "seed": seed}
            mark = task.folder / "trained.json"
            known = json.loads(mark.read_text()) if mark.exists() else None
            if given.again or known != marks or not path.exists():
                report = run(
                    task.folder, "train", "--profile", given.profile, "--seed", str(seed)
                )  # fmt: skip
                path.write_text(json.dumps(report, indent=1))
                mark.write_text(json.dumps(marks))
            report = json.loads(path.read_text())
            keys = ("profile", "seconds", "val_r10", "identifiers", "gates", "router", "ece")
            say("train: " + json.dumps({key: report[key] for key in keys}))
            evaluate(task, given.profile, LANES, found)
    show(found)


def evaluate(
    task: Task, trained: str, lanes: Sequence[str], found: dict[tuple[str, ...], list[Row]]
) -> None:
    """Ask every kind of queries in its pools; adds to `found`."""
    words = [word for lane in lanes for word in ("--lane", lane)]
    words += [word for k in sorted({1, 5, 10, task.depth}) for word in ("-k", str(k))]
    for kind, queries in task.queries.items():
        path = task.folder / f"queries-{kind}.jsonl"
        path.write_text("".join(json.dumps(query) + "\n" for query in queries))
        for pool, chosen in task.pools[kind].items():
            report = run(task.folder, "eval", path.name, *words, *chosen)
            for one in report["lanes"]:
                found.setdefault((trained, kind, pool, one["lane"]), []).append(one)


def show(found: Mapping[tuple[str, ...], list[Row]]) -> None:
    """The table."""
    depth = max(int(name.removeprefix("map@")) for rows in found.values() for row in rows
                for name in row if name.startswith("map@"))  # fmt: skip
    mixed = any(len(row["modalities"]) > 1 for rows in found.values() for row in rows)
    columns: dict[str, Callable[[Row], float]] = {
        "R@1": lambda row: 100 * row["recall"]["1"],
        "R@5": lambda row: 100 * row["recall"]["5"],
        "R@10": lambda row: 100 * row["recall"]["10"],
        "MRR@10": lambda row: 100 * row["mrr@10"],
    }
    if depth > 10:
        columns = {f"mAP@{depth}": lambda row: 100 * row[f"map@{depth}"]}
        columns["MRR@10"] = lambda row: 100 * row["mrr@10"]
    columns["p50 ms"] = lambda row: row["p50_ms"]
    columns["p95 ms"] = lambda row: row["p95_ms"]
    names = ["trained", "queries", "pool", "lane", "n", *columns]
    print(f"| {' | '.join(names)} |" + (" hits |" if mixed else ""))
    print("|---|---|---|---|" + "---:|" * (1 + len(columns)) + ("---|" if mixed else ""))
    for key, rows in found.items():
        cells = [*key, str(sum(row["queries"] for row in rows))]
        cells += [spread([value(row) for row in rows]) for value in columns.values()]
        if mixed:
            kinds = sorted({kind for row in rows for kind in row["modalities"]})
            shares = [
                100 * statistics.fmean(row["modalities"].get(kind, 0.0) for row in rows)
                for kind in kinds
            ]
            cells.append(", ".join(f"{k} {s:.0f}" for k, s in zip(kinds, shares, strict=True)))
        print(f"| {' | '.join(cells)} |", flush=True)


def spread(values: Sequence[float]) -> str:
    """Mean, with the standard deviation if there are several."""
    mean = f"{statistics.fmean(values):.1f}"
    return mean + (f" ± {statistics.pstdev(values):.1f}" if len(values) > 1 else "")


def run(work: Path, *words: str) -> Any:
    """One command, its JSON."""
    done = subprocess.run(
        [CARTQ, *words, "--json"], cwd=work, stdout=subprocess.PIPE, check=False, text=True
    )
    if done.returncode not in (0, 1):
        sys.exit(f"cartq {' '.join(words)} ended with {done.returncode}")
    return json.loads(done.stdout)


def say(text: str) -> None:
    """To standard error, so that the table can be piped."""
    print(text, file=sys.stderr, flush=True)


def read(table: Path) -> list[Row]:
    """Rows of a `metadata.jsonl`."""
    return [json.loads(line) for line in table.read_text().splitlines()]


def place(source: Path, media: Path, rows: Sequence[Row]) -> None:
    """The same media under `media`, without copying, with a table of what may be known."""
    media.mkdir(parents=True, exist_ok=True)
    for row in rows:
        link = media / row["file_name"]
        if not link.exists():
            link.symlink_to((source / row["file_name"]).resolve())
    table = "".join(json.dumps(row) + "\n" for row in rows)
    (media / "metadata.jsonl").write_text(table)


def without_captions(row: Row) -> Row:
    """A row of which nothing is told."""
    return {key: value for key, value in row.items() if key != "captions"}


def make_photos(source: Path, media: Path, known: int) -> list[Row]:
    """Photos, of which the dev ones keep `known` captions; queries are their others."""
    queries, told = [], []
    for row in read(source / "metadata.jsonl"):
        if row["split"] == "dev":
            queries += [
                {"query": text, "relevant": [row["file_name"]]} for text in row["captions"][known:]
            ]
            kept = row["captions"][:known]
            row = {**row, "captions": kept} if kept else without_captions(row)
        told.append(row)
    place(source, media, told)
    return queries


def make_videos(source: Path, media: Path, half: int) -> dict[str, list[Row]]:
    """Clips of which every second one is described; queries for both halves."""
    rows = read(source / "metadata.jsonl")
    place(source, media, [row if n % 2 == half else without_captions(row)
                          for n, row in enumerate(rows)])  # fmt: skip
    asked = [{"query": row["captions"][0], "relevant": [row["file_name"]]} for row in rows]
    return {"described": asked[half::2], "new": asked[1 - half :: 2]}


def make_sounds(source: Path, media: Path, half: int) -> list[Row]:
    """Sounds of which every second one has its first caption; queries for the labels of ESC-10."""
    rows = read(source / "metadata.jsonl")
    told: list[Row] = []
    seen: dict[str, int] = {}
    of_label: dict[str, list[Row]] = {}
    for row in rows:
        label = row.get("label") or row["set"]
        seen[label] = seen.get(label, -1) + 1
        described = seen[label] % 2 == half
        plain = {**without_captions(row), "half": "described" if described else "new"}
        told.append({**plain, "captions": row["captions"][:1]} if described else plain)
        if row["set"] == "esc10":
            of_label.setdefault(label, []).append(row)
    place(source, media, told)
    return [
        {"query": text, "relevant": [row["file_name"] for row in group]}
        for group in of_label.values()
        for text in sorted({row["captions"][1] for row in group if len(row["captions"]) > 1})
    ]


def photos(known: int) -> Callable[[Path, Path], list[Task]]:
    """The protocols over photos."""

    def tasks(data: Path, work: Path) -> list[Task]:
        queries = make_photos(data / "photos", work / "media", known)
        pools = {"dev": ["--filter", "split=dev"], "all": []}
        return [Task(work, {"dev": queries}, {"dev": pools})]

    return tasks


def videos(data: Path, work: Path) -> list[Task]:
    """Both halves of the clips."""
    return [
        Task(work / str(half), make_videos(data / "videos", work / str(half) / "media", half),
             {"described": {"all": []}, "new": {"all": []}})
        for half in (0, 1)
    ]  # fmt: skip


def sounds(data: Path, work: Path) -> list[Task]:
    """Both halves of the sounds. The pool of one half: what is right there alone is counted."""
    out = []
    for half in (0, 1):
        folder = work / str(half)
        queries = make_sounds(data / "sounds", folder / "media", half)
        told = {row["file_name"]: row["half"] for row in read(folder / "media/metadata.jsonl")}
        kinds = {
            name: [
                {**one, "relevant": [path for path in one["relevant"] if told[path] == name]}
                for one in queries
            ]
            for name in ("described", "new")
        }
        pools = {name: {name: ["--filter", f"half={name}"]} for name in kinds}
        asked = {**kinds, "all": queries}
        out.append(Task(folder, asked, {**pools, "all": {"all": []}}, depth=50))
    return out


def mixed(data: Path, work: Path) -> list[Task]:
    """Photos, clips and sounds in one collection; one caption of each dev photo is asked."""
    clips = make_videos(data / "videos", work / "media/videos", 0)
    queries = {
        "photos": make_photos(data / "photos", work / "media/photos", 0)[::5],
        "videos": clips["described"] + clips["new"],
        "sounds": make_sounds(data / "sounds", work / "media/sounds", 0),
    }
    kinds = {"photos": "image", "videos": "video", "sounds": "audio"}
    pools = {
        kind: {"all": [], f"{modality} alone": ["--modality", modality]}
        for kind, modality in kinds.items()
    }
    return [Task(work, queries, pools)]


PROTOCOLS: dict[str, Callable[[Path, Path], list[Task]]] = {
    "new": photos(0),
    "captioned": photos(4),
    "videos": videos,
    "sounds": sounds,
    "mixed": mixed,
}


if __name__ == "__main__":
    main()
