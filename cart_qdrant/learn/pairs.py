"""What a generator learns from: items, their texts, and the split that keeps it honest.

Two things are held out: whole *items*, as if they had just arrived without a caption, and single
*captions* of items that keep their others. A split by caption alone hides that a generator
memorises its items. Shape legend: N items, P pairs, D vector width, W sentence width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cart_qdrant.index.identify import Vectors, read_vectors
from cart_qdrant.index.library import Library
from cart_qdrant.records import Caption

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.intp]

MAX_CAPTIONS = 10
"""Captions of one item that are learned from."""
HOLD_OUT = 0.1
"""Share of captioned items held out, and of further items that hold out one caption."""
MAX_HELD = 600
"""Items held out of each kind at most."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """All items and all texts of an index.

    Attributes:
        vectors: Media vectors, ids and spaces of the items.
        texts: Text of each pair (P).
        item_P: Item of each pair.
        weak_P: Whether the text is a guess (file name, label).
        captioned: Items that have a caption of whatever kind (N,).
    """

    vectors: Vectors
    texts: list[str]
    item_P: IntArray
    weak_P: npt.NDArray[np.bool_]
    captioned: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.vectors.ids)


def read_corpus(
    library: Library, label: Callable[[FloatArray, str], list[str] | None] | None = None
) -> Corpus:
    """Read items and captions; items without any text get a weak label where there is a labeller.

    Args:
        label: Names what vectors x_ND of a space show, one label each; None for no labels.
    """
    vectors = read_vectors(library)
    row = {one: n for n, one in enumerate(vectors.ids)}
    texts: list[str] = []
    items: list[int] = []
    weak: list[bool] = []
    captioned = np.zeros(len(vectors.ids), dtype=bool)
    for record in library.store.scroll(with_payload=["captions"]):
        n = row.get(str(record.id))
        if n is None:
            continue
        payload: dict[str, Any] = record.payload or {}
        captions = [Caption.from_payload(c) for c in payload.get("captions", [])]
        strong = [c for c in captions if not c.is_weak] or captions
        for caption in strong[:MAX_CAPTIONS]:
            texts.append(caption.text)
            items.append(n)
            weak.append(caption.is_weak)
        captioned[n] = bool(strong)
    if label is not None and not texts:
        for space in np.unique(vectors.spaces):
            rows = np.flatnonzero(vectors.spaces == space)
            labels = label(vectors.x_ND[rows], str(space)) or []
            texts += labels
            items += [int(row) for row in rows[: len(labels)]]
            weak += [True] * len(labels)
    return Corpus(vectors, texts, np.asarray(items, np.intp), np.asarray(weak, np.bool_), captioned)


@dataclass(frozen=True, slots=True)
class Split:
    """Which pairs train, and which judge.

    Attributes:
        train_P: Pairs learned from.
        new_P: Pairs of held-out items: queries for items that training never saw.
        known_P: Held-out captions of items whose other captions are known.
        held_items: Held-out items (N,) bool.
    """

    train_P: IntArray
    new_P: IntArray
    known_P: IntArray
    held_items: npt.NDArray[np.bool_]


def split_pairs(corpus: Corpus, seed: int = 0) -> Split:
    """Hold out items and captions; a collection of under 20 described items holds out nothing."""
    rng = np.random.default_rng(seed)
    described = np.unique(corpus.item_P)
    held = np.zeros(len(corpus), dtype=bool)
    everything = np.arange(len(corpus.item_P))
    none = np.empty(0, dtype=np.intp)
    if len(described) < 20:
        return Split(everything, none, none, held)
    count = min(MAX_HELD, int(len(described) * HOLD_OUT))
    shuffled = rng.permutation(described)
    held[shuffled[:count]] = True
    new = np.flatnonzero(held[corpus.item_P])
    pairs_of = np.bincount(corpus.item_P, minlength=len(corpus))
    candidates = [n for n in shuffled[count:] if pairs_of[n] > 1][:count]
    last = {int(i): p for p, i in enumerate(corpus.item_P)}
    known = np.asarray(sorted(last[int(n)] for n in candidates), dtype=np.intp)
    train = np.setdiff1d(everything, np.concatenate([new, known]))
    return Split(train, new, known, held)


def caption_vectors(
    corpus: Corpus, text_PW: FloatArray, keep_P: npt.NDArray[np.bool_]
) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Mean sentence vector of each item's kept captions.

    Returns:
        Unit vectors (N, W), zero where an item has none, and which items have one (N,).
    """
    n = len(corpus)
    sums = np.zeros((n, text_PW.shape[1]), dtype=np.float32)
    kept = np.flatnonzero(keep_P)
    np.add.at(sums, corpus.item_P[kept], text_PW[kept])
    has = np.bincount(corpus.item_P[kept], minlength=n) > 0
    norm = np.linalg.norm(sums, axis=1, keepdims=True)
    return sums / np.maximum(norm, 1e-12), has
