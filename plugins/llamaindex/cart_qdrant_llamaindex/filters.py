"""Metadata filters as conditions of Qdrant."""

from __future__ import annotations

from typing import Any

from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)
from qdrant_client import models

from cart_qdrant.errors import UsageError

_RANGES = {
    FilterOperator.GT: "gt",
    FilterOperator.GTE: "gte",
    FilterOperator.LT: "lt",
    FilterOperator.LTE: "lte",
}


def to_filter(filters: MetadataFilters) -> models.Filter:
    """The same condition on the payload.

    Raises:
        UsageError: An operator that Qdrant has no like of, or a value of the wrong kind.
    """
    found = [
        to_filter(one) if isinstance(one, MetadataFilters) else _condition(one)
        for one in filters.filters
    ]
    if filters.condition == FilterCondition.OR:
        return models.Filter(should=found)
    if filters.condition == FilterCondition.NOT:
        return models.Filter(must_not=found)
    return models.Filter(must=found)


def _condition(one: MetadataFilter) -> models.Condition:
    key, operator, value = one.key, one.operator, one.value
    if operator in _RANGES:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageError(
                f"The filter {key} {operator.value} {value!r} needs a number.",
                "Ranges are of numbers; for texts there are ==, in and nin.",
            )
        return models.FieldCondition(key=key, range=models.Range(**{_RANGES[operator]: value}))
    if operator in (FilterOperator.EQ, FilterOperator.CONTAINS):
        # Of a list, Qdrant's equality means one of its values.
        return _is(key, value)
    if operator == FilterOperator.NE:
        return models.Filter(must_not=[_is(key, value)])
    if operator in (FilterOperator.IN, FilterOperator.ANY):
        return _any(key, _listed(one))
    if operator == FilterOperator.NIN:
        return models.Filter(must_not=[_any(key, _listed(one))])
    if operator == FilterOperator.ALL:
        return models.Filter(must=[_is(key, each) for each in _listed(one)])
    if operator == FilterOperator.TEXT_MATCH:
        return models.FieldCondition(key=key, match=models.MatchText(text=str(value)))
    if operator == FilterOperator.IS_EMPTY:
        return models.IsEmptyCondition(is_empty=models.PayloadField(key=key))
    raise UsageError(f"Qdrant has no filter like {operator.value!r} (of {key}).")


def _is(key: str, value: Any) -> models.Condition:
    # Qdrant's equality finds no floats, and whether the payload holds some is not known.
    if isinstance(value, int | float) and not isinstance(value, bool):
        return models.FieldCondition(key=key, range=models.Range(gte=value, lte=value))
    if not isinstance(value, str | bool):
        raise UsageError(f"The filter on {key} compares with {value!r}, which is no single value.")
    return models.FieldCondition(key=key, match=models.MatchValue(value=value))


def _any(key: str, values: list[Any]) -> models.Condition:
    return models.Filter(should=[_is(key, value) for value in values])


def _listed(one: MetadataFilter) -> list[Any]:
    if not isinstance(one.value, list) or not one.value:
        raise UsageError(f"The filter {one.key} {one.operator.value} needs a list of values.")
    return one.value
