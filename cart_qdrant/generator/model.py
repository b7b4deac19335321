"""A trained model for searching: what turns a text into vectors, and what weighs candidates.

None of it needs torch, which takes a second to import, but the generator's correction; that is
loaded when it is first asked for.
Shape legend: B queries, S tokens, W encoder width, D vector width.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cart_qdrant.arrays.types import FloatArray, MaskArray
from cart_qdrant.embedders.text.onnx_encoder import TextGraph, padded
from cart_qdrant.errors import MismatchError, first_line
from cart_qdrant.search.fusion import Calibration
from cart_qdrant.search.modality_prior import Verticals

if TYPE_CHECKING:
    from cart_qdrant.generator.network import Generator


CONFIG = "config.json"
CALIBRATION = "calibration.json"
GENERATOR = "generator.safetensors"
TOWER = "tower.safetensors"
VERTICALS = "verticals.safetensors"
QUERY_GRAPH = "query.onnx"
"""The query encoder, see `query_graph`."""
TAPS = 3


@dataclass(frozen=True, slots=True)
class Texts:
    """Encoded queries.

    Attributes:
        text_BW: Sentence vectors, frozen.
        caption_BW: Vectors to compare with caption vectors.
        media: Vectors (B, D) in each media space that the tower reaches.
        taps: States E1, E2, E3 (B, S, W) for the generator; None where they were not asked for.
        mask_BS: True where there is a token.
    """

    text_BW: FloatArray
    caption_BW: FloatArray
    media: Mapping[str, FloatArray]
    taps: tuple[FloatArray, ...] | None
    mask_BS: MaskArray


class QuickEncoder:
    """`QueryEncoder` in ONNX Runtime, in int8: within one percent of its cosines, and quicker.

    Args:
        graph: File that `write_query_graph` has written, or its content.
        folder: The text encoder's, with its tokenizer.
    """

    def __init__(self, graph: Path | bytes, folder: Path) -> None:
        self._graph = TextGraph(graph, folder)
        names = self._graph.outputs
        self.spaces = [n.removeprefix("media.") for n in names if n.startswith("media.")]

    def encode(self, texts: Sequence[str], *, taps: bool = False) -> Texts:
        """Encode texts.

        Args:
            texts: B of them.
            taps: Whether the generator's states are wanted.
        """
        wanted = ["text", "caption", *(f"media.{space}" for space in self.spaces)]
        flat = len(wanted)
        wanted += [f"tap{n}" for n in range(1, TAPS + 1)] if taps else []
        batches, place_B = self._graph.run(texts, wanted)
        columns = list(zip(*(batch.outputs for batch in batches), strict=True))
        text_BW, caption_BW, *media = (np.concatenate(c)[place_B] for c in columns[:flat])
        return Texts(
            text_BW,
            caption_BW,
            dict(zip(self.spaces, media, strict=True)),
            tuple(padded(column)[place_B] for column in columns[flat:]) if taps else None,
            padded([batch.mask_BS for batch in batches])[place_B],
        )


class Trained:
    """See the module's docstring.

    Args:
        folder: The generator's, as `Model.save` has written it.
        text: Folder of the text encoder.

    Raises:
        MismatchError: It was written by a version with other parts.
    """

    def __init__(self, folder: Path, text: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        try:
            self._config = json.loads((folder / CONFIG).read_text())
            self.calibration = Calibration.from_json(json.loads((folder / CALIBRATION).read_text()))
            self.verticals = Verticals.load(folder / VERTICALS)
            self._encoder = QuickEncoder(_graph(folder, text), text)
        except (OSError, KeyError, TypeError, RuntimeError) as error:
            raise other_parts(folder, error) from error

    def encode(self, texts: Sequence[str], *, taps: bool = False) -> Texts:
        """See `QuickEncoder.encode`."""
        return self._encoder.encode(texts, taps=taps)

    @property
    def generator(self) -> Generator:
        """The generator, loaded once.

        Raises:
            MismatchError: It was written by a version with other parts.
        """
        with self._lock:
            return self._generator

    @cached_property
    def _generator(self) -> Generator:
        from cart_qdrant.generator.network import load_generator

        try:
            return load_generator(self._folder / GENERATOR, self._config["generator"])
        except (OSError, KeyError, TypeError, RuntimeError) as error:
            raise other_parts(self._folder, error) from error


def _graph(folder: Path, text: Path) -> Path | bytes:
    """The query encoder's graph; made with torch for what an older version has trained."""
    if (folder / QUERY_GRAPH).is_file():
        return folder / QUERY_GRAPH
    from cart_qdrant.embedders.text.minilm import TextEncoder
    from cart_qdrant.training.export import query_graph
    from cart_qdrant.training.trained_model import Model

    return query_graph(Model.load(folder, TextEncoder(text)).encoder)


def other_parts(folder: Path, error: Exception) -> MismatchError:
    """The error for a model of another version."""
    return MismatchError(
        f"The generator in {folder} has other parts than this version: {first_line(error)}",
        "Train again: `cartq train`.",
    )
