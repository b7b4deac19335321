"""The modality prior: which modalities a query is likely for, as in vertical selection.

Cosines of two media spaces do not compare, nor do those of a hundred images and one video within a
space. So each modality group is ranked by itself, `p(item | query, group)`, and the lists are
joined by the prior `p(group | query)`, a softmax regression on the vectors of the captions'
texts (vertical selection: Arguello et al., SIGIR 2009). A group is one modality, or several where
too few texts are of one. `training.calibration.modality_prior` fits it.
Shape legend: B queries, G modality groups, W sentence width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.files import load_arrays, save_arrays

FLOOR = 0.02
"""Probability that is spread evenly over the groups, since captions are not queries."""


@dataclass(frozen=True, slots=True)
class ModalityPrior:
    """Softmax regression from the vector of a text to modality groups.

    Attributes:
        group_of: Number of each modality's group.
        w_GW: Weights of the vector.
        b_G: Intercepts.
    """

    group_of: Mapping[str, int]
    w_GW: FloatArray
    b_G: FloatArray

    def __len__(self) -> int:
        return len(self.b_G)

    @classmethod
    def single(cls, modalities: Sequence[str], width: int) -> ModalityPrior:
        """The prior of one group that holds all modalities."""
        return cls(
            dict.fromkeys(modalities, 0), np.zeros((1, width), np.float32), np.zeros(1, np.float32)
        )

    def log_priors(self, text_BW: FloatArray) -> FloatArray:
        """Log-probabilities (B, G) of the groups, from query vectors in the caption space."""
        logits = text_BW @ self.w_GW.T + self.b_G
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        return np.asarray(np.log((1 - FLOOR) * p + FLOOR / len(self)), dtype=np.float32)

    def save(self, path: Path) -> None:
        """Write the prior to a safetensors file."""
        arrays = {f"group.{m}": np.asarray([n], np.int64) for m, n in self.group_of.items()}
        save_arrays(path, {**arrays, "w": self.w_GW, "b": self.b_G})

    @classmethod
    def load(cls, path: Path) -> ModalityPrior:
        """Inverse of `save`."""
        arrays = load_arrays(path)
        numbers = {k: int(x[0]) for k, x in arrays.items() if k.startswith("group.")}
        group_of = {name.removeprefix("group."): n for name, n in numbers.items()}
        return cls(group_of, arrays["w"], arrays["b"])
