"""Writes BERT as an ONNX graph, so that a search needs no torch, which is slow to import.

The graph is written node by node, with ONNX Runtime's fused operators: a general exporter takes
seconds in each training run, and needs an optimiser afterwards to find the same operators.
Matrices are int8, with one scale for each column, and activations are quantised dynamically
(Zafrir et al., arXiv 1910.06188); token embeddings are int8, with one scale for each row.
Shape legend: B batch, S tokens, W encoder width, I input width and O output width of a linear map,
V vocabulary, P positions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.extras import require

if TYPE_CHECKING:
    import onnx


OPSET = 17
FUSED = "com.microsoft"
"""Domain of ONNX Runtime's fused operators."""


@dataclass(frozen=True, slots=True)
class Affine:
    """Weight (O, I) and bias (O,) of a linear map, or weight (W,) and bias (W,) of a layer norm."""

    weight: FloatArray
    bias: FloatArray


@dataclass(frozen=True, slots=True)
class TokenEmbedding:
    """The embedding of tokens before the first layer.

    Attributes:
        tokens_VW: A vector for each token of the vocabulary.
        positions_PW: A vector for each position, with that of the token's type added.
        norm: Layer norm over their sum.
    """

    tokens_VW: FloatArray
    positions_PW: FloatArray
    norm: Affine


@dataclass(frozen=True, slots=True)
class Layer:
    """One post-norm layer: attention, then two linear maps with a GELU between them."""

    qkv: Affine
    out: Affine
    norm1: Affine
    up: Affine
    down: Affine
    norm2: Affine
    heads: int


class GraphWriter:
    """Collects the nodes and weights of one graph.

    The graph's inputs are `ids` (B, S) and `mask` (B, S), both int32.

    Args:
        eps: Epsilon of all layer norms.

    Raises:
        MissingExtraError: `onnx` is not installed.
    """

    def __init__(self, eps: float) -> None:
        require("train", "onnx")
        import onnx

        self._onnx = onnx
        self._eps = eps
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._count = 0

    def finish(self, outputs: Mapping[str, str]) -> bytes:
        """The serialised graph; `outputs` maps each of its outputs to the output of a node."""
        helper, kind = self._onnx.helper, self._onnx.TensorProto
        for name, found in outputs.items():
            self._nodes.append(helper.make_node("Identity", [found], [name]))
        shape = ["batch", "tokens"]
        graph = helper.make_graph(
            self._nodes,
            "query",
            [helper.make_tensor_value_info(name, kind.INT32, shape) for name in ("ids", "mask")],
            [helper.make_tensor_value_info(name, kind.FLOAT, None) for name in outputs],
            self._weights,
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(FUSED, 1)]
        model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        data: bytes = model.SerializeToString()
        return data

    # Parts of an encoder

    def embed(self, embedding: TokenEmbedding) -> str:
        """States (B, S, W) of tokens before the first layer."""
        table, scale = _rows(embedding.tokens_VW)
        found = self.node("Gather", [self.weight(table), "ids"])
        x = self.node("Cast", [found], to=self._onnx.TensorProto.FLOAT)
        x = self.node("Mul", [x, self.node("Gather", [self.weight(scale), "ids"])])
        count = self.node("Shape", ["ids"], start=1, end=2)
        zero = self.weight(np.zeros(1, np.int64))
        here = self.node("Slice", [self.weight(embedding.positions_PW), zero, count, zero])
        return self._normed(x, here, embedding.norm)

    def layer(self, x: str, layer: Layer) -> str:
        """States (B, S, W) after one layer."""
        w = layer.out.weight.shape[1]
        qkv = self.linear(x, layer.qkv)
        sizes = self.weight(np.asarray([w, w, w], np.int64))
        parts = self._nodes_of("Split", [qkv, sizes], 3, axis=2)
        # Inputs: query, key, value, bias, key_padding_mask.
        read = self.node(
            "MultiHeadAttention", [*parts, "", "mask"], domain=FUSED, num_heads=layer.heads
        )
        y = self.linear(read, layer.out)
        x = self._normed(y, x, layer.norm1)
        up = self.linear(x, layer.up)
        y = self.linear(self.node("Gelu", [up], domain=FUSED), layer.down)
        return self._normed(y, x, layer.norm2)

    def _normed(self, x: str, skip: str, norm: Affine) -> str:
        # Their fused form, SkipLayerNormalization, takes twice as long (docs/experiments.md).
        both = self.node("Add", [x, skip])
        weights = [self.weight(norm.weight), self.weight(norm.bias)]
        return self.node("LayerNormalization", [both, *weights], axis=-1, epsilon=self._eps)

    def pooled(self, x: str) -> str:
        """Unit vectors (B, W): the mean over the tokens of each text."""
        axis = self.weight(np.asarray([1], np.int64))
        last = self.weight(np.asarray([2], np.int64))
        mask = self.node("Cast", ["mask"], to=self._onnx.TensorProto.FLOAT)
        there = self.node("Mul", [x, self.node("Unsqueeze", [mask, last])])
        # The sum does, too: dividing by the number of tokens only changes the length.
        return self.unit(self.node("ReduceSum", [there, axis], keepdims=0))

    def unit(self, x: str) -> str:
        """The vectors, L2-normalised."""
        return self.node("LpNormalization", [x], axis=-1, p=2)

    # Nodes and weights

    def linear(self, x: str, affine: Affine) -> str:
        """`x W + b` with W in int8."""
        table, scale = _columns(affine.weight.T)
        zero = np.zeros(len(scale), np.int8)
        weights: list[npt.NDArray[Any]] = [table, scale, zero, affine.bias]
        inputs = [x, *(self.weight(one) for one in weights)]
        return self.node("DynamicQuantizeMatMul", inputs, domain=FUSED)

    def weight(self, array: npt.NDArray[Any]) -> str:
        """Add a constant; returns its name."""
        self._count += 1
        name = f"w{self._count}"
        self._weights.append(self._onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, op: str, inputs: list[str], domain: str = "", **options: Any) -> str:
        """Add a node; returns the name of its output."""
        return self._nodes_of(op, inputs, 1, domain, **options)[0]

    def _nodes_of(
        self, op: str, inputs: list[str], outputs: int, domain: str = "", **options: Any
    ) -> list[str]:
        """Add a node; returns the names of its outputs."""
        self._count += 1
        names = [f"x{self._count}.{n}" for n in range(outputs)]
        make = self._onnx.helper.make_node
        self._nodes.append(make(op, inputs, names, domain=domain, **options))
        return names


def text_graph(folder: Path) -> bytes:
    """The graph of a sentence encoder, whose output `text` (B, W) is that of `TextEncoder.embed`.

    Args:
        folder: Holds `config.json` and `model.safetensors` with Hugging Face's parameter names.
    """
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    state = load_file(folder / "model.safetensors")

    def affine(name: str) -> Affine:
        return Affine(state[f"{name}.weight"], state[f"{name}.bias"])

    at = "embeddings"
    positions_PW = state[f"{at}.position_embeddings.weight"]
    positions_PW = positions_PW + state[f"{at}.token_type_embeddings.weight"][0]
    writer = GraphWriter(config["layer_norm_eps"])
    tokens_VW = state[f"{at}.word_embeddings.weight"]
    x = writer.embed(TokenEmbedding(tokens_VW, positions_PW, affine(f"{at}.LayerNorm")))
    for n in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{n}"
        parts = [affine(f"{at}.attention.self.{part}") for part in ("query", "key", "value")]
        qkv = Affine(
            np.concatenate([part.weight for part in parts]),
            np.concatenate([part.bias for part in parts]),
        )
        x = writer.layer(
            x,
            Layer(
                qkv, affine(f"{at}.attention.output.dense"),
                affine(f"{at}.attention.output.LayerNorm"), affine(f"{at}.intermediate.dense"),
                affine(f"{at}.output.dense"), affine(f"{at}.output.LayerNorm"),
                config["num_attention_heads"],
            ),
        )  # fmt: skip
    return writer.finish({"text": writer.pooled(x)})


def _columns(w_IO: FloatArray) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """A matrix in int8, and the scale (O,) of each of its columns."""
    scale = np.maximum(np.abs(w_IO).max(axis=0), 1e-12).astype(np.float32) / 127
    return np.rint(w_IO / scale).astype(np.int8), scale


def _rows(w_VW: FloatArray) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """A table in int8, and the scale (V, 1) of each of its rows."""
    table, scale = _columns(w_VW.T)
    return table.T, scale[:, None]
