"""Fitting identifiers and assigning them, at scale.

    python benchmarks/identifiers.py --items 20000 100000 1000000 --dim 1024

Makes unit vectors in a file: mixtures `l a + (1 - l) b` of two centres of one family,
`l ~ Beta(2, 2)`, plus noise of half their length; 64 families of 64 centres each, drawn around a
centre of their own.
Identifiers are fitted as an index does it by default, and given to all vectors, in a process of its
own for each size, whose peak memory counts the pages of the file as well. Prints one Markdown
table; the error is that of the first 100,000 vectors.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.arrays.vectors import unique_ratio
from cart_qdrant.identifiers.codec import IdentifierConfig, fit_codec

FAMILIES, MEMBERS = 64, 64
SPREAD, NOISE = 0.8, 0.5
BLOCK = 50_000
JUDGED = 100_000


def main() -> None:
    """Make the vectors, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--items", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", default="rkmeans", choices=("auto", "rkmeans"))
    parser.add_argument("--folder", type=Path, help="where the vectors lie meanwhile")
    given = parser.parse_args()
    print(
        "| vectors | K | V | M | fit s | U | relative error | assigned a second | peak GB | "
        "of that, vectors |\n|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    )
    for items in given.items:
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            path = Path(folder) / "vectors.npy"
            make(path, items, given.dim)
            one = multiprocessing.get_context("spawn").Process(
                target=measure, args=(path, given.seed, given.method)
            )
            one.start()
            one.join()
        if one.exitcode:
            sys.exit(f"{items} vectors: the measurement ended with {one.exitcode}")


def make(path: Path, count: int, dim: int) -> None:
    """Write vectors (N, D) block by block."""
    rng = np.random.default_rng(0)
    family = unit(rng.standard_normal((FAMILIES, 1, dim), dtype=np.float32))
    spread = SPREAD / np.sqrt(dim) * rng.standard_normal((FAMILIES, MEMBERS, dim))
    centres = unit(family + spread.astype(np.float32))
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(count, dim))
    for begin in range(0, count, BLOCK):
        end = min(begin + BLOCK, count)
        of, a, b = (rng.integers(0, n, end - begin) for n in (FAMILIES, MEMBERS, MEMBERS))
        share = rng.beta(2, 2, (end - begin, 1)).astype(np.float32)
        mixed = share * centres[of, a] + (1 - share) * centres[of, b]
        noise = rng.standard_normal(mixed.shape, dtype=np.float32)
        out[begin:end] = unit(mixed + np.float32(NOISE / np.sqrt(dim)) * noise)
    out.flush()


def unit(x: FloatArray) -> FloatArray:
    """At length 1, along the last axis."""
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), dtype=np.float32)


def measure(path: Path, seed: int, method: str) -> None:
    """Print one row of the table."""
    x_ND = np.load(path, mmap_mode="r", allow_pickle=False)
    config = IdentifierConfig(seed=seed, method="auto" if method == "auto" else "rkmeans")
    begin = time.perf_counter()
    (quantizer,) = fit_codec({"made": x_ND}, config).quantizers.values()
    fitted = time.perf_counter()
    codes_NL = quantizer.encode(x_ND)
    assigned = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # of KiB
    error = quantizer.relative_error(x_ND[:JUDGED], codes_NL[:JUDGED])
    m, v, _ = quantizer.books_MVD.shape
    print(
        f"| {len(x_ND):,} | {len(quantizer.centers_KD):,} | {v} | {m} | {fitted - begin:.0f} "
        f"| {unique_ratio(codes_NL):.3f} | {error:.4f} "
        f"| {len(x_ND) / (assigned - fitted):,.0f} | {peak:.1f} | {x_ND.nbytes / 2**30:.1f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
