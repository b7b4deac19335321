"""Multimodal models of sentence-transformers as embedders: `st:MODEL` and `embeddinggemma2`.

Only modalities that the model embeds are ingested. The model receives decoded arrays, not paths. A
video is embedded as the mean of its frames, since video processors need torchvision.
Shape legend: B batch, D vector width.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.arrays.vectors import unit
from cart_qdrant.compute import Compute, ComputeOptions, Work, choose
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
_COMMIT = re.compile(r"[0-9a-f]{40}")


class SentenceEmbedder:
    """Embeds media and text with a multimodal model of sentence-transformers.

    Args:
        model: Name of the model on the Hugging Face hub, or a folder.
        name: Name of the embedder in an index; `st:MODEL` by default.
        options: Where it computes, and in which number format; weights stay in float32.
        version: `version` of the embedder that an index was made with; None takes the newest. A
            model of the hub is loaded at that commit, whatever was pushed since.

    Attributes:
        compute: Where it computes, and in which format; None before the first input.

    Raises:
        MissingExtraError: sentence-transformers is not installed.
        UsageError: The model cannot be loaded, or it embeds neither images nor audio.
    """

    def __init__(
        self,
        model: str,
        *,
        name: str | None = None,
        options: ComputeOptions | None = None,
        version: str | None = None,
    ) -> None:
        self.name = name or PREFIX + model
        commit = version if version is not None and _COMMIT.fullmatch(version) else None
        self._options = options or ComputeOptions()
        self.compute: Compute | None = None
        self._model = _load(model, self._options.place(), commit)
        self.version = commit or _version(model)
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
        self.compute = choose(self._options, Work.TRANSFORMER)
        with self.compute.autocast():
            found = encode(
                inputs, batch_size=_BATCH_SIZE, convert_to_numpy=True, show_progress_bar=False
            )  # fmt: skip
        return unit(np.asarray(found, dtype=np.float32))


def _load(model: str, device: str, commit: str | None) -> SentenceTransformer:
    require("st", "sentence_transformers")
    from sentence_transformers import SentenceTransformer

    local = only_local(model)
    try:
        return SentenceTransformer(model, device=device, local_files_only=local, revision=commit)
    # Hub, folder, configuration, weights: each fails with its own kind of error.
    except Exception as error:
        offline = " (the hub does not answer)" if local and not Path(model).is_dir() else ""
        at = f" at the commit {commit}, which the index was made with," if commit else ""
        raise UsageError(
            f"The model {model!r}{at} cannot be loaded{offline}: {first_line(error)}",
            "Name a model of the hub, or a folder that holds one: --embedder st:FOLDER",
        ) from error


def _commit_in_cache(model: str) -> str | None:
    """Commit at which a model of the hub, which was just loaded, lies in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    for name in ("modules.json", "config.json"):
        path = try_to_load_from_cache(model, name)
        if isinstance(path, str):
            # CACHE/models--OWNER--NAME/snapshots/COMMIT/FILE
            return Path(path).parent.name
    return None


def _version(model: str) -> str:
    """Identifies the weights: the hub's commit, or a hash of sizes and ends of a folder's files."""
    folder = Path(model)
    if not folder.is_dir():
        return _commit_in_cache(model) or "1"
    digest = hashlib.blake2b(digest_size=6)
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".safetensors", ".json", ".bin"} and path.is_file():
            digest.update(f"{path.relative_to(folder)} {path.stat().st_size}".encode())
            with path.open("rb") as file:
                digest.update(file.read(1 << 20))
                file.seek(max(0, path.stat().st_size - (1 << 20)))
                digest.update(file.read())
    return digest.hexdigest()
