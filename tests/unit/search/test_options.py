"""What a search may ask for is bounded."""

from __future__ import annotations

import pytest

from cart_qdrant.errors import UsageError
from cart_qdrant.search.options import FARTHEST, MOST_HITS, SearchRequest


def test_as_many_hits_as_a_search_may_give() -> None:
    request = SearchRequest(k=MOST_HITS, offset=FARTHEST)
    assert (request.k, request.offset) == (MOST_HITS, FARTHEST)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"k": MOST_HITS + 1}, f"k is {MOST_HITS + 1}, but must be at most {MOST_HITS}"),
        ({"k": 10**18}, "at most"),
        ({"offset": FARTHEST + 1}, f"--offset is {FARTHEST + 1}, but must be at most {FARTHEST}"),
    ],
)
def test_more_is_refused_with_another_way(given: dict[str, int], told: str) -> None:
    with pytest.raises(UsageError, match=told) as refused:
        SearchRequest(**given)  # type: ignore[arg-type]
    assert "--filter" in refused.value.remedy
