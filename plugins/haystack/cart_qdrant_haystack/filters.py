"""Filters of Haystack as conditions of Qdrant."""

from __future__ import annotations

from typing import Any

from cart_qdrant.errors import UsageError
from cart_qdrant.search.filters import value_compares, value_in, value_is
from cart_qdrant.storage import requests as qdrant

_RANGES = {">": "gt", ">=": "gte", "<": "lt", "<=": "lte"}


def to_filter(given: dict[str, Any] | None) -> qdrant.AnyFilter | None:
    """A filter of Haystack as one of Qdrant; `meta.` before a field may be left out.

    Raises:
        UsageError: An operator that Haystack does not know, or a value of the wrong kind.
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
    key, value = str(given.get("field", "")).removeprefix("meta."), given.get("value")
    if operator in ("==", "!="):
        one = value_is(key, value)
    elif operator in ("in", "not in"):
        one = value_in(key, value)
    elif operator in _RANGES:
        one = value_compares(key, _RANGES[operator], value)
    else:
        raise UsageError(f"The filter {given} has the operator {operator!r}.", "See Haystack's.")
    negative = operator in ("!=", "not in")
    return qdrant.Filter(must_not=[one]) if negative else qdrant.Filter(must=[one])
