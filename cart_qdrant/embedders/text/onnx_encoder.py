"""Encodes texts by the ONNX graphs of `onnx_graph`, without torch, whose import takes a second.

Shape legend: B texts, S tokens, W encoder width.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cart_qdrant.arrays.types import FloatArray, MaskArray
from cart_qdrant.embedders.text.tokenizer import load_tokenizer
from cart_qdrant.errors import first_line
from cart_qdrant.files import cache_folder, write_atomic

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


log = logging.getLogger(__name__)

THREADS = 2
"""Cores that encode one text, where there are as many."""
MANY = 8
"""Texts from which on each core encodes texts of its own."""
GRAPH_VERSION = 1
"""Version of the cached graphs; a graph of another version is written again."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """The outputs of a graph for one text.

    Attributes:
        outputs: One array for each output that was asked for, (1, ...) or (1, S, ...).
        mask_BS: True where there is a token; B is 1.
    """

    outputs: list[FloatArray]
    mask_BS: MaskArray


class TextGraph:
    """A graph and its tokenizer. Safe to use from several threads.

    Args:
        graph: The ONNX file, or its content.
        folder: The text encoder's folder, which holds the tokenizer.
    """

    def __init__(self, graph: Path | bytes, folder: Path) -> None:
        self._graph = graph
        # A second core takes a third off one text's time.
        self._session = _open(graph, min(THREADS, _cores()))
        self._lock = threading.Lock()
        self._tokenizer = load_tokenizer(folder)
        self.outputs = [output.name for output in self._session.get_outputs()]

    def run(self, texts: Sequence[str], wanted: Sequence[str]) -> list[Encoded]:
        """Encode texts, each by itself: int8 activations share one scale in a batch, and a text's
        vector would depend on its companions (cosine .988, docs/experiments.md).

        Args:
            texts: Any number of texts.
            wanted: Names of the outputs to compute.
        """
        found = self._tokenizer.encode_batch(list(texts))
        if len(found) < MANY or _cores() < 2:
            return [_run(self._session, one.ids, wanted) for one in found]
        session = self._single_threaded()
        with ThreadPoolExecutor(_cores()) as pool:
            return list(pool.map(lambda one: _run(session, one.ids, wanted), found))

    def _single_threaded(self) -> InferenceSession:
        """The graph for many texts: one core a text does more of them than all cores for each."""
        with self._lock:
            return self._many

    @cached_property
    def _many(self) -> InferenceSession:
        return _open(self._graph, 1)


def _run(session: InferenceSession, ids: Sequence[int], wanted: Sequence[str]) -> Encoded:
    ids_BS = np.asarray([ids], dtype=np.int32)
    mask_BS = np.ones_like(ids_BS)
    found = session.run(list(wanted), {"ids": ids_BS, "mask": mask_BS})
    return Encoded(found, mask_BS.astype(bool))


class OnnxTextEncoder:
    """The text encoder in int8: `embed` is within one percent of `TextEncoder.embed`'s cosines.

    Args:
        folder: The text encoder's folder.

    Raises:
        MissingExtraError: The graph is not cached yet, and `onnx`, which writes it, is missing.
    """

    def __init__(self, folder: Path) -> None:
        path = _cached_path(folder)
        try:
            self._graph = TextGraph(path, folder)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime raises nothing narrower
            log.info("The text encoder's graph is written again: %s", first_line(error))
            self._graph = TextGraph(_write(folder, path), folder)

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """Sentence vectors (B, W), L2-normalised."""
        return np.concatenate([one.outputs[0] for one in self._graph.run(texts, ["text"])])


def _cached_path(folder: Path) -> Path:
    """Path in the user's cache of the graph of a text encoder, which takes a second to write."""
    weights = folder / "model.safetensors"
    state = weights.stat()
    name = f"{GRAPH_VERSION} {weights.resolve()} {state.st_size} {state.st_mtime_ns}"
    digest = hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
    return cache_folder() / f"text-{digest}.onnx"


def _write(folder: Path, path: Path) -> bytes:
    """Write the graph of a text encoder, and cache it where the cache can be written."""
    from cart_qdrant.embedders.text.onnx_graph import text_graph

    graph = text_graph(folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, graph)
    except OSError as error:
        log.info("%s cannot be written: %s", path, error)
    return graph


def _open(graph: Path | bytes, threads: int) -> InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # The graph has its fused operators already; full optimisation would replace them.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = threads
    # Threads spin while a query is encoded, and stop after it: the store has threads of its own.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    source = graph if isinstance(graph, bytes) else str(graph)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def padded(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Batches (B, S, ...) of different S as one array, padded with zeros."""
    longest = max(part.shape[1] for part in parts)
    ends = [[(0, 0), (0, longest - p.shape[1]), *[(0, 0)] * (p.ndim - 2)] for p in parts]
    return np.concatenate([np.pad(p, end) for p, end in zip(parts, ends, strict=True)])
