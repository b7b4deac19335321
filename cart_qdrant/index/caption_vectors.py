"""The caption vectors of items: the mean of an item's captions, by the encoder in force.

Two vectors of a point hold them in turn. What other encoder is to make them anew writes into the
one that no search reads; the manifest then names it, together with the encoder. Those of before
stay until the next run that writes, for searches that have opened them.
Shape legend: B texts, D caption vector width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.arrays.vectors import unit
from cart_qdrant.index.caption_encoder import CaptionEncoder, SentenceEncoder
from cart_qdrant.index.collection import TEXT_DIM, other_slot
from cart_qdrant.index.index import Index
from cart_qdrant.index.manifest import CaptionVectors, Manifest
from cart_qdrant.index.points import in_blocks, is_ours
from cart_qdrant.progress import Reporter
from cart_qdrant.records import Caption

REMEMBERED = 20_000
"""Captions whose vectors are kept for the next items, at most: 30 MB."""


def caption_means(
    encoder: CaptionEncoder, captions: Sequence[Sequence[Caption]]
) -> list[FloatArray | None]:
    """Unit mean vector (D,) of the captions of each item; None where it has no caption.

    Captions from file names and labels count only where an item has no others.
    """
    texts: dict[str, int] = {}  # segments of a file share most of them
    rows: list[int] = []
    owner: list[int] = []
    for n, own in enumerate(captions):
        for caption in [c for c in own if not c.is_weak] or own:
            rows.append(texts.setdefault(caption.text, len(texts)))
            owner.append(n)
    out: list[FloatArray | None] = [None] * len(captions)
    if texts:
        x_BD = encoder.embed(list(texts))
        means = np.zeros((len(captions), x_BD.shape[1]), dtype=np.float32)
        np.add.at(means, owner, x_BD[rows])
        for n in set(owner):
            out[n] = unit(means[n])
    return out


class _Remembering:
    """Encodes texts once: the segments of a file, which share captions, lie far apart in a store.

    Args:
        encoder: Encodes what is not remembered.
    """

    def __init__(self, encoder: CaptionEncoder) -> None:
        self._encoder = encoder
        self._known: dict[str, FloatArray] = {}

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """Vectors (B, D) of texts."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        found = dict(zip(new, self._encoder.embed(new), strict=True)) if new else {}
        x_BD = np.stack([found[t] if t in found else self._known[t] for t in texts])
        if len(self._known) + len(found) > REMEMBERED:
            self._known = {}
        self._known |= dict(list(found.items())[:REMEMBERED])
        return x_BD


def write_caption_vectors(index: Index, encoder: CaptionEncoder, reporter: Reporter) -> str:
    """Write the caption vectors of all items, by another encoder than that in force, where no
    search reads them yet. A killed run leaves those in force as they are.

    Args:
        index: Open index that keeps captions; its lock is held.
        encoder: Makes the vectors. What it knows already, it may give from memory.
        reporter: Is called with the progress.

    Returns:
        Name of the vector, for `CaptionVectors`.

    Raises:
        StoreError: The store failed, or the server is too old for another vector.
    """
    slot, store = other_slot(index.caption_vector), index.store
    if slot not in index.manifest.stale_vectors:  # a killed run leaves it to the next one
        stale = [*index.manifest.stale_vectors, slot]
        index.put(replace(index.manifest, stale_vectors=stale))
    store.clear_vector(slot)
    store.add_vector(slot, TEXT_DIM)
    reporter.phase("caption vectors", store.count(is_ours()))
    remembering = _Remembering(encoder)
    for chunk in in_blocks(store.scroll(is_ours(), with_payload=["captions"])):
        captions = [
            [Caption.from_payload(one) for one in (record.payload or {}).get("captions") or ()]
            for record in chunk
        ]
        means = caption_means(remembering, captions)
        updates = [
            (str(record.id), mean.tolist())
            for record, mean in zip(chunk, means, strict=True)
            if mean is not None
        ]
        store.update_vectors(slot, updates)
        reporter.advance(len(chunk))
    store.flush()
    return slot


def with_captions(manifest: Manifest, captions: CaptionVectors) -> Manifest:
    """A manifest that puts caption vectors in force; those of before are to be removed."""
    stale = [name for name in manifest.stale_vectors if name != captions.vector]
    if manifest.captions.vector not in (captions.vector, *stale):
        stale.append(manifest.captions.vector)
    return replace(manifest, captions=captions, stale_vectors=stale)


def write_sentence_vectors(index: Index, reporter: Reporter) -> CaptionVectors:
    """Write the caption vectors by the untrained text encoder, where a trained one made them; see
    `write_caption_vectors`."""
    slot = write_caption_vectors(index, SentenceEncoder(index.text_encoder()), reporter)
    return CaptionVectors(vector=slot)
