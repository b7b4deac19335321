"""Protocols of embedders, which turn media and text into vectors of a collection.

"Encoder" means the generator's query encoder or the text encoder, never an embedder.
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

    A *space* is a set of modalities whose vectors may be compared. ImageBind has one space; `lite`
    has one for images and video, and one for audio.
    """

    @property
    def name(self) -> str:
        """Name of the embedder, as given to `--embedder`."""

    @property
    def version(self) -> str:
        """Changes when the vectors of the same input change; an index is bound to it."""

    @property
    def dim(self) -> int:
        """Vector width D."""

    @property
    def spaces(self) -> Mapping[Modality, str]:
        """Space of each modality that can be embedded; other modalities are skipped."""

    def embed_media(self, clips: Sequence[Clip]) -> FloatArray:
        """L2-normalised vectors x_BD of decoded segments.

        Raises:
            MediaError: A clip has no vector.
        """

    def embed_text(self, texts: Sequence[str], space: str) -> FloatArray | None:
        """L2-normalised vectors x_BD in `space`; None where text reaches it only after training."""


@runtime_checkable
class FittedEmbedder(Protocol):
    """An embedder whose vectors depend on corpus statistics, fitted once at the first ingestion.

    `embed_media(clips)` equals `project(features(clips), space)` row by row.
    """

    @property
    def raw_dim(self) -> int:
        """Raw feature width R."""

    @property
    def spaces(self) -> Mapping[Modality, str]:
        """Space of each modality that can be embedded, as in `Embedder`."""

    def features(self, clips: Sequence[Clip]) -> FloatArray:
        """Raw features x_BR, before statistics are applied."""

    def project(self, x_BR: FloatArray, space: str) -> FloatArray:
        """L2-normalised vectors x_BD of raw features."""

    def fit(self, features: Mapping[str, FloatArray]) -> None:
        """Fit the statistics to raw features (N, R) of each space, where there are enough items."""

    def to_arrays(self) -> dict[str, FloatArray]:
        """The statistics, as arrays for a safetensors file."""

    def load_arrays(self, arrays: Mapping[str, FloatArray]) -> None:
        """Restore the statistics that `to_arrays` gave."""


@runtime_checkable
class AnchoredEmbedder(Protocol):
    """An embedder that has vectors of some texts, through which other texts are embedded."""

    def text_anchors(self) -> TextAnchors:
        """The texts and their vectors, stored in the index so that a search loads no embedder."""
