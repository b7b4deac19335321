"""Small real indexes for the benchmarks of faults: tiny pictures, given vectors, real captions."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cart_qdrant.embedders.precomputed import PrecomputedEmbedder
from cart_qdrant.index.folder import IndexFolder
from cart_qdrant.index.index import Index
from cart_qdrant.index.ingest import Ingest
from cart_qdrant.index.report import IngestOptions, IngestReport

WIDTH = 64
"""Width of the vectors."""
WIDEST = 20_000
"""Pictures that a file of vectors has room for."""


def name_of(number: int) -> str:
    """File name of a picture."""
    return f"picture-{number:06}.png"


def word_of(number: int) -> str:
    """A word that only the caption of this picture has."""
    return f"word{number:06}"


def add_pictures(folder: Path, numbers: Iterable[int]) -> None:
    """Write pictures, each with a caption of its own beside it."""
    from tests import media_factory as media

    folder.mkdir(parents=True, exist_ok=True)
    for n in numbers:
        media.write_image(folder / name_of(n), media.scene(n, width=16, height=12))
        (folder / name_of(n)).with_suffix(".txt").write_text(f"a picture of {word_of(n)} by day\n")
        # A file that was changed a moment ago counts as still being written.
        an_hour_ago = time.time() - 3600
        os.utime(folder / name_of(n), (an_hour_ago, an_hour_ago))


def write_vectors(path: Path) -> None:
    """Random unit vectors for all pictures that there may be."""
    x_ND = np.random.default_rng(0).normal(size=(WIDEST, WIDTH)).astype(np.float32)
    x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
    np.savez(path, vectors=x_ND, paths=np.asarray([name_of(n) for n in range(WIDEST)]))


def ingest(root: Path, vectors: Path, media: Path, **options: object) -> IngestReport:
    """Ingest a folder of such pictures, as `cartq ingest` does."""
    folder = IndexFolder(root)
    with folder.lock(patience=120):
        if folder.exists():
            index = Index.open(root)
            index.vectors_file = vectors
        else:
            index = Index.create(root, PrecomputedEmbedder.from_file(vectors))
        with index:
            return Ingest(index, IngestOptions(paths=[media], **options)).run()  # type: ignore[arg-type]
