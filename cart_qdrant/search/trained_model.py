"""What a search loads of a trained model: query encoder, calibration, modality prior, generator.

Only the generator needs torch, which takes a second to import; it is loaded when it first runs.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from cart_qdrant.extras import require
from cart_qdrant.generator.artifacts import (
    CALIBRATION,
    CONFIG,
    GENERATOR,
    MODALITY_PRIOR,
    QUERY_GRAPH,
    readable,
)
from cart_qdrant.generator.encoder import EncodedTexts, OnnxQueryEncoder
from cart_qdrant.search.fusion import Calibration
from cart_qdrant.search.modality_prior import ModalityPrior

if TYPE_CHECKING:
    from cart_qdrant.generator.network import Generator


class TrainedModel:
    """A trained model for searching.

    Args:
        folder: Folder of the model, as training wrote it; it holds the tokenizer, too.

    Raises:
        MismatchError: The folder has other parts than this version reads.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        with readable(folder):
            self._config = json.loads((folder / CONFIG).read_text())
            self.calibration = Calibration.from_json(json.loads((folder / CALIBRATION).read_text()))
            self.modality_prior = ModalityPrior.load(folder / MODALITY_PRIOR)
            self._encoder = OnnxQueryEncoder(folder / QUERY_GRAPH, folder)

    def encode(self, texts: Sequence[str], *, hidden_states: bool = False) -> EncodedTexts:
        """Vectors of texts, as `OnnxQueryEncoder.encode` computes them."""
        return self._encoder.encode(texts, hidden_states=hidden_states)

    @property
    def generator(self) -> Generator:
        """The generator, loaded once.

        Raises:
            MismatchError: Its file holds another architecture's weights.
        """
        with self._lock:
            return self._generator

    @cached_property
    def _generator(self) -> Generator:
        require("train", "torch")
        from cart_qdrant.generator.network import load_generator

        with readable(self._folder):
            return load_generator(self._folder / GENERATOR, self._config["generator"])
