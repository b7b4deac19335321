"""The lists of the store from which the candidates of a query are taken, page by page.

A page leaves out what the pages before it found: whole files where files are ranked, so that a
film of a thousand segments takes one page of a list and no more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from cart_qdrant.generator.beam_search import Beams
from cart_qdrant.storage import requests as qdrant

MIN_CANDIDATES = 100
"""Points of the first page of each list."""
MAX_PAGE = 10_000
"""Points of the largest page of a list."""


class Ask(Protocol):
    """Makes the requests of one list."""

    def __call__(self, unseen: qdrant.AnyFilter | None, limit: int) -> qdrant.QueryRequest:
        """The request for the best points that a filter lets through."""


@dataclass(slots=True)
class Page:
    """What one request found.

    Attributes:
        found: Ids and scores that the store returned.
        beams: The beams that named the points; None in a list of another sort.
        is_whole: Whether there were no more points than were asked for.
    """

    found: qdrant.FoundIds
    beams: Beams | None = None
    is_whole: bool = True


@dataclass(slots=True)
class StoreList:
    """One list of the store for one query.

    Attributes:
        b: Number of the query in its block.
        by: Name of the list.
        ask: Makes its requests; None for points that beams name.
        pages: What was found so far.
        ended: Whether the store has no more points of the list, or none are wanted.
        misses: Pages in a row that brought nothing new.
    """

    b: int
    by: str
    ask: Ask | None = None
    pages: list[Page] = field(default_factory=list)
    ended: bool = False
    misses: int = 0
    _asked: int = 0

    def next_limit(self, lacking: int) -> int:
        """Points of the next page.

        Args:
            lacking: Files (or points) that the list still lacks; a page holds twice as many points,
                and twice those of the page before it.
        """
        first = not self.pages
        limit = MIN_CANDIDATES if first else max(MIN_CANDIDATES, 2 * lacking, 2 * self._asked)
        self._asked = min(limit, MAX_PAGE)
        return self._asked

    def add(self, page: Page) -> bool:
        """Add a page, less the points that an earlier page found; returns whether there were
        others."""
        seen = set(self.ids())
        found = page.found
        if seen:
            new = [n for n, one in enumerate(found.ids) if one not in seen]
            found = qdrant.FoundIds(
                ids=[found.ids[n] for n in new], scores=[found.scores[n] for n in new]
            )
        self.pages.append(Page(found, page.beams, page.is_whole))
        return bool(found.ids)

    def ids(self) -> list[Any]:
        """All points found so far."""
        return [one for page in self.pages for one in page.found.ids]
