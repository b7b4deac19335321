"""Opens an embedder by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cart_qdrant.compute import ComputeOptions
from cart_qdrant.embedders.imagebind import download
from cart_qdrant.embedders.protocol import Embedder
from cart_qdrant.errors import MissingExtraError, UsageError
from cart_qdrant.extras import MODULES, install, missing, require

NAMES = ("auto", "imagebind", "embeddinggemma2", "st:MODEL", "lite", "precomputed")
"""Values of `--embedder`."""


def lite_available() -> bool:
    """Whether all packages of the `lite` extra are installed."""
    return not missing("lite")


def open_embedder(
    name: str,
    *,
    vectors: Path | None = None,
    model: str | None = None,
    version: str | None = None,
    say: Callable[[str], None] | None = None,
    compute: ComputeOptions | None = None,
) -> Embedder:
    """The embedder of that name, ready to embed.

    Args:
        name: One of `NAMES`; `auto` takes the best embedder whose weights are installed.
        vectors: File of vectors, for `precomputed`.
        model: Name of the model that made them, where the file does not say it.
        version: Version that an index was made with, which a model of the hub is loaded at.
        say: Receives one line that says what `auto` chose.
        compute: Device and number format; measured when the first input comes.

    Raises:
        UsageError: The name is unknown, `precomputed` has no file, or the model cannot be loaded.
        MissingExtraError: The weights, or packages that the embedder needs, are not installed.
    """
    if name == "auto":
        name, reason = _best()
        if say is not None:
            say(f"embedder: {name} ({reason})")
    if name == "precomputed":
        from cart_qdrant.embedders.precomputed import PrecomputedEmbedder

        if vectors is None:
            raise UsageError("--embedder precomputed needs a file.", "Add --vectors FILE.npz")
        return PrecomputedEmbedder.from_file(vectors, model)
    if name == "imagebind":
        require("imagebind", *download.PACKAGES, *MODULES["media"], *MODULES["train"])
        from cart_qdrant.embedders.imagebind.embedder import ImageBindEmbedder

        return ImageBindEmbedder(options=compute)
    if name == "embeddinggemma2" or name.startswith("st:"):
        require("st", *MODULES["media"], *MODULES["train"], "sentence_transformers")
        from cart_qdrant.embedders.sentence_transformers import EMBEDDING_GEMMA, SentenceEmbedder

        if name == "embeddinggemma2":
            return SentenceEmbedder(EMBEDDING_GEMMA, name=name, options=compute, version=version)
        model = name.removeprefix("st:")
        if not model:
            raise UsageError("--embedder st: names no model.", "st:NAME, or st:FOLDER")
        # A folder is found from wherever the index is opened later.
        model = str(Path(model).resolve()) if Path(model).is_dir() else model
        return SentenceEmbedder(model, options=compute, version=version)
    if name != "lite":
        raise UsageError(
            f"--embedder is {name!r}, but must be one of {', '.join(NAMES)}.", "cartq models"
        )
    require("lite")
    from cart_qdrant.embedders.lite.embedder import LiteEmbedder

    return LiteEmbedder(compute)


def _best() -> tuple[str, str]:
    """The embedder that `auto` chooses, and why."""
    if download.installed() and not download.missing_packages():
        return "imagebind", "its weights are here"
    if lite_available():
        return "lite", "ImageBind is not here: see `cartq models`"
    raise MissingExtraError("No embedder is installed.", install("lite"))
