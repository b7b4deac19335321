"""Opens the store behind a folder, a URL or a client."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cart_qdrant.storage.protocol import Store

if TYPE_CHECKING:
    pass


def open_store(target: str | Path, collection: str = "media", api_key: str | None = None) -> Store:
    """The store behind a folder, a URL, or `:memory:`. Nothing is opened or sent yet.

    Args:
        target: Folder of an embedded store, `http(s)://...`, or `:memory:`.
        collection: Name of the collection, where `target` is not a folder.
        api_key: Key of the server or cloud, if it wants one.

    Raises:
        StoreError: The URL is not one.
    """
    if isinstance(target, str) and (target == ":memory:" or "://" in target):
        from cart_qdrant.storage.server import ClientStore

        return ClientStore.connect(target, api_key, collection)
    from cart_qdrant.storage.edge import EdgeStore

    return EdgeStore(Path(target))
