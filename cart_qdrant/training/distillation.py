"""What the embedder's own text tower teaches the query tower, so that searches do without it.

Shape legend: T texts, D vector width.
"""

from __future__ import annotations

import numpy as np

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.embedders.zero_shot import TextAnchors, class_names
from cart_qdrant.errors import CartError
from cart_qdrant.index.index import Index
from cart_qdrant.progress import Reporter

TEXTS = 3_000
"""Captions embedded at most; a large text tower takes a second for some ten of them on a CPU."""
_BLOCK = 64


def learn_from(
    index: Index, captions: list[str], seed: int, reporter: Reporter
) -> TextAnchors | None:
    """Texts of the corpus, and class names, with the vectors that the embedder gives them; None
    where it embeds no text, or is not here."""
    rng = np.random.default_rng(seed)
    distinct = list(dict.fromkeys(captions))
    chosen = [distinct[n] for n in sorted(rng.permutation(len(distinct))[:TEXTS])]
    texts = list(dict.fromkeys([*chosen, *(name.split(",")[0] for name in class_names())]))
    try:
        embedder = index.embedder()
    except CartError as error:
        reporter.say(f"the embedder's text tower teaches nothing: {error}")
        return None
    values: dict[str, list[FloatArray]] = {}
    spaces = list(dict.fromkeys(index.manifest.embedder.spaces.values()))
    for space in spaces:
        if embedder.embed_text(texts[:1], space) is not None:
            values[space] = []
    if not values:
        return None
    reporter.phase("reading the embedder's text tower", len(texts))
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
