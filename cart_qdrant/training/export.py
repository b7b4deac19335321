"""Export of the query encoder as an ONNX graph of int8 weights, which searches run.

Shape legend: B batch, S tokens, W encoder width, D vector width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.embedders.text.onnx_graph import FUSED, Affine, GraphWriter, Layer, TokenEmbedding
from cart_qdrant.training.query_encoder import SHARED, Head, QueryEncoder

if TYPE_CHECKING:
    from torch import Tensor, nn


def query_graph(encoder: QueryEncoder, writer_type: type[GraphWriter] = GraphWriter) -> bytes:
    """The ONNX graph of an encoder, serialised.

    Inputs are `ids` (B, S) and `mask` (B, S), int32; outputs `text` (B, W), `caption` (B, W), the
    vectors (B, D) of each media space under `media.SPACE`, and the hidden states
    `hidden1..3` (B, S, W).
    """
    bert = encoder.bert
    writer = writer_type(float(bert.norm.eps))
    positions_PW = _numpy(bert.positions.weight) + _numpy(bert.types.weight)[0]
    tokens_VW = _numpy(bert.words.weight)
    low = writer.embed(TokenEmbedding(tokens_VW, positions_PW, _affine(bert.norm)))
    for layer in bert.layers[:SHARED]:
        low = writer.layer(low, _layer(layer))
    x = low
    for layer in bert.layers[SHARED:]:
        x = writer.layer(x, _layer(layer))
    text = writer.pooled(x)
    states = [low]
    for layer in encoder.tuned:
        states.append(writer.layer(states[-1], _layer(layer)))
    tuned = writer.pooled(states[-1])
    features = writer.node("Concat", [tuned, text], axis=1)
    outputs = {"text": text, "caption": tuned if encoder.tunes_captions else text}
    for space, head in encoder.heads.items():
        outputs[f"media.{space}"] = _head(writer, features, head)
    hidden_states = (low, states[-2], states[-1])
    outputs |= {f"hidden{n}": state for n, state in enumerate(hidden_states, start=1)}
    return writer.finish(outputs)


def _head(writer: GraphWriter, features: str, head: nn.Module) -> str:
    """Nodes of a `Head`: unit vectors (B, D)."""
    assert isinstance(head, Head)
    inner = writer.node("Gelu", [writer.linear(features, _affine(head.up))], domain=FUSED)
    skip = writer.linear(features, _affine(head.skip))
    return writer.unit(writer.node("Add", [skip, writer.linear(inner, _affine(head.down))]))


def _layer(layer: nn.Module) -> Layer:
    module: Any = layer
    names = ("qkv", "out", "norm1", "up", "down", "norm2")
    parts = {name: _affine(getattr(module, name)) for name in names}
    return Layer(**parts, heads=module.heads)


def _affine(module: nn.Linear | nn.LayerNorm) -> Affine:
    return Affine(_numpy(module.weight), _numpy(module.bias))


def _numpy(weight: Tensor) -> FloatArray:
    return weight.detach().float().cpu().numpy()
