"""Which of an item's captions speaks about a query, by the words that they share.

The captions' vectors are not read for this: it costs nothing, and a hit in speech answers with its
seconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_WORD = re.compile(r"\w+")


def words_of(text: str) -> frozenset[str]:
    """The words of a text, in lower case."""
    return frozenset(_WORD.findall(text.lower()))


def best_caption(
    captions: Sequence[Mapping[str, Any]], words: frozenset[str]
) -> Mapping[str, Any] | None:
    """The stored caption that shares most words with a query; of several as good, the first."""
    if not captions:
        return None
    return max(captions, key=lambda caption: len(words & words_of(caption["text"])))


def moment_of(caption: Mapping[str, Any] | None) -> tuple[float, float] | None:
    """Begin and end (seconds) of what a stored caption speaks about; None where it has no times."""
    if caption is None or caption.get("start") is None or caption.get("end") is None:
        return None
    return float(caption["start"]), float(caption["end"])
