"""Looks up an item of an index by its name: an id, a path, or PATH@SECONDS."""

from __future__ import annotations

from pathlib import Path

from cart_qdrant.arrays.point_ids import as_id
from cart_qdrant.errors import StoreError, UsageError
from cart_qdrant.index.index import Index
from cart_qdrant.media.scan import relative_name
from cart_qdrant.records import Caption, Identifier, Item, Modality
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.protocol import MEDIA


def find_record(index: Index, name: str) -> qdrant.AnyRecord:
    """The point of an item, with its media vector; the name of a file means its first segment.

    Raises:
        UsageError: No item of the index has this name.
    """
    record = _by_id(index, name) or _by_path(index, name)
    if record is None:
        raise UsageError(
            f"No item of the index is {name!r}.",
            "Name one by its id or its path, with @SECONDS for a moment: --like clip.mp4@12",
        )
    return record


def find_item(index: Index, name: str) -> Item:
    """An item with its captions, its identifier and its payload.

    Raises:
        UsageError: No item of the index has this name, or the item has an unknown modality.
    """
    from cart_qdrant.search.describe import user_fields  # it imports the client of Qdrant

    record = find_record(index, name)
    payload = record.payload or {}
    if payload.get("modality") not in list(Modality):
        raise UsageError(
            f"The item {name!r} has the modality {payload.get('modality')!r}, which is none of "
            f"{', '.join(Modality)}."
        )
    info = index.manifest.identifiers
    cart = payload.get(info.field) if info is not None else None
    return Item(
        id=str(record.id),
        path=payload["path"],
        modality=Modality(payload["modality"]),
        start=float(payload["start"]),
        end=float(payload["end"]),
        identifier=Identifier.from_payload(cart) if cart else None,
        captions=tuple(Caption.from_payload(one) for one in payload.get("captions") or ()),
        payload=payload,
        fields=user_fields(payload, index),
    )


def _by_id(index: Index, name: str) -> qdrant.AnyRecord | None:
    try:
        one = as_id(name)
    except StoreError:
        return None
    found = index.store.retrieve([one], with_vectors=[MEDIA])
    return found[0] if found else None


def _by_path(index: Index, name: str) -> qdrant.AnyRecord | None:
    """The segment of a file that is nearest to a moment; the first one where none is named."""
    whole = _segments(index, name)
    if whole:
        return whole[0]
    path, _, seconds = name.rpartition("@")
    try:
        moment = float(seconds)
    except ValueError:
        return None
    segments = _segments(index, path)

    def distance(record: qdrant.AnyRecord) -> tuple[float, float]:
        payload = record.payload or {}
        begin, end = float(payload["start"]), float(payload["end"])
        # Video before audio, where both hold the moment.
        is_audio = payload["modality"] == Modality.AUDIO
        return max(begin - moment, moment - end, 0.0), float(is_audio)

    return min(segments, key=distance, default=None)


def _segments(index: Index, path: str) -> list[qdrant.AnyRecord]:
    """Points of a file in time order; its path is as stored, or seen from the current folder."""
    for name in dict.fromkeys([path, relative_name(Path(path), index.folder.base)]):
        match = qdrant.FieldCondition(key="path", match=qdrant.MatchValue(value=name))
        found = list(index.store.scroll(qdrant.Filter(must=[match]), with_vectors=[MEDIA]))
        if found:
            return sorted(found, key=_order)
    return []


def _order(record: qdrant.AnyRecord) -> tuple[float, bool]:
    """Sort key of a segment: its start, and video before the audio of the same time."""
    payload = record.payload or {}
    return float(payload["start"]), payload["modality"] == Modality.AUDIO
