"""Fits the modality prior of a search to the captions of the items.

Shape legend: B captions of a call, P texts, W sentence width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cart_qdrant.arrays.types import FloatArray, IndexArray
from cart_qdrant.records import text_key
from cart_qdrant.search.modality_prior import ModalityPrior

LEAST = 20
"""Texts of a modality from which it is a group of its own within its media space."""
MOST = 4_096
"""Texts of a group that the prior is fitted to, at most."""


def fit_modality_prior(
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
        vectors: Gives the unit vectors (B, W) of captions in the caption space, by position
            in `texts`.
        spaces: Media space of each modality.
        files: Number of files of each modality. A group weighs by its square root: users ask
            for rare media more often than their share of the files.
        width: W.
        seed: Seed of the choice of texts where a group has more than `MOST`.
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
        return ModalityPrior.single(list(spaces), width)
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
    return ModalityPrior(group_of, np.asarray(w, np.float32), np.asarray(b, np.float32))


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
