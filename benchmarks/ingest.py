"""Speed and memory of the ingestion, and where its time goes: a Markdown table, then JSON rows.

    python benchmarks/ingest.py ../shared/data [--repeat 3] [--again]
    python benchmarks/ingest.py ../shared/data --kinds photos --files 2000 10000

Every run is a process of its own with a new index; of several, the median by wall time is shown.
More files than there are: the same ones again, under other names.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cart_qdrant.embedders.registry import open_embedder
from cart_qdrant.index.index import Index
from cart_qdrant.index.ingest import Ingest
from cart_qdrant.index.report import IngestOptions, IngestReport

KINDS = ("photos", "videos", "sounds")
TABLE = "metadata.jsonl"

# Column, key of a row, format.
COLUMNS = (
    ("kind", "kind", "{}"),
    ("files", "files", "{:,}"),
    ("wall s", "seconds", "{:.1f}"),
    ("files/s", "files/s", "{:.1f}"),
    ("s of media/s", "media/s", "{:.1f}"),
    ("embedder", "embedder", "{:.1%}"),
    ("waiting for decoders", "waiting", "{:.1%}"),
    ("writing", "writing", "{:.1%}"),
    ("identifiers", "identifiers", "{:.1%}"),
    ("rest", "rest", "{:.1%}"),
    ("CPU s", "cpu_seconds", "{:.1f}"),
    ("peak RSS, MB", "peak_rss_mb", "{:,}"),
)


def main() -> None:
    """Measure every kind, or be one of the processes that do."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with photos, videos, sounds; or one kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--files", nargs="+", type=int, default=[None], help="files of a kind")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each row")
    parser.add_argument("--again", action="store_true", help="also time a second, unchanged run")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.data, again=given.again)))
        return
    kinds = [given.data / kind for kind in given.kinds if (given.data / kind).is_dir()]
    rows = []
    for kind in kinds or [given.data]:
        for files in given.files:
            with corpus(kind, files) as folder:
                runs = [_in_process(folder, again=given.again) for _ in range(given.repeat)]
            runs.sort(key=lambda run: float(run["seconds"]))
            rows.append({"kind": kind.name, **runs[len(runs) // 2]})
    print(table(rows, again=given.again))
    for row in rows:
        print(json.dumps({"benchmark": "ingest", **row}))


@contextmanager
def corpus(source: Path, files: int | None) -> Iterator[Path]:
    """The folder, or one with links to so many of its files, their captions among them."""
    if files is None:
        yield source
        return
    rows = [json.loads(line) for line in (source / TABLE).read_text().splitlines()]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        taken = []
        for n in range(files):
            row = rows[n % len(rows)]
            name = f"{n // len(rows)}-{row['file_name']}"
            (folder / name).symlink_to((source / row["file_name"]).resolve())
            taken.append(json.dumps({**row, "file_name": name}) + "\n")
        (folder / TABLE).write_text("".join(taken))
        yield folder


def _in_process(folder: Path, *, again: bool) -> dict[str, Any]:
    words = [sys.executable, __file__, str(folder), "--measure", *(["--again"] if again else [])]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{folder.name}: {row['seconds']} s", file=sys.stderr)
    return row


def measure(folder: Path, *, again: bool = False) -> dict[str, Any]:
    """Ingest a folder into a temporary index; times in seconds, shares of the wall time."""
    load, cpu = os.getloadavg()[0], _cpu_seconds()
    with (
        tempfile.TemporaryDirectory() as scratch,
        Index.create(Path(scratch) / ".cartq", open_embedder("lite")) as index,
    ):
        report = _run(index, folder)
        row = _row(report) | {
            "cpu_seconds": round(_cpu_seconds() - cpu, 2),
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "load_before": round(load, 2),
            "cores": os.cpu_count(),
        }
        if again:
            row["again_seconds"] = round(_run(index, folder).seconds, 3)
    return row


def _run(index: Index, folder: Path) -> IngestReport:
    with index.folder.lock():
        return Ingest(index, IngestOptions(paths=[folder], follow=True)).run()


def _cpu_seconds() -> float:
    used = os.times()
    return used.user + used.system


def _row(report: IngestReport) -> dict[str, Any]:
    shares = {
        "embedder": report.embed_seconds,
        "waiting": report.wait_seconds,
        "writing": report.write_seconds,
        "identifiers": report.identify_seconds,
    }
    shares["rest"] = report.seconds - sum(shares.values())
    return {
        "files": report.files,
        "segments": report.segments,
        "failed": len(report.failed),
        "seconds": round(report.seconds, 2),
        "files/s": round(report.files / report.seconds, 2),
        "media/s": round(report.media_seconds / report.seconds, 2),
        **{name: round(seconds / report.seconds, 4) for name, seconds in shares.items()},
    }


def table(rows: list[dict[str, Any]], *, again: bool) -> str:
    """Rows as a Markdown table."""
    columns = [*COLUMNS, *([("unchanged run, s", "again_seconds", "{:.2f}")] if again else [])]
    lines = [[name for name, _, _ in columns], ["---", *["---:"] * (len(columns) - 1)]]
    lines += [[form.format(row[key]) for _, key, form in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
