"""Converts filters of Haystack to filters of Qdrant."""

from __future__ import annotations

from typing import Any

from cart_qdrant.errors import UsageError
from cart_qdrant.search.host_filters import field_condition
from cart_qdrant.storage import requests as qdrant


def to_filter(given: dict[str, Any] | None) -> qdrant.AnyFilter | None:
    """Convert a filter of Haystack; the prefix `meta.` of a field may be left out.

    Returns:
        The filter of Qdrant; None where no filter is given.

    Raises:
        UsageError: Haystack has no such operator, or a value has the wrong type for it.
    """
    if not given:
        return None
    operator = given.get("operator")
    if "conditions" in given:
        inner: list[qdrant.AnyCondition] = [
            to_filter(one) or qdrant.Filter() for one in given["conditions"]
        ]
        if operator == "OR":
            return qdrant.Filter(should=inner)
        if operator in ("AND", "NOT"):
            every = qdrant.Filter(must=inner)
            return every if operator == "AND" else qdrant.Filter(must_not=[every])
        raise UsageError(
            f"The filter {given} joins conditions by {operator!r}.", "Join them by AND, OR or NOT."
        )
    key = str(given.get("field", "")).removeprefix("meta.")
    return qdrant.Filter(must=[field_condition(key, operator, given.get("value"))])
