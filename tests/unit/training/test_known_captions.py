"""Captions that a training has encoded as queries are not encoded again when they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.training.query_vectors import QueryVectors
from cart_qdrant.training.stages.captions import KnownCaptions

TEXTS = ["a dog", "a cat", "a boat"]


class Graph:
    """Encodes a text as its length and its first and last letter."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def captions(self, texts: Sequence[str]) -> FloatArray:
        self.asked += texts
        return np.asarray([[len(t), ord(t[0]), ord(t[-1])] for t in texts], np.float32)


@pytest.mark.parametrize("known", [0, 2, 3])
def test_only_unknown_captions_are_encoded(known: int) -> None:
    graph = Graph()
    x_UW = Graph().captions(TEXTS)
    queries = QueryVectors(
        cast(Any, graph), TEXTS[:known], np.arange(known), x_UW[:known],
        x_UW[:known] if known else np.empty((0, 0), np.float32), {},
    )  # fmt: skip
    found = KnownCaptions(queries).embed([TEXTS[2], TEXTS[0], TEXTS[2], TEXTS[1]])
    np.testing.assert_array_equal(found, x_UW[[2, 0, 2, 1]])
    assert found.dtype == np.float32
    assert set(graph.asked) == set(TEXTS[known:])
