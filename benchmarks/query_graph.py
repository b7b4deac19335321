"""Number formats of the query encoder's graph: time, size, and nearness to float32.

    python -m benchmarks.query_graph CAPTIONS.jsonl

Takes any file of captions, one JSON object with `text` a line. Each variant of the graph encodes
the same texts alone (two threads, as a search does), in batches of one length and in padded ones
(one thread); cosines are to torch in float32 and to the same text alone. Variants take turns in
each of several rounds, and the least time counts, since other work on the machine only adds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.embedders.text.folder import text_encoder_folder
from cart_qdrant.embedders.text.minilm import TextEncoder
from cart_qdrant.embedders.text.onnx_graph import FUSED, Affine, GraphWriter
from cart_qdrant.training.export import query_graph
from cart_qdrant.training.query_encoder import QueryEncoder

SPACE, DIM = "visual", 1280
ROUNDS = 7


class Float32(GraphWriter):
    """Weights and arithmetic in float32."""

    def linear(self, x: str, affine: Affine) -> str:
        y = self.node("MatMul", [x, self.weight(affine.weight.T)])
        return self.node("Add", [y, self.weight(affine.bias)])


class Float16(GraphWriter):
    """Weights in float16, arithmetic in float32."""

    def linear(self, x: str, affine: Affine) -> str:
        half = self.weight(affine.weight.T.astype(np.float16))
        whole = self.node("Cast", [half], to=self._onnx.TensorProto.FLOAT)
        return self.node("Add", [self.node("MatMul", [x, whole]), self.weight(affine.bias)])


class Blocks(GraphWriter):
    """`MatMulNBits`: 8 bits, a scale for each block of a column and of a row."""

    block, level = 128, 4

    def linear(self, x: str, affine: Affine) -> str:
        w_OI = affine.weight
        o, i = w_OI.shape
        cut = w_OI.reshape(o, i // self.block, self.block)
        scale = np.maximum(np.abs(cut).max(axis=2), 1e-12).astype(np.float32) / 127
        table = (np.rint(cut / scale[:, :, None]) + 128).astype(np.uint8)
        inputs = [x, self.weight(table), self.weight(scale.reshape(-1)), "", "",
                  self.weight(affine.bias)]  # fmt: skip
        return self.node(
            "MatMulNBits", inputs, domain=FUSED, K=i, N=o, bits=8, block_size=self.block,
            accuracy_level=self.level,
        )  # fmt: skip


class Blocks32(Blocks):
    """The same with blocks of 32."""

    block = 32


class Blocks64(Blocks):
    """The same with blocks of 64."""

    block = 64


class Rows(GraphWriter):
    """int8 with a scale for each row of the activations, by standard operators."""

    def linear(self, x: str, affine: Affine) -> str:
        w_IO = affine.weight.T
        scale = np.maximum(np.abs(w_IO).max(axis=0), 1e-12).astype(np.float32) / 127
        table = np.rint(w_IO / scale).astype(np.int8)
        top = self.node("ReduceMax", [self.node("Abs", [x])], axes=[-1], keepdims=1)
        step = self.node("Mul", [top, self.weight(np.asarray(1 / 127, np.float32))])
        scaled = self.node("Round", [self.node("Div", [x, step])])
        shifted = self.node("Add", [scaled, self.weight(np.asarray(128, np.float32))])
        codes = self.node("Cast", [shifted], to=self._onnx.TensorProto.UINT8)
        zero = self.weight(np.asarray(128, np.uint8))
        y = self.node("MatMulInteger", [codes, self.weight(table), zero])
        y = self.node("Cast", [y], to=self._onnx.TensorProto.FLOAT)
        y = self.node("Mul", [self.node("Mul", [y, step]), self.weight(scale)])
        return self.node("Add", [y, self.weight(affine.bias)])


VARIANTS: dict[str, type[GraphWriter]] = {
    "int8, one activation scale a run": GraphWriter,
    "float32": Float32,
    "float16 stored, float32 computed": Float16,
    "int8 in blocks of 32": Blocks32,
    "int8 in blocks of 64": Blocks64,
    "int8 in blocks of 128": Blocks,
    "int8, an activation scale a row": Rows,
}


def main() -> None:
    """Make the graphs, time them, print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("captions", type=Path)
    parser.add_argument("--texts", type=int, default=256)
    args = parser.parse_args()
    texts = [json.loads(line)["text"] for line in args.captions.read_text().splitlines()]
    rng = np.random.default_rng(0)
    texts = [texts[n] for n in rng.permutation(len(texts))[: args.texts]]
    torch.manual_seed(0)
    encoder = QueryEncoder(TextEncoder(text_encoder_folder()), {SPACE: DIM}).eval()
    for layer in encoder.tuned:
        torch.nn.init.normal_(layer.down.weight, std=0.05)
    ids = encoder.tokenize(texts)
    truth = np.concatenate([encoder.encode([one]).caption_BW.numpy() for one in ids])
    graphs = {name: query_graph(encoder, kind) for name, kind in VARIANTS.items()}
    sessions = {
        name: [_open(graph, threads) for threads in (1, 2)] for name, graph in graphs.items()
    }
    ways: dict[str, Callable[[list[Any]], FloatArray]] = {
        "alone": lambda s: _run(s[1], ids, 1, False),
        "alone, one thread": lambda s: _run(s[0], ids, 1, False),
        "one length": lambda s: _run(s[0], ids, 64, True),
        "padded": lambda s: _run(s[0], ids, 64, False),
    }
    least = {name: dict.fromkeys(ways, np.inf) for name in graphs}
    found: dict[str, dict[str, FloatArray]] = {name: {} for name in graphs}
    for _ in range(ROUNDS):
        for name, pair in sessions.items():
            for way, run in ways.items():
                begin = time.perf_counter()
                found[name][way] = run(pair)
                took = (time.perf_counter() - begin) * 1e3 / len(texts)
                least[name][way] = min(least[name][way], took)
    print(f"| graph | MB | {' | '.join(ways)} | cosine to float32 | to alone | differs by |")
    print("|---|" + "---:|" * (len(ways) + 4))
    for name, graph in graphs.items():
        times = " | ".join(f"{least[name][way]:.2f}" for way in ways)
        alone = found[name]["alone"]
        exact = (alone * truth).sum(axis=1)
        others = [found[name][way] for way in ("one length", "padded")]
        cosine = min(float((other * alone).sum(axis=1).min()) for other in others)
        apart = max(float(np.abs(other - alone).max()) for other in others)
        print(f"| {name} | {len(graph) / 1e6:.1f} | {times} | {exact.mean():.4f}, "
              f"{exact.min():.4f} | {cosine:.4f} | {apart:.0e} |")  # fmt: skip


def _open(graph: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _run(
    session: onnxruntime.InferenceSession, ids: list[list[int]], batch: int, one_length: bool
) -> FloatArray:
    """Caption vectors of all texts, in batches; padded unless of one length."""
    lengths = np.asarray([len(one) for one in ids])
    groups = [np.flatnonzero(lengths == n) for n in np.unique(lengths)] if one_length else []
    out = np.empty((len(ids), 384), dtype=np.float32)
    for rows in groups or [np.arange(len(ids))]:
        for begin in range(0, len(rows), batch):
            part = rows[begin : begin + batch]
            longest = int(lengths[part].max())
            ids_BS = np.zeros((len(part), longest), np.int32)
            mask_BS = np.zeros_like(ids_BS)
            for n, row in enumerate(part):
                ids_BS[n, : lengths[row]] = ids[row]
                mask_BS[n, : lengths[row]] = 1
            wanted = ["caption", f"media.{SPACE}"]
            out[part] = session.run(wanted, {"ids": ids_BS, "mask": mask_BS})[0]
    return out


if __name__ == "__main__":
    main()
