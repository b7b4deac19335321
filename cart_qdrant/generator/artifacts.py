"""The names of the files that make up a trained model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cart_qdrant.errors import CartError, MismatchError, first_line

CONFIG = "config.json"
CALIBRATION = "calibration.json"
GENERATOR = "generator.safetensors"
TOWER = "tower.safetensors"
MODALITY_PRIOR = "modality_prior.safetensors"
QUERY_GRAPH = "query.onnx"
"""The query encoder as a graph for ONNX Runtime, written by `training.export`."""


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Raise what the readers of a model's files raise, each its own kind, as `MismatchError`."""
    try:
        yield
    except CartError:
        raise
    except Exception as error:
        raise MismatchError(
            f"The generator in {folder} is damaged, or has other parts than this version: "
            f"{first_line(error)}",
            "Look which: `cartq doctor`; or train again: `cartq train`.",
        ) from error
