"""The published weights of ImageBind: where they come from, on which terms, where they lie.

Without torch: `cartq models` reads it.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from cart_qdrant.embedders.hub import RemoteFile, models_folder

REMOTE = RemoteFile(
    url="https://dl.fbaipublicfiles.com/imagebind/imagebind_huge.pth",
    sha256="d6f6c22bedcc90708448d5d2fbb7b2db9c73f505dc89bd0b2e09b23af1b62157",
    bytes=4_803_584_173,
)
LICENCE = "CC-BY-NC 4.0"
TERMS = (
    "The weights of ImageBind are Meta's, under the Creative Commons licence "
    "Attribution-NonCommercial 4.0 (https://creativecommons.org/licenses/by-nc/4.0/): they may be "
    "used and shared with attribution, and not for commercial purposes."
)
TOWERS = ("vision", "text", "audio")
"""Towers that are kept; the checkpoint has three more."""
PULL = "cartq models pull imagebind"


def weights_folder() -> Path:
    """Where the converted weights lie."""
    return models_folder() / "imagebind"


EXTRA = 'pip install "cart-qdrant[imagebind]"'
PACKAGES = ("ftfy", "instant_clip_tokenizer", "transformers")
"""What text and sound are prepared with."""


def missing_packages() -> list[str]:
    """Of `PACKAGES`, those that are not installed."""
    return [name for name in PACKAGES if find_spec(name) is None]


def installed(folder: Path | None = None) -> bool:
    """Whether all towers are there."""
    folder = folder or weights_folder()
    names = ("config.json", *(f"{tower}.safetensors" for tower in TOWERS))
    return all((folder / name).is_file() for name in names)
