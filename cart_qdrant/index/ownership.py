"""Which index a collection on a server belongs to, written into the metadata of the collection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cart_qdrant.errors import MismatchError
from cart_qdrant.storage.protocol import Store

if TYPE_CHECKING:
    pass


OWNER_KEY = "cart-qdrant"
"""Key of a collection's metadata; the payload field follows."""


def check_owner(store: Store, key: str, index: str | None) -> Mapping[str, str] | None:
    """Refuse a collection that belongs to another index.

    Args:
        key: Payload field of its identifiers.
        index: Id of the index that asks; None for one that is yet to be.

    Returns:
        What `make_claim` told the collection; None where nobody has claimed it.

    Raises:
        MismatchError: Both are named.
    """
    owner: Mapping[str, str] | None = store.info().metadata.get(f"{OWNER_KEY}:{key}")
    if owner is not None and owner.get("index") != index:
        raise MismatchError(
            f"The collection at {store.location} belongs to the index {owner.get('index')}, not to "
            f"{index or 'a new one'}.",
            "Open that index, or use another collection; delete the collection if that index is "
            "gone.",
        )
    return owner


def set_owner(store: Store, key: str, index: str, revision: str, before: str | None = None) -> None:
    """Tell a collection whose it is, and which model wrote it.

    Args:
        flip: Mark of the manifest in force.
        before: Mark of the one that is right, too, until the flip.
    """
    owner = {"index": index, "model": revision}
    store.set_metadata(
        f"{OWNER_KEY}:{key}", owner if before is None else {**owner, "before": before}
    )
