"""Faults on purpose: damaged media, hostile queries; `faults_*.py` beside it have further ones.

    nice -n 10 python -m benchmarks.faults media --files 1000
    nice -n 10 python -m benchmarks.faults queries --queries 1000

Each prints a table for `docs/benchmarks.md` ("Load and faults") and a JSON row, and ends with 1
where something broke.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks import faults_media, faults_queries
from cart_qdrant.embedders.registry import open_embedder
from cart_qdrant.index.index import Index
from cart_qdrant.index.ingest import Ingest
from cart_qdrant.index.report import IngestOptions

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def main() -> int:
    """Run one kind of fault; the exit code says whether something broke."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    media = commands.add_parser("media", help="damaged media files")
    media.add_argument("--files", type=int, default=1000)
    media.add_argument("--embedder", default="lite")
    queries = commands.add_parser("queries", help="hostile queries and filters")
    queries.add_argument("--queries", type=int, default=1000)
    for one in (media, queries):
        one.add_argument("--seed", type=int, default=0)
        one.add_argument("--data", type=Path, default=DATA)
        one.add_argument("--keep", type=Path, help="folder to work in, which is kept")
    worker = commands.add_parser("media-worker")
    worker.add_argument("paths", nargs="*")
    given = parser.parse_args()
    if given.command == "media-worker":
        faults_media.work(given.paths)
        return 0
    with tempfile.TemporaryDirectory(prefix="cartq-faults-") as scratch:
        folder = given.keep or Path(scratch)
        if given.command == "media":
            found = faults_media.media_faults(
                given.data, folder, files=given.files, seed=given.seed, embedder=given.embedder
            )
            faults_media.show(found)
            too_much = max(found.memory, found.ingest_memory) > faults_media.MOST_MEMORY
            broken = bool(found.crashed or found.hung or found.unnamed or too_much)
            return int(broken or found.ingest_code not in (0, 1))
        asked = faults_queries.query_faults(
            _index(given.data, folder), queries=given.queries, seed=given.seed
        )
        faults_queries.show(asked)
        return int(any(one.broken for one in asked))


def _index(data: Path, folder: Path) -> Path:
    """An index of forty photos."""
    root = folder / ".cartq"
    with Index.create(root, open_embedder("lite")) as index, index.folder.lock():
        photos = sorted((data / "photos").rglob("*.jpg"))[:40]
        Ingest(index, IngestOptions(paths=photos)).run()
    return root


if __name__ == "__main__":
    sys.exit(main())
