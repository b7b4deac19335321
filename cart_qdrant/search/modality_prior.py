"""The modality prior: which modalities a query is likely for, as in vertical selection.

Cosines of two media spaces do not compare, nor do those of a hundred images and one video within a
space. So each modality group is ranked by itself, `p(item | query, group)`, and the lists are
joined by the prior `p(group | query)`, a softmax regression on the vectors of the captions'
texts (vertical selection: Arguello et al., SIGIR 2009). A group is one modality, or several where
too few texts are of one. Shape legend: B queries, P texts, G modality groups, W sentence width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cart_qdrant.arrays.types import FloatArray, IndexArray
from cart_qdrant.files import load_arrays, save_arrays
from cart_qdrant.records import text_key

LEAST = 20
"""Texts of a modality from which it is a group of its own within its media space."""
MOST = 4_096
"""Texts of a group that the prior is fitted to, at most."""
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

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        modality_P: Sequence[str],
        vectors: Callable[[IndexArray], FloatArray],
        spaces: Mapping[str, str],
        files: Mapping[str, int],
        width: int,
        seed: int = 0,
    ) -> ModalityPrior:
        """Fit the prior to the captions of items.

        Args:
            texts: Captions (P).
            modality_P: Modality of the item of each caption.
            vectors: Gives the unit vectors (B, W) of captions in the caption space, by number.
            spaces: Media space of each modality.
            files: Number of files of each modality. A group weighs by its square root: users ask
                for rare media more often than their share of the files.
            width: W.
        """
        # Segments and copies repeat a text; it is one text of its modality.
        first: dict[tuple[str, str], int] = {}
        for n, (modality, text) in enumerate(zip(modality_P, texts, strict=True)):
            first.setdefault((modality, text_key(text)), n)
        modalities = np.asarray([modality for modality, _ in first], dtype=object)
        rows = np.fromiter(first.values(), dtype=np.intp, count=len(first))
        group_of = _assign({m: int((modalities == m).sum()) for m in spaces}, spaces)
        total = len(set(group_of.values()))
        if total < 2:
            return cls.single(list(spaces), width)
        from sklearn.linear_model import LogisticRegression

        rng = np.random.default_rng(seed)
        group_P = np.asarray([group_of[m] for m in modalities], dtype=np.intp)
        kept = [rng.permutation(np.flatnonzero(group_P == g))[:MOST] for g in range(total)]
        size = np.asarray(
            [sum(files.get(m, 0) for m in group_of if group_of[m] == g) for g in range(total)]
        )
        share = np.sqrt(size) / np.sqrt(size).sum()
        weight = np.concatenate([np.full(len(k), share[g] / len(k)) for g, k in enumerate(kept)])
        chosen = np.concatenate(kept)
        model = LogisticRegression(C=1.0, max_iter=2000)
        model.fit(vectors(rows[chosen]), group_P[chosen], sample_weight=weight * len(chosen))
        w, b = model.coef_, model.intercept_
        if total == 2:  # sklearn keeps the log-odds of the second alone
            w, b = np.concatenate([-w, w]) / 2, np.concatenate([-b, b]) / 2
        return cls(group_of, np.asarray(w, np.float32), np.asarray(b, np.float32))

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


def _assign(counts: Mapping[str, int], spaces: Mapping[str, str]) -> dict[str, int]:
    """Group of each modality: its own if it has enough texts, else that of the modality with most
    texts in its media space, else in all."""
    most = max(counts, key=lambda m: counts[m])
    of_space: dict[str, str] = {}
    for m in sorted(counts, key=lambda m: -counts[m]):
        if counts[m]:
            of_space.setdefault(spaces[m], m)
    chosen = {
        m: m if counts[m] >= LEAST or of_space.get(spaces[m]) == m
        else of_space.get(spaces[m], most)
        for m in spaces
    }  # fmt: skip
    number = {m: n for n, m in enumerate(sorted(set(chosen.values())))}
    return {m: number[owner] for m, owner in chosen.items()}
