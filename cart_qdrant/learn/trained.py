"""A trained model for searching: what turns a text into vectors, and what weighs candidates.

None of it needs torch, which takes a second to import, but the generator's correction; that is
loaded when it is first asked for.
Shape legend: B queries, S tokens, W encoder width, D vector width.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cart_qdrant.errors import MismatchError, first_line
from cart_qdrant.index.tokens import load_tokenizer
from cart_qdrant.learn.fusion import Calibration
from cart_qdrant.learn.verticals import Verticals

if TYPE_CHECKING:
    from cart_qdrant.learn.generator import Generator

FloatArray = npt.NDArray[np.float32]
MaskArray = npt.NDArray[np.bool_]

CONFIG = "config.json"
CALIBRATION = "calibration.json"
GENERATOR = "generator.safetensors"
TOWER = "tower.safetensors"
VERTICALS = "verticals.safetensors"
QUERY_GRAPH = "query.onnx"
"""The query encoder, see `query_graph`."""
TAPS = 3
TOGETHER = 16
"""Texts that are encoded in one batch, of like length."""


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
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # One query is too little work for two threads; many run side by side.
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            graph if isinstance(graph, bytes) else str(graph),
            options,
            providers=["CPUExecutionProvider"],
        )
        names = [output.name for output in self._session.get_outputs()]
        self.spaces = [n.removeprefix("media.") for n in names if n.startswith("media.")]
        self._tokenizer = load_tokenizer(folder)

    def encode(self, texts: Sequence[str], *, taps: bool = False) -> Texts:
        """Encode texts.

        Args:
            texts: B of them.
            taps: Whether the generator's states are wanted.
        """
        ids = [found.ids for found in self._tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(ids)), key=lambda n: len(ids[n]))
        groups = [order[n : n + TOGETHER] for n in range(0, len(order), TOGETHER)]
        if len(groups) < 2:
            parts = [self._run([ids[n] for n in group], taps=taps) for group in groups]
        else:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                parts = list(pool.map(lambda g: self._run([ids[n] for n in g], taps=taps), groups))
        back = np.argsort(order)
        return Texts(
            np.concatenate([part.text_BW for part in parts])[back],
            np.concatenate([part.caption_BW for part in parts])[back],
            {s: np.concatenate([part.media[s] for part in parts])[back] for s in self.spaces},
            _widened([part.taps for part in parts], back) if taps else None,
            _padded([part.mask_BS for part in parts])[back],
        )

    def _run(self, ids: Sequence[Sequence[int]], *, taps: bool) -> Texts:
        """Encode one batch of tokenised texts."""
        longest = max(map(len, ids))
        ids_BS = np.zeros((len(ids), longest), dtype=np.int32)
        mask_BS = np.zeros((len(ids), longest), dtype=np.int32)
        for row, one in enumerate(ids):
            ids_BS[row, : len(one)] = one
            mask_BS[row, : len(one)] = 1
        wanted = ["text", "caption", *(f"media.{space}" for space in self.spaces)]
        wanted += [f"tap{n}" for n in range(1, TAPS + 1)] if taps else []
        text, caption, *rest = self._session.run(wanted, {"ids": ids_BS, "mask": mask_BS})
        media = dict(zip(self.spaces, rest, strict=False))
        states = tuple(rest[len(self.spaces) :]) if taps else None
        return Texts(text, caption, media, states, mask_BS.astype(bool))


def _padded(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Batches (B, S, ...) of unequal S as one."""
    longest = max(part.shape[1] for part in parts)
    ends = [[(0, 0), (0, longest - p.shape[1]), *[(0, 0)] * (p.ndim - 2)] for p in parts]
    return np.concatenate([np.pad(p, end) for p, end in zip(parts, ends, strict=True)])


def _widened(
    parts: Sequence[tuple[FloatArray, ...] | None], back: npt.NDArray[np.intp]
) -> tuple[FloatArray, ...]:
    """The states of batches as one, in the order of the texts."""
    taps = zip(*(part for part in parts if part is not None), strict=True)
    return tuple(_padded(tap)[back] for tap in taps)


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
        from cart_qdrant.learn.generator import load_generator

        try:
            return load_generator(self._folder / GENERATOR, self._config["generator"])
        except (OSError, KeyError, TypeError, RuntimeError) as error:
            raise other_parts(self._folder, error) from error


def _graph(folder: Path, text: Path) -> Path | bytes:
    """The query encoder's graph; made with torch for what an older version has trained."""
    if (folder / QUERY_GRAPH).is_file():
        return folder / QUERY_GRAPH
    from cart_qdrant.index.text_encoder import TextEncoder
    from cart_qdrant.learn.model import Model
    from cart_qdrant.learn.query_graph import query_graph

    return query_graph(Model.load(folder, TextEncoder(text)).encoder)


def other_parts(folder: Path, error: Exception) -> MismatchError:
    """The error for a model of another version."""
    return MismatchError(
        f"The generator in {folder} has other parts than this version: {first_line(error)}",
        "Train again: `cartq train`.",
    )
