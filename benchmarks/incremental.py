"""What a later ingestion costs: nothing changed, ten files are new, or ten were deleted.

    python benchmarks/incremental.py --sizes 1000 10000 100000
    python benchmarks/incremental.py --sizes 10000 --dim 1024 --against ../before
    python benchmarks/incremental.py --parts 100000 1000000

The collection is made, not ingested: points with vectors of `--dim` numbers (noisy copies of a
fiftieth as many centres), payloads as `cartq ingest --no-captions` writes them; the codebooks are
fitted on 20,000 of them, and every item is coded by them. The files are real: copies of one small
PNG picture, 1,000 in a folder; the stored content hashes are random, no file of the made ones is
opened. Each run is `cartq ingest --no-captions --embedder precomputed` in a process of
its own, in the embedded store; its time is that of the command without the start of Python and
imports: on the clock, and of the processor, which other work on the machine changes less. The
memory is the highest of the process. Ten new files are pictures that are decoded, and
whose vectors come from a file; ten deleted files leave by `--prune`. Medians of `--repeat` runs.
`--against` does the same with another checkout of this repository; the ratio is of processor time.
`--parts` times prefix tree and item table alone, in memory: both built of made identifiers, and ten
items replaced in both.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cart_qdrant.arrays.point_ids import KEY_BYTES, keys_of
from cart_qdrant.arrays.types import FloatArray, IntArray
from cart_qdrant.arrays.vectors import unique_ratio
from cart_qdrant.captions.reader import CaptionReader
from cart_qdrant.embedders.precomputed import PrecomputedEmbedder
from cart_qdrant.files import save_arrays
from cart_qdrant.identifiers.codec import DisambiguationTokens, fit_codec
from cart_qdrant.identifiers.item_edits import Items
from cart_qdrant.identifiers.item_table import ItemTable, file_number
from cart_qdrant.identifiers.quantizer import Codec
from cart_qdrant.identifiers.trie import Trie
from cart_qdrant.index.collection import KEY
from cart_qdrant.index.identifier_files import save_part
from cart_qdrant.index.index import Index
from cart_qdrant.index.manifest import Artifact, IdentifierInfo
from cart_qdrant.index.plan import make_plan
from cart_qdrant.index.writer import PointWriter, Row
from cart_qdrant.media.scan import FileEntry, scan
from cart_qdrant.records import Identifier, Modality, Segment

SIZES = (1_000, 10_000, 100_000)
SAMPLE = 20_000
CHANGED = 10
"""Files that are added, and that are deleted."""
FOLDER = 1_000
"""Files in a folder."""
RUNS = ("nothing", "new", "deleted")
ROOT = Path(__file__).resolve().parents[1]


def picture(seed: int) -> bytes:
    """A PNG picture of noise, 8 by 8."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


PICTURE = picture(0)


def main() -> None:
    """Measure each size, print a row for each run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="points")
    parser.add_argument("--parts", type=int, nargs="+", help="identifiers of tree and table alone")
    parser.add_argument("--dim", type=int, default=64, help="width of the vectors")
    parser.add_argument("--repeat", type=int, default=3, help="runs of a kind")
    parser.add_argument("--against", type=Path, help="another checkout to compare with")
    parser.add_argument("--folder", type=Path, help="where indexes are made; temporary if not")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--make", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.parts:
        time_parts(given.parts)
    elif given.make:
        make_index(given.folder, given.make, given.dim)
    elif given.one:
        print(json.dumps(one_run(given.folder, prune=given.one == "deleted")))
    else:
        compare(given)


def time_parts(sizes: list[int]) -> None:
    """Print what building and editing tree and table takes."""
    print("| identifiers | build, CPU ms | replace ten, CPU ms |\n|---:|---:|---:|")
    rng = np.random.default_rng(0)
    for size in sizes:
        codes = [rng.integers(0, top, size) for top in (max(size // 24, 1), 256, 256, 256)]
        row_NL = np.unique(np.stack([*codes, np.zeros(size, int)], axis=1), axis=0).astype(np.int32)
        count = len(row_NL)
        items = [
            rng.permutation(np.frombuffer(rng.bytes(KEY_BYTES * count), f"S{KEY_BYTES}")), row_NL,
            rng.random(count, np.float32), np.zeros(count, np.uint8),
            rng.integers(0, 2**63, count).astype(np.uint64), rng.random(count, np.float32),
        ]  # fmt: skip
        order = rng.permutation(count)
        new, old = (
            Items(*(column[some] for column in items)) for some in np.split(order, [CHANGED])
        )
        begin = time.process_time()
        parts = old.build()
        built = time.process_time()
        edited = new.replace_in(*parts, old.key_C[:CHANGED])
        if edited is None or len(edited[0]) != len(old):
            raise SystemExit("Tree and table cannot be edited.")
        took = [built - begin, time.process_time() - built]
        print(
            f"| {size:,} | " + " | ".join(f"{1000 * one:,.0f}" for one in took) + " |", flush=True
        )


def compare(given: argparse.Namespace) -> None:
    """Print the table."""
    against: Path | None = given.against
    checkouts = {"after": ROOT} if against is None else {"before": against.resolve(), "after": ROOT}
    columns = [f"{name} {what}" for name in checkouts for what in ("s", "CPU s", "MB")]
    columns += ["ratio"] if against else []
    print("| points | changed | " + " | ".join(columns) + " |")
    print("|---:|---|" + "---:|" * len(columns))
    for size in given.sizes:
        found = {}
        for name, checkout in checkouts.items():
            with tempfile.TemporaryDirectory(dir=given.folder) as folder:
                found[name] = measure(checkout, Path(folder), size, given)
        for kind in RUNS:
            rows = [found[name][kind] for name in checkouts]
            cells = [
                cell
                for wall, cpu, mb in rows
                for cell in (f"{wall:,.2f}", f"{cpu:,.2f}", f"{mb:,.0f}")
            ]
            if against is not None:
                cells.append(f"{rows[0][1] / rows[1][1]:.1f}")
            print(f"| {size:,} | {kind} | " + " | ".join(cells) + " |", flush=True)


def measure(
    checkout: Path, folder: Path, size: int, given: argparse.Namespace
) -> dict[str, tuple[float, float, float]]:
    """Median seconds on the clock and of the processor, and megabytes, of each kind of run."""
    words = ["--dim", str(given.dim)]
    call(checkout, folder, "--make", str(size), *words)
    took: dict[str, list[dict[str, float]]] = {kind: [] for kind in RUNS}
    for number in range(given.repeat + 1):  # the first is not counted: files and pages are cold
        for kind in RUNS:
            change_files(folder, kind, number, given.dim)
            row = json.loads(call(checkout, folder, "--one", kind, *words))
            wanted = [CHANGED * (kind == "new"), CHANGED * (kind == "deleted"), []]
            if [row["segments"], row["removed"], row["failed"]] != wanted:
                raise SystemExit(f"{kind}: {row}")
            if number or not given.repeat:
                took[kind].append(row)
    return {
        kind: (
            statistics.median(row["seconds"] for row in rows),
            statistics.median(row["cpu"] for row in rows),
            statistics.median(row["mb"] for row in rows),
        )
        for kind, rows in took.items()
    }


def call(checkout: Path, folder: Path, *words: str) -> str:
    """Run this file with the package of a checkout."""
    path = os.pathsep.join(str(checkout / part) for part in ("", "cli"))
    return subprocess.run(
        [sys.executable, __file__, "--folder", str(folder), *words],
        env={**os.environ, "PYTHONPATH": path}, check=True, stdout=subprocess.PIPE, text=True,
    ).stdout  # fmt: skip


def change_files(folder: Path, kind: str, number: int, dim: int) -> None:
    """Add or delete ten files."""
    media = folder / "media"
    if kind == "deleted":
        for path in sorted((media / "0").iterdir())[:CHANGED]:
            path.unlink()
    if kind == "new":
        paths = [f"new/{number}-{n}.png" for n in range(CHANGED)]
        (media / "new").mkdir(exist_ok=True)
        for n, one in enumerate(paths):
            (media / one).write_bytes(picture(1 + number * CHANGED + n))
        np.savez(
            folder / "vectors.npz", vectors=make_vectors(CHANGED, dim, seed=number),
            paths=np.asarray([f"media/{path}" for path in paths]),
        )  # fmt: skip


def one_run(folder: Path, *, prune: bool) -> dict[str, Any]:
    """One ingestion in this process: its seconds, memory and report."""
    from cart_qdrant.index import health, ingest  # noqa: F401
    from cart_qdrant.index.report import IngestOptions
    from cart_qdrant.progress import Silent
    from cart_qdrant_cli.ingest import run_ingest
    from cart_qdrant_cli.options import Target

    fields = dict.fromkeys(Target.__dataclass_fields__)
    values: Any = {**fields, "index": folder / ".cartq", "verbose": False}
    target = Target(**values)
    options = IngestOptions(paths=[folder / "media"], use_captions=False, prune=prune)
    begin, worked = time.perf_counter(), time.process_time()
    done = run_ingest(
        target,
        options,
        Silent(),
        embedder="precomputed",
        vectors=folder / "vectors.npz",
    )
    seconds, cpu = time.perf_counter() - begin, time.process_time() - worked
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    report = done.report
    return {
        "seconds": seconds, "cpu": cpu, "mb": memory, "segments": report.segments,
        "removed": report.removed, "failed": [failure.path for failure in report.failed],
    }  # fmt: skip


def make_index(folder: Path, size: int, dim: int) -> None:
    """An index of `size` items and its files in `folder`."""
    media = folder / "media"
    for n in range(size):
        path = media / str(n // FOLDER) / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PICTURE)
    x_ND = make_vectors(size, dim)
    np.savez(folder / "vectors.npz", vectors=x_ND[:1], paths=np.asarray(["media/none.png"]))
    embedder = PrecomputedEmbedder.from_file(folder / "vectors.npz")
    found = scan([media], base=folder)
    reader = CaptionReader(base=folder, roots=[media])
    plan = make_plan(found, {}, reader, base=folder, roots=[media], use_captions=False)
    with Index.create(folder / ".cartq", embedder) as index, index.folder.lock():
        (space,) = set(embedder.spaces.values())
        codec = fit_codec({space: x_ND[:SAMPLE]})
        quantizer = replace(codec.quantizers[space], fitted_on=size)
        rows_NL = DisambiguationTokens().complete(quantizer.encode(x_ND))
        writer = PointWriter(index, use_captions=False)
        for job, row_L, x_D in zip(plan.fresh, rows_NL, x_ND, strict=True):
            *codes, token = row_L.tolist()
            cart = Identifier(tuple(codes), token).to_payload()
            segment = Segment(job.entry.rel, Modality.IMAGE)
            row = Row(segment, x_D.tolist(), {KEY: cart})
            writer.put(job, [row], os.urandom(16).hex(), ())
        writer.flush()
        index.store.flush()
        put_identifiers(index, Codec({space: quantizer}), found.entries, rows_NL)
        (index.folder.work / "changed").unlink()  # all is up to date


def put_identifiers(
    index: Index, codec: Codec, entries: tuple[FileEntry, ...], rows_NL: IntArray
) -> None:
    """Store books, tree and table, and put them in force."""
    trie = Trie.build(rows_NL)
    table = ItemTable.build(
        keys_of(Segment(one.rel, Modality.IMAGE).id for one in entries), trie.nodes(rows_NL),
        np.zeros(len(entries)), np.asarray([file_number(one.rel) for one in entries], np.uint64),
        np.full(len(entries), np.nan),
    )  # fmt: skip
    name = "identifiers-1.safetensors"
    digest = save_arrays(index.folder.root / name, codec.to_arrays(), index.folder.work)
    info = IdentifierInfo(
        version=1, field=KEY, books=Artifact(name, digest), trie=save_part(index, "trie", trie),
        items=save_part(index, "items", table), meta=codec.to_meta(), levels=codec.levels,
        count=len(trie), unique_ratio=unique_ratio(rows_NL[:, :-1]),
    )  # fmt: skip
    index.put(replace(index.manifest, identifiers=info))


def make_vectors(count: int, dim: int, seed: int = 0) -> FloatArray:
    """Unit vectors (count, dim) around a fiftieth as many centres."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(max(count // 50, 1), dim)).astype(np.float32)
    x_ND = centers[rng.integers(0, len(centers), count)]
    x_ND += 0.5 * rng.normal(size=x_ND.shape).astype(np.float32)
    return np.asarray(x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True), np.float32)


if __name__ == "__main__":
    main()
