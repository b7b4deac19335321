"""How well captions that a model made fit their items.

Shape legend: B captions, N items, D vector width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.embedders.text.folder import text_encoder_folder
from cart_qdrant.errors import CartError
from cart_qdrant.generator.artifacts import QUERY_GRAPH
from cart_qdrant.generator.encoder import OnnxQueryEncoder
from cart_qdrant.index.index import Index
from cart_qdrant.index.points import vector_of
from cart_qdrant.records import Caption, CaptionSource, Modality
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.protocol import MEDIA

COMPARED = 200
"""Other items that a caption is compared with."""
TextEmbedder = Callable[[list[str], str], FloatArray | None]
"""Texts and the name of a space to vectors (B, D) in that space; None where it has no texts."""


class CaptionConfidence:
    """Measures the confidence of captions: the share of other items that are less similar to the
    caption than its own item.

    Texts are embedded by the trained query encoder, else by the embedder. In a space that neither
    of them maps texts to, captions get no confidence.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._samples: dict[str, FloatArray] = {}
        self._embed: TextEmbedder | None = None

    def measure(
        self,
        items: Sequence[tuple[str, Modality]],
        captions: Sequence[Sequence[Caption]],
        vectors: Mapping[str, list[float] | None],
    ) -> list[list[Caption]]:
        """The captions of each item with their confidence.

        Transcribed speech gets none: what is said need not be seen.

        Args:
            items: Point id and modality.
            captions: Of each item.
            vectors: Media vectors by point id.
        """
        by_space: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for n, (id, modality) in enumerate(items):
            if vectors.get(id) is not None:
                by_space[str(self._index.space(modality))] += [
                    (n, k)
                    for k, caption in enumerate(captions[n])
                    if caption.source is not CaptionSource.SPEECH
                ]
        out = [list(own) for own in captions]
        for space, places in by_space.items():
            if not places:
                continue
            q_BD = self._text_vectors([out[n][k].text for n, k in places], space)
            others_ND = self._sample(space)
            if q_BD is None or len(others_ND) < 2:
                continue
            own_BD = np.asarray([vectors[items[n][0]] for n, _ in places], np.float32)
            own_B = (q_BD * own_BD).sum(axis=1)
            share_B = (q_BD @ others_ND.T < own_B[:, None]).mean(axis=1)
            for (n, k), share in zip(places, share_B, strict=True):
                out[n][k] = replace(out[n][k], confidence=float(share))
        return out

    def _sample(self, space: str) -> FloatArray:
        """Media vectors (N, D) of the first `COMPARED` items of a space."""
        if space not in self._samples:
            modalities = [m for m, s in self._index.manifest.embedder.spaces.items() if s == space]
            match = qdrant.FieldCondition(key="modality", match=qdrant.MatchAny(any=modalities))
            records = self._index.store.scroll(
                qdrant.Filter(must=[match]), with_payload=False, with_vectors=[MEDIA]
            )
            rows = [x for r in islice(records, COMPARED) if (x := vector_of(r)) is not None]
            self._samples[space] = np.asarray(rows, dtype=np.float32)
        return self._samples[space]

    def _text_vectors(self, texts: list[str], space: str) -> FloatArray | None:
        if self._embed is None:
            self._embed = _text_embedder(self._index)
        return self._embed(texts, space)


def _text_embedder(index: Index) -> TextEmbedder:
    generator = index.manifest.generator
    if generator is not None:
        folder = index.folder.path(generator.folder)
        encoder = OnnxQueryEncoder(folder / QUERY_GRAPH, text_encoder_folder())
        return lambda texts, space: encoder.encode(texts).media.get(space)
    text_anchors = index.text_anchors()
    if text_anchors is not None:
        return lambda texts, space: text_anchors.embed(index.text_encoder().embed(texts), space)
    try:
        embedder = index.embedder()
    except CartError:  # its package is not installed: captions go without a confidence
        return lambda _texts, _space: None
    return embedder.embed_text
