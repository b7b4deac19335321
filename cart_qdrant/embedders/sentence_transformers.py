"""Multimodal models of sentence-transformers as embedders: `st:MODEL` and `embeddinggemma2`.

Only modalities that the model embeds are ingested. The model receives decoded arrays, not paths. A
video is embedded as the mean of its frames, since video processors need torchvision.
Shape legend: B batch, D vector width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.arrays.vectors import unit
from cart_qdrant.embedders.hub import only_local
from cart_qdrant.errors import MediaError, UsageError, first_line
from cart_qdrant.extras import require
from cart_qdrant.media.clip import Clip
from cart_qdrant.records import Modality

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


SPACE = "shared"
PREFIX = "st:"
EMBEDDING_GEMMA = "google/embeddinggemma-2"
_READS = {Modality.IMAGE: "image", Modality.VIDEO: "image", Modality.AUDIO: "audio"}
"""Input type of the model that embeds each modality."""
_BATCH_SIZE = 16


class SentenceEmbedder:
    """Embeds media and text with a multimodal model of sentence-transformers.

    Args:
        model: Name of the model on the Hugging Face hub, or a folder.
        name: Name of the embedder in an index; `st:MODEL` by default.
        device: Torch device; by default the best one that is available.

    Raises:
        MissingExtraError: sentence-transformers is not installed.
        UsageError: The model cannot be loaded, or it embeds neither images nor audio.
    """

    def __init__(self, model: str, *, name: str | None = None, device: str | None = None) -> None:
        self.name = name or PREFIX + model
        self._model = _load(model, device)
        self.version = _version(model, self._model)
        known = {
            modality: SPACE
            for modality, reads in _READS.items()
            if self._model.supports(reads)  # type: ignore[arg-type]
        }
        if not known or not self._model.supports("text"):
            reads = ", ".join(map(str, self._model.modalities))
            raise UsageError(
                f"{model} embeds {reads or 'nothing'}, but text and images or audio are needed.",
                "Take a multimodal one: --embedder st:sentence-transformers/clip-ViT-B-32",
            )
        self.spaces: Mapping[Modality, str] = known
        self.dim = int(self._model.encode(["text"]).shape[1])

    def embed_media(self, clips: Sequence[Clip]) -> FloatArray:
        """L2-normalised vectors x_BD of images, videos and audio.

        Raises:
            MediaError: A clip holds neither frames nor samples, or the model does not embed its
                modality.
        """
        from PIL import Image

        images: list[tuple[int, Any]] = []
        audio: list[tuple[int, Any]] = []
        for n, clip in enumerate(clips):
            if clip.modality not in self.spaces:
                raise MediaError(f"{self.name} does not embed {clip.modality}.")
            if clip.samples is None and not clip.frames:
                raise MediaError(f"{clip.key!r} has a segment without content.")
            if clip.samples is not None:
                audio.append((n, {"array": clip.samples, "sampling_rate": clip.rate}))
            else:
                images += [(n, Image.fromarray(frame)) for frame in clip.frames]
        total = np.zeros((len(clips), self.dim), dtype=np.float32)
        for group in (images, audio):
            if group:
                vectors = self._encode([x for _, x in group], document=True)
                np.add.at(total, [n for n, _ in group], vectors)
        return unit(total)

    def embed_text(self, texts: Sequence[str], space: str = SPACE) -> FloatArray:  # noqa: ARG002
        """L2-normalised vectors x_BD of texts; `space` is not read, since there is only one."""
        return self._encode(list(texts), document=False)

    def _encode(self, inputs: list[Any], *, document: bool) -> FloatArray:
        if not inputs:
            return np.empty((0, self.dim), dtype=np.float32)
        encode = self._model.encode_document if document else self._model.encode_query
        found = encode(
            inputs, batch_size=_BATCH_SIZE, convert_to_numpy=True, show_progress_bar=False
        )  # fmt: skip
        return unit(np.asarray(found, dtype=np.float32))


def _load(model: str, device: str | None) -> SentenceTransformer:
    require("st", "sentence_transformers")
    from sentence_transformers import SentenceTransformer

    local = only_local(model)
    try:
        return SentenceTransformer(model, device=device, local_files_only=local)
    # Hub, folder, configuration, weights: each fails with its own kind of error.
    except Exception as error:
        offline = " (the hub does not answer)" if local and not Path(model).is_dir() else ""
        raise UsageError(
            f"The model {model!r} cannot be loaded{offline}: {first_line(error)}",
            "Name a model of the hub, or a folder that holds one: --embedder st:FOLDER",
        ) from error


def _version(model: str, loaded: SentenceTransformer) -> str:
    """Identifies the weights: the hub's commit, or a hash of sizes and ends of a folder's files."""
    folder = Path(model)
    if not folder.is_dir():
        config = getattr(getattr(loaded[0], "auto_model", None), "config", None)
        return str(getattr(config, "_commit_hash", None) or "1")[:12]
    digest = hashlib.blake2b(digest_size=6)
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".safetensors", ".json", ".bin"} and path.is_file():
            digest.update(f"{path.relative_to(folder)} {path.stat().st_size}".encode())
            with path.open("rb") as file:
                digest.update(file.read(1 << 20))
                file.seek(max(0, path.stat().st_size - (1 << 20)))
                digest.update(file.read())
    return digest.hexdigest()
