"""Where the points of an index are: a record of the manifest, from which `open_store` opens it."""

from __future__ import annotations

from dataclasses import dataclass

from cart_qdrant.storage.address import server_address
from cart_qdrant.storage.attachment import Attachment


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreInfo:
    """Where the points of an index are. Without any value: in the folder of the index itself.

    Attributes:
        kind: `edge` (a folder of the embedded engine), `server` (a URL), or `client` (a
            `QdrantClient` of the caller, which is given again at each opening).
        url: Address of the server; None for the other kinds.
        collection: Name of the collection; None in a folder.
        path: Folder of the embedded engine that others fill; None for the folder of the index.
        attachment: How the collection is read where others fill it; None where it is our own.
    """

    kind: str = "edge"
    url: str | None = None
    collection: str | None = None
    path: str | None = None
    attachment: Attachment | None = None

    def __post_init__(self) -> None:
        """Give the address its one form.

        Raises:
            UsageError: It is none, or holds a password.
        """
        if self.url is not None:
            object.__setattr__(self, "url", server_address(self.url))
