"""The files of a trained model, by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cart_qdrant.errors import MismatchError, first_line

if TYPE_CHECKING:
    pass


CONFIG = "config.json"
CALIBRATION = "calibration.json"
GENERATOR = "generator.safetensors"
TOWER = "tower.safetensors"
MODALITY_PRIOR = "verticals.safetensors"
QUERY_GRAPH = "query.onnx"
"""The query encoder, see `query_graph`."""


def other_parts(folder: Path, error: Exception) -> MismatchError:
    """The error for a model of another version."""
    return MismatchError(
        f"The generator in {folder} has other parts than this version: {first_line(error)}",
        "Train again: `cartq train`.",
    )
