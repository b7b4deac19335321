"""The corpus of a training: all items of an index and their texts.

Shape legend: N items, P pairs of a text and its item, D vector width, W sentence width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cart_qdrant.arrays.types import FloatArray, IndexArray
from cart_qdrant.arrays.vectors import unit
from cart_qdrant.identifiers.item_table import MODALITIES
from cart_qdrant.index.index import Index
from cart_qdrant.index.points import Vectors, read_vectors
from cart_qdrant.records import TRUST, Caption, CaptionSource, Modality
from cart_qdrant.storage import requests as qdrant

_VIDEO = qdrant.Filter(
    must=[qdrant.FieldCondition(key="modality", match=qdrant.MatchValue(value="video"))]
)
MAX_CAPTIONS = 10
"""Captions of one item that train, at most."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """All items and all texts of an index.

    Attributes:
        vectors: Media vectors, ids and spaces of the items.
        texts: Text of each pair (P).
        item_P: Item of each pair.
        trust_P: Weight of each pair, by the source of its text and the confidence in it.
        captioned: Whether an item has a caption, from whatever source (N,).
    """

    vectors: Vectors
    texts: list[str]
    item_P: IndexArray
    trust_P: FloatArray
    captioned: npt.NDArray[np.bool_]
    file_N: IndexArray
    """Number of each item's file: segments of one file share captions, so they are held out
    together."""
    modality_N: npt.NDArray[np.str_]
    """Modality of each item."""

    def __len__(self) -> int:
        return len(self.vectors.ids)

    def digest(self) -> str:
        """Hash of the items, texts and vectors that a training saw."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update("\0".join(self.vectors.ids).encode())
        digest.update("\0".join(self.texts).encode())
        digest.update(np.ascontiguousarray(self.item_P).tobytes())
        digest.update(np.ascontiguousarray(self.vectors.x_ND).tobytes())
        return digest.hexdigest()


def read_corpus(
    index: Index, label: Callable[[FloatArray, str], list[str] | None] | None = None
) -> Corpus:
    """Read items and captions; where no item has a text, each gets a label if there is a labeller.

    Others may write to an attached collection meanwhile: what an item is comes from the read of its
    vector, and an item that is deleted or changed after that only loses its captions here.

    Args:
        label: Gives one label for each vector x_ND of a media space; None gives no labels.
    """
    vectors = read_vectors(index)
    row = {one: n for n, one in enumerate(vectors.ids)}
    texts: list[str] = []
    items: list[int] = []
    trust: list[float] = []
    captioned = np.zeros(len(vectors.ids), dtype=bool)
    video_paths = {
        (record.payload or {}).get("path")
        for record in index.store.scroll(_VIDEO, with_payload=["path"])
    }
    for record in index.store.scroll(with_payload=["captions", "path", "modality"]):
        n = row.get(str(record.id))
        if n is None:
            continue
        payload: dict[str, Any] = record.payload or {}
        captions = [Caption.from_payload(c) for c in payload.get("captions", [])]
        if payload.get("modality") == Modality.AUDIO and payload.get("path") in video_paths:
            # Captions of a video are mostly about its frames; its audio is described only by
            # captions with times.
            captions = [c for c in captions if c.start is not None]
        trusted = [c for c in captions if not c.is_weak] or captions
        for caption in trusted[:MAX_CAPTIONS]:
            texts.append(caption.text)
            items.append(n)
            trust.append(caption.trust)
        captioned[n] = bool(trusted)
    if label is not None and not texts:
        for space in np.unique(vectors.spaces):
            rows = np.flatnonzero(vectors.spaces == space)
            labels = label(vectors.x_ND[rows], str(space)) or []
            texts += labels
            items += [int(row) for row in rows[: len(labels)]]
            trust += [TRUST[CaptionSource.LABEL]] * len(labels)
    return Corpus(
        vectors, texts, np.asarray(items, np.intp), np.asarray(trust, np.float32), captioned,
        _in_order_of_appearance(vectors.file_N), np.asarray(MODALITIES)[vectors.modality_N],
    )  # fmt: skip


def _in_order_of_appearance(file_N: npt.NDArray[np.uint64]) -> IndexArray:
    """Files numbered from zero (N,), in the order in which their items come."""
    _, first, number_N = np.unique(file_N, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.intp)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[number_N]


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
    """Sum of the sentence vectors (N, W), and number (N,), of each item's captions among `rows`."""
    owner = corpus.item_P[rows]
    sums = np.zeros((len(corpus), text_PW.shape[1]), dtype=np.float32)
    np.add.at(sums, owner, text_PW[rows])
    return sums, np.bincount(owner, minlength=len(corpus))
