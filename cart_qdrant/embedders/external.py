"""The embedder of an attached collection whose vectors another program made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.errors import MediaError
from cart_qdrant.media.clip import Clip
from cart_qdrant.records import Modality

EXTERNAL = "external"
"""Name of the embedder of an attached collection whose model was not named."""


class ExternalEmbedder:
    """Stands for an unknown model: its vectors are in the collection, but it can embed nothing.

    Args:
        dim: Vector width D.
        spaces: Space of each modality.
    """

    name = EXTERNAL
    version = "1"

    def __init__(self, dim: int, spaces: Mapping[Modality, str]) -> None:
        self.dim, self.spaces = dim, spaces

    def embed_media(self, clips: Sequence[Clip]) -> FloatArray:
        """No vectors, since the model is not known.

        Raises:
            MediaError: Always.
        """
        raise MediaError(
            f"{clips[0].key}: the model that made the vectors of this collection is not known.",
            "Attach with --embedder NAME to ask by files.",
        )

    def embed_text(self, texts: Sequence[str], space: str) -> None:  # noqa: ARG002
        """None, since text reaches the vectors only after training."""
        return
