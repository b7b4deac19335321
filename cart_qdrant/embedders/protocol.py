"""What an embedder is: media and text to vectors.

"Embedder" turns media and text into vectors of a collection; "encoder" is the generator's.
Shape legend: B batch, D vector width, R raw feature width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.media.clip import Clip
from cart_qdrant.records import Modality

if TYPE_CHECKING:
    from cart_qdrant.embedders.zero_shot import TextAnchors


class Embedder(Protocol):
    """Turns media into vectors, and text into vectors of the same spaces where it can.

    A *space* is a set of modalities whose vectors may be compared: one for ImageBind, one for
    pictures and one for sound in `lite`.
    """

    @property
    def name(self) -> str:
        """Name given to `--embedder`."""

    @property
    def version(self) -> str:
        """Changes when vectors of the same input change; an index is bound to it."""

    @property
    def dim(self) -> int:
        """Vector width D."""

    @property
    def spaces(self) -> Mapping[Modality, str]:
        """Space of each modality that can be embedded; others are skipped."""

    def embed_media(self, clips: Sequence[Clip]) -> FloatArray:
        """L2-normalised vectors x_BD.

        Raises:
            MediaError: A clip has no vector.
        """

    def embed_text(self, texts: Sequence[str], space: str) -> FloatArray | None:
        """L2-normalised vectors x_BD in `space`, or None where text does not reach it untrained."""


@runtime_checkable
class FittedEmbedder(Protocol):
    """An embedder whose vectors depend on statistics of the corpus, frozen at the first ingest.

    `embed_media(clips)` equals `project(features(clips), space)` row by row.
    """

    @property
    def raw_dim(self) -> int:
        """Raw feature width R."""

    @property
    def spaces(self) -> Mapping[Modality, str]:
        """As in `Embedder`."""

    def features(self, clips: Sequence[Clip]) -> FloatArray:
        """Raw features x_BR, before any statistic is applied."""

    def project(self, x_BR: FloatArray, space: str) -> FloatArray:
        """L2-normalised vectors x_BD of raw features."""

    def fit(self, features: Mapping[str, FloatArray]) -> None:
        """Take the statistics from raw features (N, R) of each space, where there are enough."""

    def to_arrays(self) -> dict[str, FloatArray]:
        """The statistics, for a safetensors file."""

    def load_arrays(self, arrays: Mapping[str, FloatArray]) -> None:
        """Inverse of `to_arrays`."""


@runtime_checkable
class AnchoredEmbedder(Protocol):
    """An embedder that knows vectors of some texts, and reaches others through them."""

    def text_anchors(self) -> TextAnchors:
        """The texts and their vectors; kept in the index, so that a search loads no embedder."""
