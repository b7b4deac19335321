"""The published weights of ImageBind: their source, licence and folder.

Imports no torch, since `cartq models` reads it.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from cart_qdrant.embedders.hub import RemoteFile, models_folder
from cart_qdrant.extras import install

REMOTE = RemoteFile(
    url="https://dl.fbaipublicfiles.com/imagebind/imagebind_huge.pth",
    sha256="d6f6c22bedcc90708448d5d2fbb7b2db9c73f505dc89bd0b2e09b23af1b62157",
    bytes=4_803_584_173,
)
VOCABULARY = RemoteFile(
    url="https://raw.githubusercontent.com/openai/CLIP/main/clip/bpe_simple_vocab_16e6.txt.gz",
    sha256="924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a",
    bytes=1_356_917,
)
"""CLIP's byte pairs, MIT licence."""
VOCABULARY_FILE = "bpe_simple_vocab_16e6.txt.gz"
LICENCE = "CC-BY-NC 4.0"
TERMS = (
    "The weights of ImageBind are Meta's, under the Creative Commons licence "
    "Attribution-NonCommercial 4.0 (https://creativecommons.org/licenses/by-nc/4.0/): they may be "
    "used and shared with attribution, and not for commercial purposes."
)
TOWERS = ("vision", "text", "audio")
"""Towers that are kept; the checkpoint also holds depth, thermal and imu."""
PULL = "cartq models pull imagebind"
"""The command that downloads and converts the weights."""


def weights_folder() -> Path:
    """Folder of the converted weights."""
    return models_folder() / "imagebind"


EXTRA = install("imagebind")
"""The command that installs `PACKAGES`."""
PACKAGES = ("ftfy", "transformers")
"""Packages that text and audio are prepared with, by their import names."""


def missing_packages() -> list[str]:
    """The packages of `PACKAGES` that are not installed."""
    return [name for name in PACKAGES if find_spec(name) is None]


def needs_vocabulary() -> bool:
    """Whether CLIP's vocabulary must be fetched, since no installed package holds it."""
    return find_spec("instant_clip_tokenizer") is None


def installed(folder: Path | None = None) -> bool:
    """Whether the files of all towers, and of text, are in `folder`, by default
    `weights_folder()`."""
    folder = folder or weights_folder()
    names = ["config.json", *(f"{tower}.safetensors" for tower in TOWERS)]
    names += [VOCABULARY_FILE] if needs_vocabulary() else []
    return all((folder / name).is_file() for name in names)
