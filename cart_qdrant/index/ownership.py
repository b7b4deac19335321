"""Which index owns a collection on a server, recorded in the metadata of the collection."""

from __future__ import annotations

from dataclasses import dataclass

from cart_qdrant.errors import MismatchError
from cart_qdrant.storage.protocol import Store

OWNER_KEY = "cart-qdrant"
"""First part of a metadata key; the payload field of the identifiers follows after a colon."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The owner of a collection.

    Attributes:
        index: Id of the index.
        revision: Revision of its manifest.
        previous: Revision that is valid, too, while a run replaces the manifest.
    """

    index: str
    revision: str
    previous: str | None = None

    def accepts(self, revision: str) -> bool:
        """Whether the collection was written with this revision of the manifest."""
        return revision in (self.revision, self.previous)


def check_owner(store: Store, key: str, index: str | None) -> Owner | None:
    """Refuse a collection that belongs to another index.

    Args:
        store: The collection.
        key: Payload field of the identifiers.
        index: Id of the index that asks; None for an index that is about to be made.

    Returns:
        The recorded owner; None where no index owns the collection.

    Raises:
        MismatchError: Another index owns it; both ids are named.
    """
    recorded = store.info().metadata.get(f"{OWNER_KEY}:{key}")
    if recorded is None:
        return None
    owner = Owner(recorded.get("index", ""), recorded.get("revision", ""), recorded.get("previous"))
    if owner.index != index:
        raise MismatchError(
            f"The collection at {store.location} belongs to the index {owner.index}, not to "
            f"{index or 'a new one'}.",
            "Open that index, or use another collection; delete the collection if that index no "
            "longer exists.",
        )
    return owner


def set_owner(store: Store, key: str, owner: Owner) -> None:
    """Record the owner of a collection."""
    value = {"index": owner.index, "revision": owner.revision}
    if owner.previous is not None:
        value["previous"] = owner.previous
    store.set_metadata(f"{OWNER_KEY}:{key}", value)
