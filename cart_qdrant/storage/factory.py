"""The one place that opens a store: of a folder, a URL, or a client, our own or filled by others.

The implementations are imported here, when one is needed: `qdrant_client` alone takes half a
second.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cart_qdrant.errors import StoreError
from cart_qdrant.storage.protocol import Store
from cart_qdrant.storage.store_info import StoreInfo

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

DEFAULT_COLLECTION = "media"
"""Name of a server's collection where none is given."""


def open_store(
    info: StoreInfo,
    folder: Path,
    api_key: str | None = None,
    client: QdrantClient | None = None,
) -> Store:
    """Open the store of an index; nothing is read from the disk or sent to a server yet.

    Args:
        info: Where the points are.
        folder: Folder of the index's own embedded store, used where `info` names no other place.
        api_key: Key of the server or cloud, if it wants one.
        client: Client of the caller, used instead of `info.url`; `Store.close` leaves it open.

    Raises:
        StoreError: The store is reached through a client of the caller and none is given.
    """
    store = _open_own(info, folder, api_key, client)
    if info.attachment is None:
        return store
    from cart_qdrant.storage.attached import AttachedStore

    return AttachedStore(store, info.attachment)


def _open_own(
    info: StoreInfo, folder: Path, api_key: str | None, client: QdrantClient | None
) -> Store:
    collection = info.collection or DEFAULT_COLLECTION
    if client is not None:
        from cart_qdrant.storage.server import ServerStore

        return ServerStore(client, collection, owned=False)
    if info.kind == "client":
        raise StoreError(
            f"The collection {collection!r} is reached through a client of your own.",
            "Give it again: Retriever.open(root, client=...).",
        )
    if info.url is not None:
        from cart_qdrant.storage.server import ServerStore

        return ServerStore.connect(info.url, api_key, collection)
    from cart_qdrant.storage.shared import SharedStore

    lock_file = folder.with_suffix(".lock")
    if info.path is not None:
        return SharedStore(Path(info.path), lock_file=lock_file, sidecar=False)
    return SharedStore(folder, lock_file=lock_file)
