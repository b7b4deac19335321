"""The embedder of vectors that another program made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.errors import MediaError
from cart_qdrant.media.clip import Clip
from cart_qdrant.records import Modality

if TYPE_CHECKING:
    pass


EXTERNAL = "external"
"""Name of what made the vectors of an attached collection, where nobody told."""


class ExternalEmbedder:
    """Stands for a model that is not known: its vectors are there, and nothing else embeds so.

    Args:
        dim: Vector width.
        spaces: Space of each modality.
    """

    name = EXTERNAL
    version = "1"

    def __init__(self, dim: int, spaces: Mapping[Modality, str]) -> None:
        self.dim, self.spaces = dim, spaces

    def embed_media(self, clips: Sequence[Clip]) -> FloatArray:
        """Raises `MediaError`."""
        raise MediaError(
            f"{clips[0].key}: the model that made the vectors of this collection is not known.",
            "Attach with --embedder NAME to ask by files.",
        )

    def embed_text(self, texts: Sequence[str], space: str) -> None:  # noqa: ARG002
        """None: text reaches the vectors after training."""
        return
