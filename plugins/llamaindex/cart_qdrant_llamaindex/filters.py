"""Converts metadata filters of LlamaIndex to filters of Qdrant."""

from __future__ import annotations

from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from cart_qdrant.search.host_filters import field_condition
from cart_qdrant.storage import requests as qdrant

_SAME = {
    # Of a list, Qdrant's equality means one of its values.
    FilterOperator.CONTAINS: "==",
    FilterOperator.ANY: "in",
    FilterOperator.NIN: "not in",
}
"""Operators that have another name in `field_condition`."""


def to_filter(filters: MetadataFilters) -> qdrant.Filter:
    """Convert metadata filters to a filter of Qdrant on the payload.

    Raises:
        UsageError: Qdrant has no condition for an operator, or a value has the wrong type for it.
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
    if operator == FilterOperator.ALL:
        values = value if isinstance(value, list) else [value]
        return qdrant.Filter(must=[field_condition(key, "==", each) for each in values])
    if operator == FilterOperator.TEXT_MATCH:
        return qdrant.FieldCondition(key=key, match=qdrant.MatchText(text=str(value)))
    if operator == FilterOperator.IS_EMPTY:
        return qdrant.IsEmptyCondition(is_empty=qdrant.PayloadField(key=key))
    return field_condition(key, _SAME.get(operator, operator.value), value)
