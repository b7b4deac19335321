"""Texts through ONNX graphs, see `bert_graph`: no torch, which takes a second to import.

Shape legend: B texts, S tokens, W encoder width.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
"""Cores that one text is encoded by, where there are as many."""
TOGETHER = 16
"""Texts that are encoded in one batch, of like length."""
FORM = 1
"""Of the graphs that are kept: another is written where this one changes."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Some of the texts.

    Attributes:
        outputs: What was asked for, of each text or of each of its tokens.
        mask_BS: Where there is a token.
    """

    outputs: list[FloatArray]
    mask_BS: MaskArray


class TextGraph:
    """A graph and its tokenizer. Safe to use from threads.

    Args:
        graph: File or content.
        folder: The text encoder's, with its tokenizer.
    """

    def __init__(self, graph: Path | bytes, folder: Path) -> None:
        self._session = _open(graph)
        self._tokenizer = load_tokenizer(folder)
        self.outputs = [output.name for output in self._session.get_outputs()]

    def run(
        self, texts: Sequence[str], wanted: Sequence[str]
    ) -> tuple[list[Batch], npt.NDArray[np.intp]]:
        """Encode texts, those of like length together.

        Args:
            texts: Any number.
            wanted: Names of outputs.

        Returns:
            The batches, and where each text is in all of them together.
        """
        ids = [found.ids for found in self._tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(ids)), key=lambda n: len(ids[n]))
        groups = [order[n : n + TOGETHER] for n in range(0, len(order), TOGETHER)]

        def one(group: list[int]) -> Batch:
            return self._run([ids[n] for n in group], wanted)

        side_by_side = _cores() // THREADS
        if len(groups) < 2 or side_by_side < 2:
            batches = [one(group) for group in groups]
        else:
            with ThreadPoolExecutor(side_by_side) as pool:
                batches = list(pool.map(one, groups))
        return batches, np.argsort(order)

    def _run(self, ids: Sequence[Sequence[int]], wanted: Sequence[str]) -> Batch:
        longest = max(map(len, ids))
        ids_BS = np.zeros((len(ids), longest), dtype=np.int32)
        mask_BS = np.zeros((len(ids), longest), dtype=np.int32)
        for row, one in enumerate(ids):
            ids_BS[row, : len(one)] = one
            mask_BS[row, : len(one)] = 1
        found = self._session.run(list(wanted), {"ids": ids_BS, "mask": mask_BS})
        return Batch(found, mask_BS.astype(bool))


class OnnxTextEncoder:
    """`TextEncoder.embed`, in int8: within one percent of its cosines.

    Args:
        folder: The text encoder's.
    """

    def __init__(self, folder: Path) -> None:
        path = _kept(folder)
        try:
            self._graph = TextGraph(path, folder)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime raises nothing narrower
            log.info("The text encoder's graph is written anew: %s", first_line(error))
            self._graph = TextGraph(_write(folder, path), folder)

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """Sentence vectors (B, W), at length 1."""
        batches, place_B = self._graph.run(texts, ["text"])
        return np.concatenate([batch.outputs[0] for batch in batches])[place_B]


def _kept(folder: Path) -> Path:
    """Where the graph of a text encoder is kept, in the user's cache: writing it takes a second."""
    weights = folder / "model.safetensors"
    state = weights.stat()
    name = f"{FORM} {weights.resolve()} {state.st_size} {state.st_mtime_ns}"
    digest = hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
    return cache_folder() / f"text-{digest}.onnx"


def _write(folder: Path, path: Path) -> bytes:
    """The graph of a text encoder, kept if it may be."""
    from cart_qdrant.embedders.text.onnx_graph import text_graph

    graph = text_graph(folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, graph)
    except OSError as error:
        log.info("%s cannot be written: %s", path, error)
    return graph


def _open(graph: Path | bytes) -> InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # The graph has its fused operators already; others would be put in for it.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    # A second core takes a third off one query's time, if it is waiting when its part comes:
    # it spins meanwhile, and no longer, since the store has threads of its own.
    options.intra_op_num_threads = min(THREADS, _cores())
    options.add_session_config_entry("session.force_spinning_stop", "1")
    source = graph if isinstance(graph, bytes) else str(graph)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def padded(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Batches (B, S, ...) of unequal S as one."""
    longest = max(part.shape[1] for part in parts)
    ends = [[(0, 0), (0, longest - p.shape[1]), *[(0, 0)] * (p.ndim - 2)] for p in parts]
    return np.concatenate([np.pad(p, end) for p, end in zip(parts, ends, strict=True)])
