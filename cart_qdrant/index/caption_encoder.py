"""What makes caption vectors: the text encoder, or the query encoder of a trained model.

Shape legend: B texts, W caption vector width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.generator.artifacts import QUERY_GRAPH, readable

if TYPE_CHECKING:
    from cart_qdrant.embedders.text.minilm import TextEncoder

TEXTS = 128
"""Captions that are embedded together: larger batches are no faster and need more memory."""


class CaptionEncoder(Protocol):
    """Makes the vectors of captions, of which those of an item are averaged."""

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """Unit vectors (B, W) of texts (B of them, one at least)."""


class SentenceEncoder:
    """Captions as sentence vectors of the untrained text encoder, in torch."""

    def __init__(self, text: TextEncoder) -> None:
        self._text = text

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """Sentence vectors (B, W)."""
        return self._text.embed(texts, batch=TEXTS)


class TunedEncoder:
    """Captions by the output `caption` of a trained query encoder, in ONNX Runtime.

    Args:
        folder: Folder of the trained model.

    Raises:
        MismatchError: The folder has other parts than this version reads.
    """

    def __init__(self, folder: Path) -> None:
        from cart_qdrant.generator.encoder import OnnxQueryEncoder

        with readable(folder):
            self._encoder = OnnxQueryEncoder(folder / QUERY_GRAPH, folder)

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """Caption vectors (B, W)."""
        return self._encoder.captions(texts)
