"""The lanes by name, and what each one reads. `retriever` says what a lane is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Lane = Literal["auto", "generative", "dense", "fused", "caption", "bm25", "rrf"]

LANES: tuple[Lane, ...] = ("auto", "generative", "dense", "fused", "caption", "bm25", "rrf")
CONFIDENT_LANES: tuple[Lane, ...] = ("auto", "fused")
"""Lanes that collect all features that the confidence is calibrated on."""
MIXED_LANES: tuple[Lane, ...] = ("auto", "dense", "generative")
"""Lanes for queries that are more than a text: only texts are compared with captions."""

LISTS: Mapping[str, tuple[str, ...]] = {
    "generative": (),
    "dense": ("dense",),
    "fused": ("dense", "without_caption", "caption"),
    "caption": ("caption",),
    "bm25": ("bm25",),
    "rrf": ("dense", "caption", "bm25"),
}
"""Lists of the store from which each lane takes its candidates, beside the items that beams name.
`without_caption` is `dense` among items that have no caption: where these are few, `dense` finds
hardly any of them."""
