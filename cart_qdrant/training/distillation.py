"""Distillation: the embedder's own text vectors as targets of the query tower, so that a search
needs no embedder.

Shape legend: T texts, D vector width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.embedders.zero_shot import TextAnchors, class_names
from cart_qdrant.errors import CartError
from cart_qdrant.index.index import Index
from cart_qdrant.progress import Reporter
from cart_qdrant.training.query_encoder import QueryEncoder
from cart_qdrant.training.text_states import TextStates

DISTILL_UNTIL = 3_000
"""Training pairs from which the embedder's text vectors are no longer distilled."""
TEXTS = 3_000
"""Captions embedded at most; on a CPU, a large text tower embeds some ten of them a second."""
_BLOCK = 64


@dataclass(frozen=True, slots=True)
class DistillationTargets:
    """Texts with the vectors that the embedder gives them: `vectors[space]` is (T, D)."""

    states: TextStates
    vectors: Mapping[str, FloatArray]

    @classmethod
    def of(
        cls, encoder: QueryEncoder, anchors: TextAnchors | None, spaces: Sequence[str]
    ) -> DistillationTargets | None:
        """The anchors, and the short ones once more as `a photo of a ...`; None where there are no
        anchors in the media spaces."""
        if anchors is None or not len(anchors.texts):
            return None
        short = [f"a photo of a {text}" for text in anchors.texts if len(text.split()) <= 3]
        states = TextStates(encoder, [*anchors.texts, *short])
        vectors = {space: anchors.embed(states.text_PW, space) for space in spaces}
        targets = {space: x_TD for space, x_TD in vectors.items() if x_TD is not None}
        return cls(states, targets) if targets else None


def read_text_anchors(
    index: Index, captions: Sequence[str], seed: int, reporter: Reporter
) -> TextAnchors | None:
    """Captions and class names with the vectors that the embedder gives them.

    Args:
        captions: Texts that train. A held-out text among them would be its own anchor, and judge by
            a vector that no query of people has.

    Returns:
        None where the embedder embeds no text, or is not installed.
    """
    rng = np.random.default_rng(seed)
    distinct = list(dict.fromkeys(captions))
    chosen = [distinct[n] for n in sorted(rng.permutation(len(distinct))[:TEXTS])]
    texts = list(dict.fromkeys([*chosen, *(name.split(",")[0] for name in class_names())]))
    try:
        embedder = index.embedder()
    except CartError as error:
        reporter.say(f"The embedder's text vectors cannot be distilled: {error}")
        return None
    values: dict[str, list[FloatArray]] = {}
    spaces = list(dict.fromkeys(index.manifest.embedder.spaces.values()))
    for space in spaces:
        if embedder.embed_text(texts[:1], space) is not None:
            values[space] = []
    if not values:
        return None
    reporter.phase("embedding texts to distil", len(texts))
    for begin in range(0, len(texts), _BLOCK):
        block = texts[begin : begin + _BLOCK]
        for space, found in values.items():
            vectors = embedder.embed_text(block, space)
            assert vectors is not None
            found.append(vectors)
        reporter.advance(len(block))
    return TextAnchors(
        texts,
        index.text_encoder().embed(texts),
        {space: np.concatenate(found) for space, found in values.items()},
    )
