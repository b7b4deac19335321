"""Chooses the caption of an item that a hit shows: the one that shares most words with the query.

The captions' vectors are not read for this, so it takes no request to the store. A hit in a
transcript gets the seconds at which the words are spoken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_WORD = re.compile(r"\w+")
_STOP = frozenset(
    ["a", "an", "and", "are", "at", "by", "for", "from", "in", "is", "it", "of", "on", "or", "that"]
).union(["the", "this", "to", "was", "with"])
"""Stop words, which are not compared."""


def words_of(text: str) -> frozenset[str]:
    """The words of a text in lower case, without stop words."""
    return frozenset(_WORD.findall(text.lower())) - _STOP


def best_caption(
    captions: Sequence[Mapping[str, Any]], words: frozenset[str]
) -> Mapping[str, Any] | None:
    """The stored caption that shares most words with a query; the first of those that tie."""
    if not captions:
        return None
    return max(captions, key=lambda caption: len(words & words_of(caption["text"])))


def moment_of(
    caption: Mapping[str, Any] | None, words: frozenset[str]
) -> tuple[float, float] | None:
    """Start and end (seconds) of the time that a stored caption describes; None where it has no
    times, or shares no word with the query."""
    if caption is None or caption.get("start") is None or caption.get("end") is None:
        return None
    if not words & words_of(caption["text"]):
        return None
    return float(caption["start"]), float(caption["end"])
