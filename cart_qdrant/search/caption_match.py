"""Which of an item's captions speaks about a query, by the words that they share.

The captions' vectors are not read for this: it costs nothing, and a hit in speech answers with its
seconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_WORD = re.compile(r"\w+")
_STOP = frozenset(
    ["a", "an", "and", "are", "at", "by", "for", "from", "in", "is", "it", "of", "on", "or", "that"]
).union(["the", "this", "to", "was", "with"])
"""Words that tell nothing about what is meant."""


def words_of(text: str) -> frozenset[str]:
    """The telling words of a text, in lower case."""
    return frozenset(_WORD.findall(text.lower())) - _STOP


def best_caption(
    captions: Sequence[Mapping[str, Any]], words: frozenset[str]
) -> Mapping[str, Any] | None:
    """The stored caption that shares most words with a query; of several as good, the first."""
    if not captions:
        return None
    return max(captions, key=lambda caption: len(words & words_of(caption["text"])))


def moment_of(
    caption: Mapping[str, Any] | None, words: frozenset[str]
) -> tuple[float, float] | None:
    """Begin and end (seconds) of what a stored caption speaks about; None where it has no times, or
    shares no word with the query."""
    if caption is None or caption.get("start") is None or caption.get("end") is None:
        return None
    if not words & words_of(caption["text"]):
        return None
    return float(caption["start"]), float(caption["end"])
