"""Describes a collection to those who search it for the first time: numbers, fields, examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from cart_qdrant.index.index import Index
from cart_qdrant.index.points import is_ours
from cart_qdrant.records import ITEM_FIELDS, OWN_FIELDS, Modality
from cart_qdrant.search.filters import has_caption
from cart_qdrant.storage import requests as qdrant

SAMPLE = 200
"""Points whose payloads are read for fields and examples."""
EXAMPLES = 5
"""Values of a field, and captions, that a description shows at most."""


@dataclass(frozen=True, slots=True)
class Description:
    """Numbers and examples of what a collection holds.

    Attributes:
        location: Folder or URL of the store of the points.
        embedder: Name of the embedder of its vectors.
        trained: Whether a generator was trained on the captions.
        items: Number of items of each modality.
        with_caption: Number of items with a caption vector.
        fields: Payload fields that filters can use, with some of their values.
        captions: Some captions, as examples of what a query can find.
    """

    location: str
    embedder: str
    trained: bool
    items: dict[str, int]
    with_caption: int
    fields: dict[str, list[Any]]
    captions: list[str]

    def to_json(self) -> dict[str, Any]:
        """The description as a JSON object."""
        return asdict(self)


def describe(index: Index) -> Description:
    """Count the items by modality, and read the payloads of some."""
    store = index.store
    items: dict[str, int] = {}
    for modality in Modality:
        match = qdrant.FieldCondition(key="modality", match=qdrant.MatchValue(value=str(modality)))
        if count := store.count(qdrant.Filter(must=[is_ours(), match])):
            items[str(modality)] = count
    payloads = [
        record.payload or {} for record in islice(store.scroll(is_ours(), batch=SAMPLE), SAMPLE)
    ]
    captions = dict.fromkeys(
        one["text"] for payload in payloads for one in (payload.get("captions") or [])[:1]
    )
    return Description(
        location=store.location,
        embedder=index.manifest.embedder.name,
        trained=index.manifest.generator is not None,
        items=items,
        with_caption=store.count(has_caption(index)),
        fields=_fields(payloads, index),
        captions=list(captions)[:EXAMPLES],
    )


def _fields(payloads: list[dict[str, Any]], index: Index) -> dict[str, list[Any]]:
    """Values of the payload fields that the index did not write, shortest first."""
    found: dict[str, dict[Any, None]] = {}
    for payload in payloads:
        for key, values in user_fields(payload, index).items():
            found.setdefault(key, {}).update(dict.fromkeys(values))
    return {
        key: sorted(values, key=lambda value: (len(str(value)), str(value)))[:EXAMPLES]
        for key, values in sorted(found.items())
    }


def user_fields(payload: Mapping[str, Any], index: Index) -> dict[str, list[Any]]:
    """Values of those fields of a payload that the index did not write, by dotted path."""
    own = {index.key}
    if index.manifest.identifiers is not None:
        own.add(index.manifest.identifiers.field)
    written = OWN_FIELDS if index.attachment is None else ITEM_FIELDS
    found: dict[str, list[Any]] = {}
    for key, value in _flat(payload):
        if key not in written and key.split(".")[0] not in own:
            found.setdefault(key, []).append(value)
    return found


def _flat(payload: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """Dotted path and value of each scalar of a payload."""
    out: list[tuple[str, Any]] = []
    for key, value in payload.items():
        if isinstance(value, Mapping):
            out += _flat(value, f"{above}{key}.")
        else:
            values = value if isinstance(value, list) else [value]
            out += [(f"{above}{key}", one) for one in values if isinstance(one, str | int | float)]
    return out
