"""The query encoder of a trained model, run by ONNX Runtime: no torch is needed.

Shape legend: B queries, S tokens, W encoder width, D vector width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cart_qdrant.arrays.types import FloatArray, MaskArray
from cart_qdrant.embedders.text.onnx_encoder import TextGraph, padded

HIDDEN_STATES = 3
"""Layers of the encoder whose states the generator reads: E1, E2, E3."""


@dataclass(frozen=True, slots=True)
class EncodedTexts:
    """Vectors of queries.

    Attributes:
        text_BW: Sentence vectors of the frozen text encoder.
        caption_BW: Vectors to compare with caption vectors; zero where a query is no text.
        media: Vectors (B, D) in each media space that the queries reach.
        hidden_states: States E1, E2, E3 (B, S, W) for the generator; None where they were not
            asked for.
        mask_BS: True where there is a token; None without tokens.
    """

    text_BW: FloatArray
    caption_BW: FloatArray
    media: Mapping[str, FloatArray]
    hidden_states: tuple[FloatArray, ...] | None = None
    mask_BS: MaskArray | None = None

    def one(self, b: int) -> EncodedTexts:
        """The vectors and states of query `b` alone."""
        here = slice(b, b + 1)
        states = self.hidden_states
        return EncodedTexts(
            self.text_BW[here],
            self.caption_BW[here],
            {space: q_BD[here] for space, q_BD in self.media.items()},
            None if states is None else tuple(state[here] for state in states),
            None if self.mask_BS is None else self.mask_BS[here],
        )


class OnnxQueryEncoder:
    """The trained query encoder in int8: within one percent of the cosines of torch, and quicker.

    Args:
        graph: ONNX file that `training.export.query_graph` made, or its content.
        folder: Folder of the text encoder, which holds the tokenizer.
    """

    def __init__(self, graph: Path | bytes, folder: Path) -> None:
        self._graph = TextGraph(graph, folder)
        names = self._graph.outputs
        self.spaces = [n.removeprefix("media.") for n in names if n.startswith("media.")]

    def captions(self, texts: Sequence[str]) -> FloatArray:
        """Unit vectors (B, W) of captions, to be compared with `EncodedTexts.caption_BW`."""
        return np.concatenate([one.outputs[0] for one in self._graph.run(texts, ["caption"])])

    def encode(self, texts: Sequence[str], *, hidden_states: bool = False) -> EncodedTexts:
        """Encode texts (B of them).

        Args:
            hidden_states: Whether the generator will read the encoder's states.
        """
        wanted = ["text", "caption", *(f"media.{space}" for space in self.spaces)]
        flat = len(wanted)
        wanted += [f"hidden{n}" for n in range(1, HIDDEN_STATES + 1)] if hidden_states else []
        found = self._graph.run(texts, wanted)
        columns = list(zip(*(one.outputs for one in found), strict=True))
        text_BW, caption_BW, *media = (np.concatenate(column) for column in columns[:flat])
        return EncodedTexts(
            text_BW,
            caption_BW,
            dict(zip(self.spaces, media, strict=True)),
            tuple(map(padded, columns[flat:])) if hidden_states else None,
            padded([one.mask_BS for one in found]),
        )
