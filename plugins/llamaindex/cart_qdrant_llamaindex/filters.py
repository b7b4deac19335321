"""Metadata filters as conditions of Qdrant."""

from __future__ import annotations

from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from cart_qdrant.errors import UsageError
from cart_qdrant.search.filters import value_compares, value_in, value_is
from cart_qdrant.storage import requests as qdrant

_RANGES = {
    FilterOperator.GT: "gt",
    FilterOperator.GTE: "gte",
    FilterOperator.LT: "lt",
    FilterOperator.LTE: "lte",
}


def to_filter(filters: MetadataFilters) -> qdrant.Filter:
    """The same condition on the payload.

    Raises:
        UsageError: An operator that Qdrant has no like of, or a value of the wrong kind.
    """
    found = [
        to_filter(one) if isinstance(one, MetadataFilters) else _condition(one)
        for one in filters.filters
    ]
    if filters.condition == FilterCondition.OR:
        return qdrant.Filter(should=found)
    if filters.condition == FilterCondition.NOT:
        return qdrant.Filter(must_not=found)
    return qdrant.Filter(must=found)


def _condition(one: MetadataFilter) -> qdrant.AnyCondition:
    key, operator, value = one.key, one.operator, one.value
    if operator in _RANGES:
        return value_compares(key, _RANGES[operator], value)
    if operator in (FilterOperator.EQ, FilterOperator.CONTAINS):
        # Of a list, Qdrant's equality means one of its values.
        return value_is(key, value)
    if operator == FilterOperator.NE:
        return qdrant.Filter(must_not=[value_is(key, value)])
    if operator in (FilterOperator.IN, FilterOperator.ANY):
        return value_in(key, value)
    if operator == FilterOperator.NIN:
        return qdrant.Filter(must_not=[value_in(key, value)])
    if operator == FilterOperator.ALL:
        values = value if isinstance(value, list) else [value]
        return qdrant.Filter(must=[value_is(key, each) for each in values])
    if operator == FilterOperator.TEXT_MATCH:
        return qdrant.FieldCondition(key=key, match=qdrant.MatchText(text=str(value)))
    if operator == FilterOperator.IS_EMPTY:
        return qdrant.IsEmptyCondition(is_empty=qdrant.PayloadField(key=key))
    raise UsageError(f"Qdrant has no filter like {operator.value!r} (of {key}).")
