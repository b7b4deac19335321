"""The options of a search, checked before anything is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict, get_args

from cart_qdrant.errors import UsageError
from cart_qdrant.search.fusion import MEANINGFUL
from cart_qdrant.search.lanes import CONFIDENT_LANES, LANES, MIXED_LANES, Lane
from cart_qdrant.search.query import Query
from cart_qdrant.storage import requests as qdrant

Grouping = Literal["file", "none"]


class SearchOptions(TypedDict, total=False):
    """Keyword arguments of `Retriever.search`; the defaults are `SearchRequest`'s."""

    k: int
    lane: Lane
    filter: qdrant.AnyFilter | None
    group_by: Grouping
    offset: int
    min_confidence: float
    min_similarity: float | None
    explain: bool


MOST_HITS = 10_000
"""Hits of one search, at most: the store is asked for a few times as many."""
FARTHEST = 100_000
"""Hits that a search passes over, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRequest:
    """What a search returns; the same for all queries of a call.

    Attributes:
        k: Hits of each query.
        lane: The lane that answers; `auto` lets the router choose one for each query.
        filter: Condition on the payload.
        group_by: `file`: each file once, by its best segment; `none`: all segments.
        offset: Number of the best hits that are passed over: page 2 of ten begins at offset 10.
        min_confidence: Hits of a lower confidence are left out.
        min_similarity: Hits of a lower similarity, or of none, are left out.
        explain: Whether each hit tells why it is one.

    Raises:
        UsageError: A value is outside its range.
    """

    k: int = 10
    lane: Lane = "auto"
    filter: qdrant.AnyFilter | None = None
    group_by: Grouping = "file"
    offset: int = 0
    min_confidence: float = 0.0
    min_similarity: float | None = None
    explain: bool = False

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UsageError(f"k is {self.k}, but must be at least 1.")
        for name, value, most in (("k", self.k, MOST_HITS), ("--offset", self.offset, FARTHEST)):
            if value > most:
                raise UsageError(
                    f"{name} is {value}, but must be at most {most}.",
                    "Page on with --offset, or narrow the search with --filter.",
                )
        if self.offset < 0:
            raise UsageError(f"--offset is {self.offset}, but must be at least 0.")
        if self.lane not in LANES:
            raise UsageError(f"--lane is {self.lane!r}, but must be one of {', '.join(LANES)}.")
        if self.group_by not in get_args(Grouping):
            raise UsageError(f"--group-by is {self.group_by!r}, but must be file or none.")
        if not 0 <= self.min_confidence <= 1:
            raise UsageError(f"--min-confidence is {self.min_confidence}, but must be in 0..1.")
        if self.min_confidence and self.lane not in CONFIDENT_LANES:
            raise UsageError(
                f"--min-confidence is given, but the lane {self.lane} computes no confidence.",
                f"Search in the lane {' or '.join(CONFIDENT_LANES)}.",
            )
        if self.min_similarity is not None and not -1 <= self.min_similarity <= 1:
            raise UsageError(f"--min-similarity is {self.min_similarity}, but must be in -1..1.")
        if self.min_similarity is not None and self.lane == "bm25":
            raise UsageError(
                "--min-similarity is given, but the lane bm25 compares words, not vectors.",
                "Search in another lane, or without it.",
            )

    @property
    def ranks_files(self) -> bool:
        """Whether files are ranked, each by its best segment."""
        return self.group_by == "file"

    def check_index(self, *, captions: bool, confidence: bool) -> None:
        """Check that an index can answer.

        Args:
            captions: Whether the collection has vectors of captions.
            confidence: Whether the confidence of hits is calibrated.

        Raises:
            UsageError: It cannot.
        """
        if self.lane == "caption" and not captions:
            raise UsageError(
                "--lane is caption, but the collection has no vectors of captions.",
                "Attach again with --caption-vectors.",
            )
        if self.min_confidence and not confidence:
            raise UsageError(
                "--min-confidence is given, but the confidence of hits is not known in this "
                f"index: fewer than {MEANINGFUL} captions could be held out in training.",
                "Caption more of the media, then `cartq train`.",
            )

    def check_mixed(self, query: Query) -> None:
        """Check that a query that is more than a text can be answered.

        Raises:
            UsageError: The lane or --min-confidence is for texts alone.
        """
        if self.lane not in MIXED_LANES or self.min_confidence:
            what = "--min-confidence" if self.lane in MIXED_LANES else f"The lane {self.lane}"
            raise UsageError(
                f"{what} is for texts alone, and the query is {query}.",
                f"Search without it, or in the lane {', '.join(MIXED_LANES)}.",
            )
