"""The split of a corpus into pairs to learn from, to choose by, and to report on.

Two things are held out: whole *items*, as if they had just arrived without a caption, and single
*captions* of items that keep their others. A split by caption alone hides that a generator
memorises its items. What is chosen by held-out queries (an epoch, gates, weights, lanes) looks
better on them than on others, so recalls are reported on files that chose nothing: a third set, or,
where there are too few files for three, the folds of a cross-fitting.
Shape legend: N items, P pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cart_qdrant.arrays.types import IndexArray
from cart_qdrant.records import text_key
from cart_qdrant.training.corpus import Corpus
from cart_qdrant.training.shared_texts import text_numbers

CHOOSE = 0.1
"""Share of files with captions whose items are held out to choose by, and of further files that
hold out one caption."""
REPORT = 0.05
"""The same shares of the files that are reported on."""
MAX_HELD = 300
"""Files whose items are held out, and files that hold out a caption, of each set at most."""
LEAST = 20
"""Files that may be held out, below which none is."""
THREE_SETS = 1_000
"""Files that may be held out, from which a set of its own is reported on. With fewer, that set
would be a few dozen files, and training would miss them."""
FOLDS = 5
"""Folds of the cross-fitting where there is no such set."""


@dataclass(frozen=True, slots=True)
class HeldOutPairs:
    """Held-out pairs, whose texts are queries.

    Attributes:
        unseen_P: Pairs of held-out items: queries for items of which training saw no text.
        seen_P: Held-out captions of items whose other captions train: queries for items of which
            training saw some text.
    """

    unseen_P: IndexArray
    seen_P: IndexArray

    @classmethod
    def none(cls) -> HeldOutPairs:
        """No pair."""
        return cls(np.empty(0, np.intp), np.empty(0, np.intp))

    def __len__(self) -> int:
        return len(self.unseen_P) + len(self.seen_P)

    @property
    def strata(self) -> Mapping[str, IndexArray]:
        """The pairs by what they ask for; without strata that have none."""
        both = {"unseen": self.unseen_P, "seen": self.seen_P}
        return {name: pairs for name, pairs in both.items() if len(pairs)}


@dataclass(frozen=True, slots=True)
class Split:
    """Which pairs train, and which are held out.

    Attributes:
        train_P: Pairs learned from by gradient.
        choose: Pairs by which epoch, gates, weights and lanes are chosen.
        report: Pairs whose recalls are reported; those of `choose` where they are cross-fitted.
        held_items: Whether an item is held out (N,).
        cross_fitted: Whether there are too few files for a set that is only reported on: each fold
            of `choose` is then reported by what the other folds choose.
    """

    train_P: IndexArray
    choose: HeldOutPairs
    report: HeldOutPairs
    held_items: npt.NDArray[np.bool_]
    cross_fitted: bool

    @property
    def epoch_pairs(self) -> HeldOutPairs:
        """Queries by which an epoch may be chosen: none where they are reported, since a training
        cannot be cross-fitted."""
        return HeldOutPairs.none() if self.cross_fitted else self.choose

    def held_out(self) -> IndexArray:
        """All held-out pairs, rising."""
        sets = (self.choose, self.report)
        return np.unique(np.concatenate([p for one in sets for p in (one.unseen_P, one.seen_P)]))

    def digest(self) -> str:
        """Hash of what is held out."""
        digest = hashlib.blake2b(self.train_P.astype(np.int64).tobytes(), digest_size=16)
        digest.update(self.held_items.tobytes())
        digest.update(self.report.unseen_P.astype(np.int64).tobytes())
        digest.update(self.report.seen_P.astype(np.int64).tobytes())
        return digest.hexdigest()


def split_pairs(corpus: Corpus, seed: int = 0) -> Split:
    """Hold out files and captions; under `LEAST` files that may be held out, none is.

    A text that several files have (a label, a title) asks for all of them: no file with such a
    text is held out, or judges. Labels that the embedder gave are no queries of anyone: where items
    have no other texts, nothing judges.
    """
    rng = np.random.default_rng(seed)
    file_P = corpus.file_N[corpus.item_P]
    described = np.setdiff1d(file_P, file_P[_shared_by_files(corpus, file_P)])
    if len(described) < LEAST or not corpus.captioned.any():
        none = HeldOutPairs.none()
        everything = np.arange(len(corpus.item_P))
        return Split(everything, none, none, np.zeros(len(corpus), dtype=bool), True)
    cross_fitted = len(described) < THREE_SETS
    shares = (CHOOSE,) if cross_fitted else (CHOOSE, REPORT)
    counts = [max(2, min(MAX_HELD, int(len(described) * share))) for share in shares]
    shuffled = rng.permutation(described)
    whole, rest = np.split(shuffled, [sum(counts)])
    asked, hidden = _last_texts(corpus, file_P, rest, sum(counts))
    sets: list[HeldOutPairs] = []
    for n, count in enumerate(counts):
        here = slice(sum(counts[:n]), sum(counts[:n]) + count)
        unseen_P = np.flatnonzero(np.isin(file_P, whole[here]))
        sets.append(HeldOutPairs(unseen_P, hidden[np.isin(file_P[hidden], asked[here])]))
    trains_P = ~np.isin(file_P, whole)
    trains_P[hidden] = False
    held_items = np.isin(corpus.file_N, whole)
    return Split(np.flatnonzero(trains_P), sets[0], sets[-1], held_items, cross_fitted)


def _last_texts(
    corpus: Corpus, file_P: IndexArray, files: IndexArray, most: int
) -> tuple[IndexArray, IndexArray]:
    """The first files (at most `most`) that have several texts, and the pairs of the last text of
    each: with all its copies on the file's other segments."""
    texts: dict[int, list[str]] = {}
    keys = [text_key(text) for text in corpus.texts]
    for key, file in zip(keys, file_P.tolist(), strict=True):
        if key not in texts.setdefault(file, []):
            texts[file].append(key)
    asked = [f for f in files.tolist() if len(texts[f]) > 1][:most]
    last = {(f, texts[f][-1]) for f in asked}
    hidden = [n for n, pair in enumerate(zip(file_P.tolist(), keys, strict=True)) if pair in last]
    return np.asarray(asked, np.intp), np.asarray(hidden, np.intp)


def _shared_by_files(corpus: Corpus, file_P: IndexArray) -> npt.NDArray[np.bool_]:
    """Whether another file has the text of a pair too (P,)."""
    text_P = text_numbers(corpus)
    pairs = np.unique(np.stack([text_P, file_P], axis=1), axis=0)
    return np.asarray(np.bincount(pairs[:, 0], minlength=len(text_P))[text_P] > 1)
