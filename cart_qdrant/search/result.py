"""The result of a search: the hits of one query and how they were found."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from cart_qdrant.records import Hit

LOG = logging.getLogger("cart_qdrant")


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Hits of one query.

    Attributes:
        query: The query, as text.
        lane: The lane that ranked the hits; with `auto`, the one that the router chose.
        index_version: Version of the index that was searched.
        took_ms: Milliseconds of `encode`, `decode`, `resolve` and `total`; a query of a batch has
            its share of the batch.
        hits: Hits, best first.
        remarks: Sentences for the user, such as that a lane could not be used.
    """

    query: str
    lane: str
    index_version: str
    took_ms: dict[str, float]
    hits: list[Hit]
    remarks: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The object of `search --json`."""
        return {
            "query": self.query,
            "lane": self.lane,
            "index_version": self.index_version,
            "took_ms": {k: round(v, 3) for k, v in self.took_ms.items()},
            "hits": [hit.to_json() for hit in self.hits],
            "remarks": list(self.remarks),
        }

    def log_remarks(self) -> None:
        """Log the remarks, for hosts that hand on hits alone: as warnings where nothing is found,
        else as information."""
        level = logging.INFO if self.hits else logging.WARNING
        for line in self.remarks:
            LOG.log(level, "search for %r: %s", self.query, line)
