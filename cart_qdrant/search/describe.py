"""What a collection holds, in a few numbers and examples, for those who ask for the first time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from cart_qdrant.index.index import Index
from cart_qdrant.index.points import is_ours
from cart_qdrant.index.writer import MADE_BY
from cart_qdrant.records import Modality
from cart_qdrant.search.candidates import DESCRIBED
from cart_qdrant.storage import requests as qdrant

SAMPLE = 200
"""Points whose payloads are looked at for fields and examples."""
EXAMPLES = 5
_LAID_OVER = frozenset({"path", "modality", "start", "end", "captions"})
_OURS = _LAID_OVER | frozenset({"hash", "size", "mtime", "segments", "caption_digest", MADE_BY})


@dataclass(frozen=True, slots=True)
class Description:
    """What a collection holds.

    Attributes:
        location: Where its points are.
        embedder: What made its vectors.
        trained: Whether queries were learned from captions.
        items: Items of each kind.
        described: Items with a caption vector.
        fields: Payload fields to filter on, with some of their values.
        captions: Some captions, as examples of what may be asked for.
    """

    location: str
    embedder: str
    trained: bool
    items: dict[str, int]
    described: int
    fields: dict[str, list[Any]]
    captions: list[str]

    def to_json(self) -> dict[str, Any]:
        """One object."""
        return asdict(self)


def describe(index: Index) -> Description:
    """Count items by kind, and look at the payloads of some."""
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
        described=store.count(qdrant.Filter(must=[DESCRIBED])),
        fields=_fields(payloads, index),
        captions=list(captions)[:EXAMPLES],
    )


def _fields(payloads: list[dict[str, Any]], index: Index) -> dict[str, list[Any]]:
    """Values of the fields that people have given, the shortest first."""
    mine = {index.key}
    if index.manifest.identifiers is not None:
        mine.add(index.manifest.identifiers.field)
    ours = _LAID_OVER if index.attachment is not None else _OURS
    found: dict[str, dict[Any, None]] = {}
    for payload in payloads:
        for key, value in _flat(payload):
            if key not in ours and key.split(".")[0] not in mine:
                found.setdefault(key, {}).setdefault(value)
    return {
        key: sorted(values, key=lambda value: (len(str(value)), str(value)))[:EXAMPLES]
        for key, values in sorted(found.items())
    }


def _flat(payload: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """Scalars of a payload by dotted path."""
    out: list[tuple[str, Any]] = []
    for key, value in payload.items():
        if isinstance(value, Mapping):
            out += _flat(value, f"{above}{key}.")
        else:
            values = value if isinstance(value, list) else [value]
            out += [(f"{above}{key}", one) for one in values if isinstance(one, str | int | float)]
    return out
