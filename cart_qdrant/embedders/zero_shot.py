"""Texts whose media vectors are known: how a query reaches a media space before training.

`q = sum_i softmax(cos(text, key_i) / tau) value_i`, normalised: the convex combination of ConSE
(Norouzi et al., arXiv 1312.5650), with an embedder's own vectors as values. It is kept in the
index, so that a search loads no embedder.
Shape legend: B queries, T texts of the lexicon, W sentence width, D vector width, N items.
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
"""Temperature of the softmax (lab: R@10 26 among 1,000 photos)."""
NEGLIGIBLE = 1e-8
"""Share, of the greatest, below which a text is left out: products of tiny numbers are denormal,
and make the whole sixty times slower (docs/experiments.md)."""


def class_names() -> list[str]:
    """Names of ImageNet's thousand classes, each with its synonyms: "tench, Tinca tinca"."""
    data = resources.files("cart_qdrant.embedders.lite") / "imagenet_labels.json"
    names: list[str] = json.loads(data.read_text())
    return names


@dataclass(frozen=True, slots=True)
class TextAnchors:
    """See the module's docstring.

    Attributes:
        texts: T of them; may be none.
        keys_TW: Their sentence vectors.
        values: Their vectors (T, D) in each space that they reach; lengths weigh.
    """

    texts: Sequence[str]
    keys_TW: FloatArray
    values: Mapping[str, FloatArray]

    def embed(self, text_BW: FloatArray, space: str) -> FloatArray | None:
        """Unit vectors (B, D) of sentence vectors; None where no text reaches the space."""
        if not len(self.texts) or space not in self.values:
            return None
        logits = text_BW @ self.keys_TW.T / TAU
        share = np.exp(logits - logits.max(axis=1, keepdims=True))
        share[share < NEGLIGIBLE] = 0
        return unit(share @ self.values[space])

    def name(self, x_ND: FloatArray, space: str) -> list[str] | None:
        """The likeliest text of each vector (N, D); None where none reaches the space."""
        if not len(self.texts) or space not in self.values:
            return None
        best = np.argmax(x_ND @ self.values[space].T, axis=1)
        return [self.texts[n] for n in best]

    def digest(self) -> str:
        """Of the content, 8 bytes in hex."""
        digest = hashlib.blake2b(json.dumps(list(self.texts)).encode(), digest_size=8)
        for space in sorted(self.values):
            digest.update(space.encode() + np.ascontiguousarray(self.values[space]).tobytes())
        return digest.hexdigest()

    def save(self, path: Path, drafts: Path | None = None) -> str:
        """Write a safetensors file, see `save_arrays`; returns its hash."""
        text = np.frombuffer(json.dumps(list(self.texts)).encode(), dtype=np.uint8)
        values = {f"value.{space}": x for space, x in self.values.items()}
        return save_arrays(path, {"texts": text, "keys": self.keys_TW, **values}, drafts)

    @classmethod
    def load(cls, path: Path) -> TextAnchors:
        """Inverse of `save`."""
        arrays = load_arrays(path)
        values = {k.removeprefix("value."): x for k, x in arrays.items() if k.startswith("value.")}
        return cls(json.loads(arrays["texts"].tobytes()), arrays["keys"], values)
