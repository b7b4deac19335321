"""What the collection of an index is made with: vectors and payload indexes."""

from __future__ import annotations

from cart_qdrant.storage.protocol import (
    CAPTION_SLOTS,
    CAPTION_TEXTS,
    MEDIA,
    CollectionSpec,
)

TEXT_DIM = 384
"""Width of a caption vector (all-MiniLM-L6-v2)."""
KEY = "cart"
"""Payload field of the identifiers, unless an attached collection uses it for something else."""


def identifier_fields(field: str) -> list[str]:
    """Payload fields by which identifiers are looked up. Each has a keyword index, and each index
    makes opening the store slower (docs/experiments.md)."""
    return [f"{field}.id", f"{field}.p1"]


def other_slot(slot: str) -> str:
    """The other one of the two vectors that hold captions in turn."""
    (other,) = (one for one in CAPTION_SLOTS if one != slot)
    return other


def collection_spec(dim: int, key: str, slot: str) -> CollectionSpec:
    """Vectors and payload indexes of an index's own collection.

    Args:
        dim: Width of the media vectors.
        key: Payload field of the identifiers.
        slot: Vector that holds the captions.
    """
    return CollectionSpec(
        vectors={MEDIA: dim},
        slots=dict.fromkeys((slot, other_slot(slot)), TEXT_DIM),
        keywords=[*identifier_fields(key), "modality", "path", "hash"],
        texts=[CAPTION_TEXTS],
    )
