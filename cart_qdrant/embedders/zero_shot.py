"""Text anchors: texts whose media vectors are known, by which queries are embedded before training.

A query vector is `sum_i softmax(cos(text, key_i) / tau)_i value_i`, normalised: the convex
combination of ConSE (Norouzi et al., arXiv 1312.5650), with an embedder's own vectors as values.
Text anchors are stored in the index, so that a search loads no embedder.
Shape legend: B queries, T text anchors, W sentence width, D vector width, N items.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.arrays.vectors import unit
from cart_qdrant.files import load_arrays, save_arrays

TAU = 0.05
"""Temperature of the softmax (R@10 is 26 among 1,000 photos, docs/experiments.md)."""
NEGLIGIBLE = 1e-8
"""A text whose weight, relative to the greatest, is below this is left out: products of tiny
numbers are denormal, and make the sum sixty times slower (docs/experiments.md)."""


def class_names() -> list[str]:
    """Names of ImageNet's thousand classes, each with its synonyms: "tench, Tinca tinca"."""
    data = resources.files("cart_qdrant.embedders.lite") / "imagenet_labels.json"
    names: list[str] = json.loads(data.read_text())
    return names


@dataclass(frozen=True, slots=True)
class TextAnchors:
    """Texts with their sentence vectors and their vectors in the spaces of an embedder.

    Attributes:
        texts: The T texts; there may be none.
        keys_TW: Their sentence vectors.
        values: Their vectors (T, D) in each space; a longer vector weighs more.
    """

    texts: Sequence[str]
    keys_TW: FloatArray
    values: Mapping[str, FloatArray]

    def embed(self, text_BW: FloatArray, space: str) -> FloatArray | None:
        """L2-normalised query vectors (B, D) in `space`; None where no text has a vector in it."""
        if not len(self.texts) or space not in self.values:
            return None
        logits = text_BW @ self.keys_TW.T / TAU
        share = np.exp(logits - logits.max(axis=1, keepdims=True))
        share[share < NEGLIGIBLE] = 0
        return unit(share @ self.values[space])

    def name(self, x_ND: FloatArray, space: str) -> list[str] | None:
        """The most similar text of each media vector; None where no text reaches `space`."""
        if not len(self.texts) or space not in self.values:
            return None
        best = np.argmax(x_ND @ self.values[space].T, axis=1)
        return [self.texts[n] for n in best]

    def digest(self) -> str:
        """BLAKE2b of texts and values, 16 hexadecimal digits."""
        digest = hashlib.blake2b(json.dumps(list(self.texts)).encode(), digest_size=8)
        for space in sorted(self.values):
            digest.update(space.encode() + np.ascontiguousarray(self.values[space]).tobytes())
        return digest.hexdigest()

    def save(self, path: Path, drafts: Path | None = None) -> str:
        """Write the anchors to a safetensors file, atomically; returns the file's hash."""
        text = np.frombuffer(json.dumps(list(self.texts)).encode(), dtype=np.uint8)
        values = {f"value.{space}": x for space, x in self.values.items()}
        return save_arrays(path, {"texts": text, "keys": self.keys_TW, **values}, drafts)

    @classmethod
    def load(cls, path: Path) -> TextAnchors:
        """Read a file that `save` wrote."""
        arrays = load_arrays(path)
        values = {k.removeprefix("value."): x for k, x in arrays.items() if k.startswith("value.")}
        return cls(json.loads(arrays["texts"].tobytes()), arrays["keys"], values)
