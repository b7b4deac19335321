"""The split of a corpus into training pairs and held-out pairs.

Two things are held out: whole *items*, as if they had just arrived without a caption, and single
*captions* of items that keep their others. A split by caption alone hides that a generator
memorises its items. Shape legend: N items, P pairs.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cart_qdrant.arrays.types import IndexArray
from cart_qdrant.training.corpus import Corpus
from cart_qdrant.training.shared_texts import text_numbers

HOLD_OUT = 0.1
"""Share of captioned items held out, and of further items that hold out one caption."""
MAX_HELD = 300
"""Files whose items are held out, and files that hold out a caption, at most."""


@dataclass(frozen=True, slots=True)
class Split:
    """Which pairs train, and which are held out.

    Attributes:
        train_P: Pairs learned from.
        unseen_P: Pairs of held-out items: queries for items of which training saw no text.
        seen_P: Held-out captions of items whose other captions train: queries for items of which
            training saw some text.
        held_items: Whether an item is held out (N,).
    """

    train_P: IndexArray
    unseen_P: IndexArray
    seen_P: IndexArray
    held_items: npt.NDArray[np.bool_]

    def digest(self) -> str:
        """Hash of what is held out."""
        digest = hashlib.blake2b(self.train_P.astype(np.int64).tobytes(), digest_size=16)
        digest.update(self.held_items.tobytes())
        return digest.hexdigest()


def split_pairs(corpus: Corpus, seed: int = 0) -> Split:
    """Hold out files and captions; under 20 files that may be held out, none is.

    A text that several files have (a label, a title) asks for all of them: no file with such a
    text is held out, or judges.
    """
    rng = np.random.default_rng(seed)
    file_P = corpus.file_N[corpus.item_P]
    described = np.setdiff1d(file_P, file_P[_shared_by_files(corpus, file_P)])
    everything = np.arange(len(corpus.item_P))
    none = np.empty(0, dtype=np.intp)
    if len(described) < 20:
        return Split(everything, none, none, np.zeros(len(corpus), dtype=bool))
    count = max(2, min(MAX_HELD, int(len(described) * HOLD_OUT)))
    shuffled = rng.permutation(described)
    held = np.isin(corpus.file_N, shuffled[:count])
    new = np.flatnonzero(held[corpus.item_P])
    # The last text of a file is held out with all its copies on the file's other segments.
    texts: dict[int, list[str]] = {}
    for pair, file in enumerate(file_P.tolist()):
        if corpus.texts[pair] not in texts.setdefault(file, []):
            texts[file].append(corpus.texts[pair])
    asked = [f for f in shuffled[count:].tolist() if len(texts[f]) > 1][:count]
    deleted = {(f, texts[f][-1]) for f in asked}
    hidden = np.asarray(
        [(f, t) in deleted for f, t in zip(file_P.tolist(), corpus.texts, strict=True)], dtype=bool
    )
    known = np.flatnonzero(hidden)
    train = np.setdiff1d(everything, np.concatenate([new, known]))
    return Split(train, new, known, held)


def _shared_by_files(corpus: Corpus, file_P: IndexArray) -> npt.NDArray[np.bool_]:
    """Whether another file has the text of a pair too (P,)."""
    text_P = text_numbers(corpus)
    pairs = np.unique(np.stack([text_P, file_P], axis=1), axis=0)
    return np.asarray(np.bincount(pairs[:, 0], minlength=len(text_P))[text_P] > 1)
