"""What a generator learns from: items, their texts, and the split that keeps it honest.

Two things are held out: whole *items*, as if they had just arrived without a caption, and single
*captions* of items that keep their others. A split by caption alone hides that a generator
memorises its items. Shape legend: N items, P pairs, D vector width, W sentence width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cart_qdrant.arrays.types import FloatArray, IndexArray
from cart_qdrant.arrays.vectors import unit
from cart_qdrant.index.index import Index
from cart_qdrant.index.points import Vectors, read_vectors
from cart_qdrant.records import TRUST, Caption, CaptionSource, Modality, text_key
from cart_qdrant.storage import requests as qdrant

_VIDEO = qdrant.Filter(
    must=[qdrant.FieldCondition(key="modality", match=qdrant.MatchValue(value="video"))]
)
MAX_CAPTIONS = 10
"""Captions of one item that are learned from."""
HOLD_OUT = 0.1
"""Share of captioned items held out, and of further items that hold out one caption."""
MAX_HELD = 300
"""Items held out of each kind at most."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """All items and all texts of an index.

    Attributes:
        vectors: Media vectors, ids and spaces of the items.
        texts: Text of each pair (P).
        item_P: Item of each pair.
        trust_P: Weight of each pair, by the source of its text and how sure that is.
        captioned: Items that have a caption of whatever kind (N,).
    """

    vectors: Vectors
    texts: list[str]
    item_P: IndexArray
    trust_P: FloatArray
    captioned: npt.NDArray[np.bool_]
    file_N: IndexArray
    """File of each item, by number: segments of one file share captions, so they are held out,
    and judged, together."""
    modality_N: npt.NDArray[np.str_]
    """Modality of each item."""

    def __len__(self) -> int:
        return len(self.vectors.ids)

    def digest(self) -> str:
        """Of items, texts and vectors: what a training saw."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update("\0".join(self.vectors.ids).encode())
        digest.update("\0".join(self.texts).encode())
        digest.update(np.ascontiguousarray(self.item_P).tobytes())
        digest.update(np.ascontiguousarray(self.vectors.x_ND).tobytes())
        return digest.hexdigest()


def read_corpus(
    index: Index, label: Callable[[FloatArray, str], list[str] | None] | None = None
) -> Corpus:
    """Read items and captions; items without any text get a weak label where there is a labeller.

    Args:
        label: Names what vectors x_ND of a space show, one label each; None for no labels.
    """
    vectors = read_vectors(index)
    row = {one: n for n, one in enumerate(vectors.ids)}
    texts: list[str] = []
    items: list[int] = []
    trust: list[float] = []
    captioned = np.zeros(len(vectors.ids), dtype=bool)
    files: dict[str, int] = {}
    file_N = np.zeros(len(vectors.ids), dtype=np.intp)
    modalities = [""] * len(vectors.ids)
    filmed = {
        (record.payload or {}).get("path")
        for record in index.store.scroll(_VIDEO, with_payload=["path"])
    }
    for record in index.store.scroll(with_payload=["captions", "path", "modality"]):
        n = row.get(str(record.id))
        if n is None:
            continue
        payload: dict[str, Any] = record.payload or {}
        file_N[n] = files.setdefault(payload.get("path", str(record.id)), len(files))
        modalities[n] = payload.get("modality", "")
        captions = [Caption.from_payload(c) for c in payload.get("captions", [])]
        if payload.get("modality") == Modality.AUDIO and payload.get("path") in filmed:
            # What is said of a film is mostly about its pictures; its sound is described by words
            # with times alone.
            captions = [c for c in captions if c.start is not None]
        strong = [c for c in captions if not c.is_weak] or captions
        for caption in strong[:MAX_CAPTIONS]:
            texts.append(caption.text)
            items.append(n)
            trust.append(caption.trust)
        captioned[n] = bool(strong)
    if label is not None and not texts:
        for space in np.unique(vectors.spaces):
            rows = np.flatnonzero(vectors.spaces == space)
            labels = label(vectors.x_ND[rows], str(space)) or []
            texts += labels
            items += [int(row) for row in rows[: len(labels)]]
            trust += [TRUST[CaptionSource.LABEL]] * len(labels)
    return Corpus(
        vectors, texts, np.asarray(items, np.intp), np.asarray(trust, np.float32), captioned,
        file_N, np.asarray(modalities),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Split:
    """Which pairs train, and which judge.

    Attributes:
        train_P: Pairs learned from.
        new_P: Pairs of held-out items: queries for items that training never saw.
        known_P: Held-out captions of items whose other captions are known.
        held_items: Held-out items (N,) bool.
    """

    train_P: IndexArray
    new_P: IndexArray
    known_P: IndexArray
    held_items: npt.NDArray[np.bool_]

    def digest(self) -> str:
        """Of what is held out, by number."""
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


def text_numbers(corpus: Corpus) -> IndexArray:
    """A number for the text of each pair (P,); case and spaces do not count."""
    number: dict[str, int] = {}
    return np.asarray([number.setdefault(text_key(text), len(number)) for text in corpus.texts],
                      dtype=np.intp)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SharedTexts:
    """Texts that several items have: none of these items is a wrong answer to them.

    Attributes:
        text_P: Number of each pair's text.
        items: Items of each text that several have.
    """

    text_P: IndexArray
    items: Mapping[int, IndexArray]

    @classmethod
    def of(cls, corpus: Corpus, split: Split) -> SharedTexts:
        """Those of the training pairs."""
        text_P, train_P = text_numbers(corpus), split.train_P
        pairs = np.unique(np.stack([text_P[train_P], corpus.item_P[train_P]], axis=1), axis=0)
        texts, begin, count = np.unique(pairs[:, 0], return_index=True, return_counts=True)
        return cls(
            text_P,
            {
                int(text): pairs[first : first + n, 1]
                for text, first, n in zip(texts, begin, count, strict=True)
                if n > 1
            },
        )

    def alike(
        self, batch: IndexArray, row_N: IndexArray, among: IndexArray
    ) -> npt.NDArray[np.bool_]:
        """Which of some items (B, M) have the text of a pair, the pair's own item included.

        Args:
            batch: Pairs (B,).
            row_N: Number of each item; negative for those that are not meant.
            among: Numbers (M,) of the items, each once.
        """
        out = np.zeros((len(batch), len(among)), dtype=bool)
        for b, text in enumerate(self.text_P[batch].tolist()):
            items = self.items.get(text)
            if items is not None:
                rows = row_N[items]
                out[b] = np.isin(among, rows[rows >= 0], assume_unique=True)
        return out


def caption_vectors(
    corpus: Corpus, text_PW: FloatArray, keep_P: npt.NDArray[np.bool_]
) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Mean sentence vector of each item's kept captions.

    Returns:
        Unit vectors (N, W), zero where an item has none, and which items have one (N,).
    """
    sums, counts = caption_sums(corpus, text_PW, np.flatnonzero(keep_P))
    return unit(sums), counts > 0


def caption_sums(
    corpus: Corpus, text_PW: FloatArray, rows: IndexArray
) -> tuple[FloatArray, IndexArray]:
    """Of each item's captions among `rows`: sum of the sentence vectors (N, W), and number (N,)."""
    owner = corpus.item_P[rows]
    sums = np.zeros((len(corpus), text_PW.shape[1]), dtype=np.float32)
    np.add.at(sums, owner, text_PW[rows])
    return sums, np.bincount(owner, minlength=len(corpus))
