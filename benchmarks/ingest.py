"""Speed of the ingestion: files and seconds of media per second, and time outside the embedder.

    python benchmarks/ingest.py ../shared/data/photos [--limit 1000] [--again]

Makes a temporary index, prints a table and then one JSON row.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

from cart_qdrant.config import SegmentConfig
from cart_qdrant.errors import CartError
from cart_qdrant.index.embedders import open_embedder
from cart_qdrant.index.ingest import Ingest, IngestOptions, IngestReport
from cart_qdrant.index.library import Library
from cart_qdrant.index.media import probe
from cart_qdrant.index.scan import scan


def main() -> None:
    """Measure one folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=int, help="files at most, in order of name")
    parser.add_argument("--again", action="store_true", help="also time a second, unchanged run")
    given = parser.parse_args()
    entries = scan([given.folder], base=given.folder).entries
    paths = [e.path for e in entries if e.path.suffix not in (".jsonl", ".csv", ".md")]
    paths = paths[: given.limit]
    with tempfile.TemporaryDirectory() as scratch:
        embedder = open_embedder("lite")
        with Library.create(Path(scratch) / ".cartq", embedder) as library:
            sources = [given.folder] if given.limit is None else paths
            load = os.getloadavg()[0]
            row = _row(_run(library, sources)) | {"load_before": round(load, 2)}
            if given.again:
                row["again_seconds"] = round(_run(library, sources).seconds, 3)
    row["media_seconds"] = round(_media_seconds(paths), 1)
    row["media_seconds/s"] = round(row["media_seconds"] / row["seconds"], 2)
    for name, value in row.items():
        print(f"{name:24} {value}", file=sys.stderr)
    print(json.dumps({"benchmark": "ingest", "folder": given.folder.name, **row}))


def _run(library: Library, paths: list[Path]) -> IngestReport:
    with library.folder.lock():
        return Ingest(library, IngestOptions(paths=paths)).run()


def _row(report: IngestReport) -> dict[str, Any]:
    outside = report.seconds - report.embed_seconds
    return {
        "files": report.files,
        "segments": report.segments,
        "failed": len(report.failed),
        "seconds": round(report.seconds, 2),
        "files/s": round(report.files / report.seconds, 2),
        "embed_seconds": round(report.embed_seconds, 2),
        "outside_embedder": round(outside / report.seconds, 4),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "cores": os.cpu_count(),
    }


def _media_seconds(paths: list[Path]) -> float:
    """Length of all sound and video."""
    total = 0.0
    for path in paths:
        try:
            total += probe(path, SegmentConfig()).duration or 0.0
        except CartError:
            continue  # reported by the run
    return total


if __name__ == "__main__":
    main()
