"""What a search gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cart_qdrant.records import Hit


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Answers to one query.

    Attributes:
        lane: The lane that answered; with `auto`, the one the router chose.
        took_ms: Milliseconds for `encode`, `decode`, `resolve` and `total`; of a batch, its share.
        remarks: What the user should know, such as a lane that could not be used.
    """

    query: str
    lane: str
    index_version: str
    took_ms: dict[str, float]
    hits: list[Hit]
    remarks: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The `--json` contract."""
        return {
            "query": self.query,
            "lane": self.lane,
            "index_version": self.index_version,
            "took_ms": {k: round(v, 3) for k, v in self.took_ms.items()},
            "hits": [hit.to_json() for hit in self.hits],
        }
