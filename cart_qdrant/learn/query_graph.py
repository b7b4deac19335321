"""The query encoder as an ONNX graph: searches run it without torch, which is slow to import.

The graph is written node by node, with ONNX Runtime's fused operators: a general exporter takes
seconds for each training, and needs an optimiser behind it to find the same operators again.
Matrices are int8, one scale for each column, and activations are quantised as they come
(Zafrir et al., arXiv 1910.06188); words are int8, one scale for each row.
Shape legend: B batch, S tokens, W encoder width, D vector width, V words.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cart_qdrant.learn.query_encoder import SHARED, CaptionHead, Head, QueryEncoder

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

FloatArray = npt.NDArray[np.float32]

OPSET = 17
FUSED = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""


def write_query_graph(encoder: QueryEncoder, path: Path) -> None:
    """Write `query_graph` to a file."""
    path.write_bytes(query_graph(encoder))


def query_graph(encoder: QueryEncoder) -> bytes:
    """The graph of an encoder.

    Inputs are `ids` (B, S) and `mask` (B, S), int32; outputs `text` (B, W), `caption` (B, W), the
    vectors (B, D) of each media space under `media.SPACE`, and the states `tap1..3` (B, S, W).
    """
    graph: bytes = _Writer(encoder).model().SerializeToString()
    return graph


class _Writer:
    """Nodes and weights of one graph."""

    def __init__(self, encoder: QueryEncoder) -> None:
        import onnx

        self._onnx = onnx
        self._encoder = encoder
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._count = 0
        self._eps = 0.0

    def model(self) -> onnx.ModelProto:
        """The whole graph."""
        helper, kind = self._onnx.helper, self._onnx.TensorProto
        encoder, bert = self._encoder, self._encoder.bert
        self._eps = float(bert.norm.eps)
        low = self._words()
        for layer in bert.layers[:SHARED]:
            low = self._layer(low, layer)
        x = low
        for layer in bert.layers[SHARED:]:
            x = self._layer(x, layer)
        text = self._pooled(x)
        states = [low]
        for layer in encoder.tuned:
            states.append(self._layer(states[-1], layer))
        features = self._node("Concat", [self._pooled(states[-1]), text], axis=1)
        outputs = {"text": text, "caption": self._caption(features, text)}
        for space, head in encoder.heads.items():
            outputs[f"media.{space}"] = self._head(features, head)
        taps = (low, states[-2], states[-1])
        outputs |= {f"tap{n}": tap for n, tap in enumerate(taps, start=1)}
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
        return model

    # Parts of the encoder

    def _words(self) -> str:
        """States (B, S, W) of tokens before any layer."""
        bert = self._encoder.bert
        table, scale = _rows(_numpy(bert.words.weight))
        found = self._node("Gather", [self._weight(table), "ids"])
        x = self._node("Cast", [found], to=self._onnx.TensorProto.FLOAT)
        x = self._node("Mul", [x, self._node("Gather", [self._weight(scale), "ids"])])
        places = _numpy(bert.positions.weight) + _numpy(bert.types.weight)[0]
        count = self._node("Shape", ["ids"], start=1, end=2)
        zero = self._weight(np.zeros(1, np.int64))
        here = self._node("Slice", [self._weight(places), zero, count, zero])
        x = self._node("Add", [x, here])
        norm = [self._weight(_numpy(bert.norm.weight)), self._weight(_numpy(bert.norm.bias))]
        return self._node("LayerNormalization", [x, *norm], axis=-1, epsilon=self._eps)

    def _layer(self, x: str, layer: nn.Module) -> str:
        """States (B, S, W) after one layer."""
        module: Any = layer
        w = module.out.in_features
        qkv = self._linear(x, module.qkv)
        sizes = self._weight(np.asarray([w, w, w], np.int64))
        parts = self._nodes_of("Split", [qkv, sizes], 3, axis=2)
        # Inputs: query, key, value, bias, key_padding_mask.
        read = self._node(
            "MultiHeadAttention", [*parts, "", "mask"], domain=FUSED, num_heads=module.heads
        )
        y = self._linear(read, module.out)
        x = self._normed(y, x, module.norm1)
        up = self._linear(x, module.up)
        y = self._linear(self._node("Gelu", [up], domain=FUSED), module.down)
        return self._normed(y, x, module.norm2)

    def _normed(self, x: str, skip: str, norm: nn.LayerNorm) -> str:
        weights = [self._weight(_numpy(norm.weight)), self._weight(_numpy(norm.bias))]
        return self._node(
            "SkipLayerNormalization", [x, skip, *weights], domain=FUSED, epsilon=float(norm.eps)
        )

    def _pooled(self, x: str) -> str:
        """Unit vectors (B, W): the mean over tokens that are there."""
        axis = self._weight(np.asarray([1], np.int64))
        last = self._weight(np.asarray([2], np.int64))
        mask = self._node("Cast", ["mask"], to=self._onnx.TensorProto.FLOAT)
        there = self._node("Mul", [x, self._node("Unsqueeze", [mask, last])])
        # The count of tokens goes away with the length.
        return self._unit(self._node("ReduceSum", [there, axis], keepdims=0))

    def _head(self, features: str, head: nn.Module) -> str:
        """Unit vectors (B, D), see `Head`."""
        assert isinstance(head, Head)
        inner = self._node("Gelu", [self._linear(features, head.up)], domain=FUSED)
        both = [self._linear(features, head.skip), self._linear(inner, head.down)]
        return self._unit(self._node("Add", both))

    def _caption(self, features: str, text: str) -> str:
        """Unit vectors (B, W), see `CaptionHead`."""
        head = self._encoder.caption
        assert isinstance(head, CaptionHead)
        inner = self._node("Gelu", [self._linear(features, head.up)], domain=FUSED)
        return self._unit(self._node("Add", [text, self._linear(inner, head.down)]))

    def _unit(self, x: str) -> str:
        return self._node("LpNormalization", [x], axis=-1, p=2)

    # Nodes and weights

    def _linear(self, x: str, module: nn.Linear) -> str:
        """`x W + b` with W in int8."""
        table, scale = _columns(_numpy(module.weight).T)
        zero = np.zeros(len(scale), np.int8)
        weights: list[npt.NDArray[Any]] = [table, scale, zero, _numpy(module.bias)]
        inputs = [x, *map(self._weight, weights)]
        return self._node("DynamicQuantizeMatMul", inputs, domain=FUSED)

    def _weight(self, array: npt.NDArray[Any]) -> str:
        self._count += 1
        name = f"w{self._count}"
        self._weights.append(self._onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def _node(self, op: str, inputs: list[str], domain: str = "", **options: Any) -> str:
        """Add a node; the name of its output."""
        return self._nodes_of(op, inputs, 1, domain, **options)[0]

    def _nodes_of(
        self, op: str, inputs: list[str], outputs: int, domain: str = "", **options: Any
    ) -> list[str]:
        """Add a node; the names of its outputs."""
        self._count += 1
        names = [f"x{self._count}.{n}" for n in range(outputs)]
        make = self._onnx.helper.make_node
        self._nodes.append(make(op, inputs, names, domain=domain, **options))
        return names


def _numpy(weight: Tensor) -> FloatArray:
    return weight.detach().float().numpy()


def _columns(w_IO: FloatArray) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """A matrix in int8, and the scale of each of its columns."""
    scale = np.maximum(np.abs(w_IO).max(axis=0), 1e-12).astype(np.float32) / 127
    return np.rint(w_IO / scale).astype(np.int8), scale


def _rows(w_VW: FloatArray) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """A table in int8, and the scale (V, 1) of each of its rows."""
    table, scale = _columns(w_VW.T)
    return table.T, scale[:, None]
