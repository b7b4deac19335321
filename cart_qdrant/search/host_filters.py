"""Conditions on payload fields for filters of other frameworks; the plugins share them."""

from __future__ import annotations

from cart_qdrant.errors import UsageError
from cart_qdrant.search.filters import parse_instant
from cart_qdrant.storage import requests as qdrant

_RANGES = {">": "gt", ">=": "gte", "<": "lt", "<=": "lte"}
_OPERATORS = ("==", "!=", "in", "not in", *_RANGES)


def field_condition(key: str, operator: object, value: object) -> qdrant.AnyCondition:
    """A condition that compares a payload field with a value.

    A list in the payload equals a value where one of its elements does. The negations (`!=` and
    `not in`) also hold for points without the field.

    Args:
        key: Field, or a path to one.
        operator: One of `==`, `!=`, `in`, `not in`, `>`, `>=`, `<` and `<=`.
        value: A text, a truth value or a number; a list of them for `in` and `not in`; a number or
            an ISO date for the comparisons of size.

    Raises:
        UsageError: The operator is unknown, or the value has the wrong type for it.
    """
    if operator == "==":
        return _equals(key, value)
    if operator == "in":
        return _is_in(key, value)
    if operator == "!=":
        return qdrant.Filter(must_not=[_equals(key, value)])
    if operator == "not in":
        return qdrant.Filter(must_not=[_is_in(key, value)])
    if isinstance(operator, str) and operator in _RANGES:
        return _compares(key, _RANGES[operator], value)
    raise UsageError(
        f"The filter on {key!r} has the operator {operator!r}, which Qdrant has no condition for.",
        f"Use one of {', '.join(_OPERATORS)}.",
    )


def _equals(key: str, value: object) -> qdrant.AnyCondition:
    # Qdrant's equality finds no floats, and whether the payload holds some is not known.
    if isinstance(value, int | float) and not isinstance(value, bool):
        return qdrant.FieldCondition(key=key, range=qdrant.Range(gte=value, lte=value))
    if not isinstance(value, str | bool):
        raise UsageError(f"The filter on {key} compares with {value!r}, which is no single value.")
    return qdrant.FieldCondition(key=key, match=qdrant.MatchValue(value=value))


def _is_in(key: str, values: object) -> qdrant.AnyCondition:
    if not isinstance(values, list) or not values:
        raise UsageError(f"The filter on {key} needs a list of values, not {values!r}.")
    return qdrant.Filter(should=[_equals(key, value) for value in values])


def _compares(key: str, side: str, value: object) -> qdrant.AnyCondition:
    instant = parse_instant(value) if isinstance(value, str) else None
    if instant is not None:
        return qdrant.FieldCondition(key=key, range=qdrant.DatetimeRange(**{side: instant}))
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(
            f"The filter on {key} compares the size of {value!r}, and needs a number or an ISO "
            "date.",
            "Compare other texts by equality, or with a list.",
        )
    return qdrant.FieldCondition(key=key, range=qdrant.Range(**{side: value}))
