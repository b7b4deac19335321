"""An index of coloured things whose embedder has a text tower, good or bad, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
from qdrant_client import models

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.arrays.vectors import unit
from cart_qdrant.index.identify import refit
from cart_qdrant.index.index import Index
from cart_qdrant.records import Modality, Segment
from tests.conftest import PatchEmbedder

COLOURS = ["red", "blue", "green", "white", "black", "brown", "grey", "pink"]
PLACES = ["beach", "street", "garden"]
THINGS = ["dog", "cat", "car", "boat", "horse", "bird", "train", "house", "tree", "child"]


class TextTowerEmbedder(PatchEmbedder):
    """Its media vectors are set by hand; its text tower knows which colour and thing is meant, or
    nothing.

    Args:
        knows: Whether the text tower knows.
    """

    name = "toy"

    def __init__(self, *, knows: bool) -> None:
        super().__init__()
        self.knows = knows
        rng = np.random.default_rng(0)
        words = [*COLOURS, *THINGS, *PLACES]
        self._of_word = dict(zip(words, rng.normal(size=(len(words), self.dim)), strict=True))
        self.asked: list[str] = []
        """Texts that were embedded."""

    def meant(self, text: str) -> FloatArray:
        """Vector (D,) of the colour, the thing and the place that a text names."""
        found = [v for word, v in self._of_word.items() if word in text.split()]
        return np.asarray(np.sum([*found, np.full(self.dim, 1e-3)], axis=0), np.float32)

    def embed_text(self, texts: Sequence[str], space: str) -> FloatArray | None:  # type: ignore[override]
        if space != "visual":
            return None
        self.asked += texts
        if self.knows:
            return unit(np.stack([self.meant(text) for text in texts]))
        rng = np.random.default_rng(len(self.asked))
        return unit(rng.normal(size=(len(texts), self.dim)).astype(np.float32))


def captions_of(colour: str, thing: str, place: str) -> list[str]:
    """What the picture of a coloured thing at a place is said to be."""
    return [
        f"a {colour} {thing} on the {place}",
        f"{place} with a {thing} that is {colour}",
        f"{thing} of {colour} colour near some {place}",
    ]


def toy_index(root: Path, embedder: TextTowerEmbedder, noise: float = 0.3) -> Index:
    """240 pictures with three captions each; their vectors are what is meant, with noise."""
    index = Index.create(root, embedder)
    index.set_embedder(embedder)
    rng = np.random.default_rng(1)
    points = []
    for words in product(COLOURS, THINGS, PLACES):
        texts, path = captions_of(*words), f"{'-'.join(words)}.png"
        x = embedder.meant(texts[0]) + noise * rng.normal(size=embedder.dim)
        encoded = unit(index.text_encoder().embed(texts).mean(axis=0)[None])[0]
        payload = {
            "path": path, "modality": "image", "hash": path, "start": 0.0, "end": 0.0,
            "captions": [{"text": text, "source": "metadata"} for text in texts],
        }  # fmt: skip
        vector = {"media": (x / np.linalg.norm(x)).tolist(), "caption": encoded.tolist()}
        one = Segment(path, Modality.IMAGE).id
        points.append(models.PointStruct(id=one, vector=vector, payload=payload))
    index.store.upsert(points)
    refit(index)
    return index
