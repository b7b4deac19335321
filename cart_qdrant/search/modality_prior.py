"""Which kind of media a query is for: vertical selection (Arguello et al., SIGIR 2009).

Cosines of two spaces, and of a hundred pictures to one clip within a space, do not compare. So each
kind of media (a vertical) is ranked by itself, `p(item | q, v)`, and the lists are joined by a
belief `pi(v | q)` that is learned from the texts of the captions: a softmax regression on their
vectors. Shape legend: B queries, P texts, G verticals, W sentence width.
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
"""Texts under which a kind of media is not told apart from the others of its space."""
MOST = 4_096
"""Texts of a vertical that the belief is learned from."""
FLOOR = 0.02
"""Belief that is shared out evenly, however sure the texts are: captions are not queries."""


@dataclass(frozen=True, slots=True)
class ModalityPrior:
    """See the module's docstring.

    Attributes:
        of: Number of each modality's vertical.
        w_GW: Weights of a text's vector.
        b_G: Intercepts.
    """

    of: Mapping[str, int]
    w_GW: FloatArray
    b_G: FloatArray

    def __len__(self) -> int:
        return len(self.b_G)

    @classmethod
    def single(cls, modalities: Sequence[str], width: int) -> ModalityPrior:
        """All modalities in one."""
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
        """Learn the belief from texts of described items.

        Args:
            texts: Captions (P).
            modality_P: Modality of the item of each.
            vectors: Unit vectors (B, W) of texts in the caption space, by number.
            spaces: Space of each modality.
            files: Files of each modality. A vertical weighs by their square root: rare media are
                asked for more often than they are many.
            width: W.
        """
        # Segments and copies repeat a text; it is one text of its modality.
        first: dict[tuple[str, str], int] = {}
        for n, (modality, text) in enumerate(zip(modality_P, texts, strict=True)):
            first.setdefault((modality, text_key(text)), n)
        kinds = np.asarray([modality for modality, _ in first], dtype=object)
        rows = np.fromiter(first.values(), dtype=np.intp, count=len(first))
        of = _assign({m: int((kinds == m).sum()) for m in spaces}, spaces)
        total = len(set(of.values()))
        if total < 2:
            return cls.single(list(spaces), width)
        from sklearn.linear_model import LogisticRegression

        rng = np.random.default_rng(seed)
        vertical_P = np.asarray([of[m] for m in kinds], dtype=np.intp)
        kept = [rng.permutation(np.flatnonzero(vertical_P == v))[:MOST] for v in range(total)]
        size = np.asarray([sum(files.get(m, 0) for m in of if of[m] == v) for v in range(total)])
        share = np.sqrt(size) / np.sqrt(size).sum()
        weight = np.concatenate([np.full(len(k), share[v] / len(k)) for v, k in enumerate(kept)])
        chosen = np.concatenate(kept)
        model = LogisticRegression(C=1.0, max_iter=2000)
        model.fit(vectors(rows[chosen]), vertical_P[chosen], sample_weight=weight * len(chosen))
        w, b = model.coef_, model.intercept_
        if total == 2:  # sklearn keeps the log-odds of the second alone
            w, b = np.concatenate([-w, w]) / 2, np.concatenate([-b, b]) / 2
        return cls(of, np.asarray(w, np.float32), np.asarray(b, np.float32))

    def log_priors(self, text_BW: FloatArray) -> FloatArray:
        """log pi (B, G) of queries' vectors in the caption space."""
        logits = text_BW @ self.w_GW.T + self.b_G
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        return np.asarray(np.log((1 - FLOOR) * p + FLOOR / len(self)), dtype=np.float32)

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        arrays = {f"of.{m}": np.asarray([n], np.int64) for m, n in self.of.items()}
        save_arrays(path, {**arrays, "w": self.w_GW, "b": self.b_G})

    @classmethod
    def load(cls, path: Path) -> ModalityPrior:
        """Inverse of `save`."""
        arrays = load_arrays(path)
        of = {k.removeprefix("of."): int(x[0]) for k, x in arrays.items() if k.startswith("of.")}
        return cls(of, arrays["w"], arrays["b"])


def _assign(counts: Mapping[str, int], spaces: Mapping[str, str]) -> dict[str, int]:
    """Vertical of each modality: its own if enough texts are of it, else that of the modality with
    the most texts in its space, else of all."""
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
