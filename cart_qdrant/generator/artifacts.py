"""The names of the files that make up a trained model."""

from __future__ import annotations

from pathlib import Path

from cart_qdrant.errors import MismatchError, first_line

CONFIG = "config.json"
CALIBRATION = "calibration.json"
GENERATOR = "generator.safetensors"
TOWER = "tower.safetensors"
MODALITY_PRIOR = "modality_prior.safetensors"
QUERY_GRAPH = "query.onnx"
"""The query encoder as a graph for ONNX Runtime, written by `training.export`."""


def other_parts(folder: Path, error: Exception) -> MismatchError:
    """The error for a model folder that this version cannot read."""
    return MismatchError(
        f"The generator in {folder} has other parts than this version: {first_line(error)}",
        "Train again: `cartq train`.",
    )
