"""Corpora without content, for tests."""

from __future__ import annotations

import numpy as np

from cart_qdrant.index.points import Vectors
from cart_qdrant.training.corpus import Corpus


def made_corpus(texts: list[str], items: list[int], files: list[int]) -> Corpus:
    """Items without content; a text and its item for each pair, and the file of each item."""
    n = len(files)
    vectors = Vectors(
        [str(k) for k in range(n)], np.zeros((n, 2), np.float32), np.asarray(["s"] * n),
        np.zeros(n, np.uint8), np.asarray(files, np.uint64),
    )  # fmt: skip
    return Corpus(
        vectors, texts, np.asarray(items, np.intp), np.ones(len(texts), np.float32),
        np.isin(np.arange(n), items), np.asarray(files, np.intp), np.asarray(["image"] * n),
    )  # fmt: skip
