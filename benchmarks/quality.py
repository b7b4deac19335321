"""Recall of every lane on real photos and clips, before and after training.

    python benchmarks/quality.py new ../shared/data --work /tmp/new
    python benchmarks/quality.py captioned ../shared/data --work /tmp/captioned
    python benchmarks/quality.py videos ../shared/data --work /tmp/videos

`new`: the dev photos are ingested without captions; queries are all their captions. `captioned`:
they keep captions 0 to 3; the query is caption 4. `videos`: every second clip has its caption as a
sidecar; queries are the captions of all. Runs the command line as a user would, in `--work`; what
is ingested or trained already is used again. Prints one Markdown table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CARTQ = Path(sys.executable).with_name("cartq")
BASELINES = ("dense", "caption", "bm25", "rrf")
LANES = (*BASELINES, "generative", "fused", "auto")


def main() -> None:
    """Make the folder, run the command line, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("protocol", choices=["new", "captioned", "videos"])
    parser.add_argument("data", type=Path, help="folder with photos/ and videos/")
    parser.add_argument("--work", type=Path, required=True, help="folder to work in; it is kept")
    parser.add_argument("--profile", default="default", help="of `cartq train`")
    parser.add_argument("--again", action="store_true", help="train again on what is ingested")
    parser.add_argument("--seeds", type=int, default=1, help="train so often, from 0 on")
    parser.add_argument("--no-zero-shot", action="store_true", help="do not search before training")
    given = parser.parse_args()
    work: Path = given.work
    work.mkdir(parents=True, exist_ok=True)
    if given.protocol == "videos":
        queries = make_videos(given.data / "videos", work)
        filters: list[list[str]] = [[]]
    else:
        queries = make_photos(given.data / "photos", work, given.protocol)
        filters = [["--filter", "split=dev"], []]
    (work / "queries.jsonl").write_text("".join(json.dumps(q) + "\n" for q in queries))
    rows: list[list[str]] = []
    if not (work / ".cartq").exists():
        report = run(work, "ingest", "media")
        say(f"ingest: {report['files']} files, {report['seconds']:.0f} s")
        if not given.no_zero_shot:
            for chosen in filters:
                rows += evaluate(work, "before", [*BASELINES, "fused"], chosen)
    trained: list[list[list[str]]] = []
    for seed in range(given.seeds):
        path = work / f"train-{seed}.json"
        # Of several seeds the index holds the last one only.
        if given.again or given.seeds > 1 or not path.exists():
            report = run(work, "train", "--profile", given.profile, "--seed", str(seed))
            path.write_text(json.dumps(report, indent=1))
        report = json.loads(path.read_text())
        keys = ("profile", "seconds", "val_r10", "identifiers", "gates", "router", "ece")
        say("train: " + json.dumps({key: report[key] for key in keys}))
        trained.append(
            [row for chosen in filters for row in evaluate(work, given.profile, LANES, chosen)]
        )
    rows += [over_seeds(same) for same in zip(*trained, strict=True)]
    print(f"| trained | pool | lane | {' | '.join(COLUMNS)} |")
    print("|---|---|---|" + "---:|" * len(COLUMNS))
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


COLUMNS = ("queries", "R@1", "R@5", "R@10", "MRR@10", "p50 ms", "p95 ms")


def over_seeds(rows: Sequence[Sequence[str]]) -> list[str]:
    """One row of the same lane over all seeds: means, with standard deviations if there are
    several."""
    out = list(rows[0])
    for n in range(4, len(out)):
        values = [float(row[n]) for row in rows]
        out[n] = f"{statistics.fmean(values):.1f}"
        if len(values) > 1:
            out[n] += f" ± {statistics.pstdev(values):.1f}"
    return out


def evaluate(
    work: Path, trained: str, lanes: Sequence[str], chosen: Sequence[str]
) -> list[list[str]]:
    """Rows of the table."""
    given = [word for lane in lanes for word in ("--lane", lane)]
    found = run(work, "eval", "queries.jsonl", *given, *chosen)
    pool = chosen[-1] if chosen else "all"
    return [
        [
            trained, pool, one["lane"], str(one["queries"]),
            *(f"{100 * one['recall'][k]:.1f}" for k in ("1", "5", "10")),
            f"{100 * one['mrr@10']:.1f}", f"{one['p50_ms']:.1f}", f"{one['p95_ms']:.1f}",
        ]
        for one in found["lanes"]
    ]  # fmt: skip


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


def read(table: Path) -> list[dict[str, Any]]:
    """Rows of a `metadata.jsonl`."""
    return [json.loads(line) for line in table.read_text().splitlines()]


def link(source: Path, media: Path, names: Sequence[str]) -> None:
    """The same media under `media`, without copying."""
    media.mkdir(exist_ok=True)
    for name in names:
        if not (media / name).exists():
            (media / name).symlink_to((source / name).resolve())


def make_photos(source: Path, work: Path, protocol: str) -> list[dict[str, Any]]:
    """Photos with a table that hides what is asked; returns the queries."""
    rows = read(source / "metadata.jsonl")
    link(source, work / "media", [row["file_name"] for row in rows])
    hidden = 0 if protocol == "new" else 4  # captions of a dev photo that are known
    queries = []
    for row in rows:
        if row["split"] != "dev":
            continue
        asked = row["captions"][hidden:]
        queries += [{"query": text, "relevant": [row["file_name"]]} for text in asked]
        row["captions"] = row["captions"][:hidden]
        if not row["captions"]:
            del row["captions"]
    table = "".join(json.dumps(row) + "\n" for row in rows)
    (work / "media" / "metadata.jsonl").write_text(table)
    return queries


def make_videos(source: Path, work: Path) -> list[dict[str, Any]]:
    """Clips, every second one with a sidecar; returns the queries."""
    rows = read(source / "metadata.jsonl")
    link(source, work / "media", [row["file_name"] for row in rows])
    for row in rows[::2]:
        name = (work / "media" / row["file_name"]).with_suffix(".txt")
        name.write_text(row["captions"][0] + "\n")
    return [{"query": row["captions"][0], "relevant": [row["file_name"]]} for row in rows]


if __name__ == "__main__":
    main()
