"""An open index: its folder, manifest, collection and models, bound to each other."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from cart_qdrant.embedders.precomputed import PrecomputedEmbedder
from cart_qdrant.embedders.protocol import Embedder, FittedEmbedder
from cart_qdrant.errors import IndexMissingError, MismatchError, UsageError
from cart_qdrant.files import save_arrays
from cart_qdrant.index.changes import Changes
from cart_qdrant.index.collection import KEY, collection_spec
from cart_qdrant.index.consent import check_key, remember_key
from cart_qdrant.index.folder import IndexFolder
from cart_qdrant.index.manifest import Artifact, EmbedderInfo, Manifest
from cart_qdrant.index.models import IndexModels
from cart_qdrant.index.ownership import Owner, Ownership, check_owner
from cart_qdrant.storage.address import server_address
from cart_qdrant.storage.attachment import Attachment
from cart_qdrant.storage.factory import open_store
from cart_qdrant.storage.protocol import CAPTION, Store
from cart_qdrant.storage.store_info import StoreInfo

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

    from cart_qdrant.embedders.zero_shot import TextAnchors


class Index(IndexModels):
    """One index, open for reading and, under `folder.lock()`, for writing.

    Made by `Index.open` or `Index.create`. As a context manager, it closes the store at the end.
    """

    def __init__(self, folder: IndexFolder, manifest: Manifest, store: Store) -> None:
        super().__init__(folder, manifest)
        self.store = store
        self._ownership: Ownership | None = None
        self.changes = Changes(folder.work)

    @classmethod
    def open(
        cls,
        root: Path,
        *,
        url: str | None = None,
        api_key: str | None = None,
        collection: str | None = None,
        embedder: str | None = None,
        client: QdrantClient | None = None,
        trust_folder: bool = False,
    ) -> Index:
        """Open an existing index.

        Args:
            root: The `.cartq` folder.
            url: Server that the index must be on; None accepts any.
            api_key: Key of the server. It is sent only to a server that the user named, by `url`
                now or before, or in `CARTQ_URL`; an index folder may come from others.
            collection: Collection that the index must be in; None accepts any.
            embedder: Name of the embedder that the index must be bound to; None accepts any.
            client: A client of the caller's, by which the server is reached. The caller closes it.
            trust_folder: Open the index even where the collection records another revision of it.

        Raises:
            IndexMissingError: There is no index.
            MismatchError: The index is bound to another embedder or collection, or the collection
                was written with another revision of the index; both are named. Or the key was not
                given for the server of the index.
            StoreError: The store cannot be opened.
        """
        folder = IndexFolder(Path(root).absolute())
        manifest = folder.read()
        _check_embedder(manifest, root, embedder)
        _check_place(manifest.store, root, url, collection, client)
        check_key(folder.root, manifest.store.url, api_key, url)
        store = open_store(manifest.store, folder.store, api_key, client)
        try:
            if not store.exists():
                raise IndexMissingError(
                    f"The points of the index {root} are no longer at {store.location}.",
                    _remedy_of_lost_points(manifest.store, folder.root),
                )
            remember_key(api_key, url)
            index = cls(folder, manifest, store)
            index.own(store)
            if not trust_folder:
                index._check_revision()
        except BaseException:
            store.close()
            raise
        return index

    @classmethod
    def create(
        cls,
        root: Path,
        embedder: Embedder,
        *,
        url: str | None = None,
        api_key: str | None = None,
        collection: str | None = None,
    ) -> Index:
        """Create an index and its collection.

        Raises:
            UsageError: The folder holds files that are not an index, the URL is none, or a
                collection is named without a server.
            MismatchError: The collection belongs to another index, or has points that no index
                made.
            StoreError: The store cannot be made.
        """
        folder = IndexFolder(Path(root).absolute())
        info = StoreInfo()
        if url is not None:
            info = StoreInfo(kind="server", url=url, collection=collection or "media")
        elif collection is not None:
            raise UsageError(
                f"The collection {collection!r} is named, but no server that has it.",
                "Name the server with --url, or leave the collection out.",
            )
        folder.prepare()
        store = open_store(info, folder.store, api_key)
        try:
            # A run that was killed before it wrote the manifest may have left an empty collection.
            if store.exists() and (points := store.count()):
                raise MismatchError(
                    f"The collection at {store.location} has {points} points, but the index "
                    f"{root} has no manifest that says how they were made.",
                    "Bring back its manifest.json, or use another `--index` or `--collection`.",
                )
            store.create(collection_spec(embedder.dim, KEY, CAPTION))
            check_owner(store, KEY, None)
            remember_key(api_key, url)
        except BaseException:
            store.close()
            raise
        spaces = {str(m): s for m, s in embedder.spaces.items()}
        manifest = Manifest(
            id=str(uuid.uuid4()),
            embedder=EmbedderInfo(
                name=embedder.name,
                version=embedder.version,
                dim=embedder.dim,
                spaces=spaces,
                model=embedder.model if isinstance(embedder, PrecomputedEmbedder) else None,
            ),
            store=info,
        )
        index = cls(folder, manifest, store)
        index.own(store)
        index._embedder = embedder
        index.put(manifest)
        return index

    @property
    def attachment(self) -> Attachment | None:
        """How a collection that others fill is read; None where this index fills it."""
        return self.manifest.store.attachment

    @property
    def key(self) -> str:
        """Payload field of version 1 of the identifiers; later versions append a number."""
        return KEY if self.attachment is None else self.attachment.key

    @property
    def field(self) -> str:
        """Payload field of the identifiers in force; before the first fit, of version 1."""
        info = self.manifest.identifiers
        return self.key if info is None else info.field

    @property
    def keeps_captions(self) -> bool:
        """Whether the collection has room for caption vectors."""
        return self.attachment is None or self.attachment.caption_vector is not None

    def require_own(self) -> None:
        """Refuse to write points into a collection that others fill.

        Raises:
            UsageError: The index is attached to a collection that others fill.
        """
        if self.attachment is not None:
            raise UsageError(
                f"The collection at {self.store.location} is filled by others.",
                "`cartq sync` follows it. Ingest into another --index; leave backups and moves to "
                "those who fill it.",
            )

    def with_manifest(self, manifest: Manifest) -> Index:
        """This index by another manifest, with the same store and the models that stay valid."""
        other = Index(self.folder, manifest, self.store)
        other.share_models(self)
        other._ownership = self._ownership
        return other

    def other_revision(self) -> str | None:
        """The revision with which another copy of the folder wrote to a server's collection; None
        where this one's was the last.

        Raises:
            MismatchError: The collection belongs to another index.
        """
        owner = self._recorded_owner()
        accepted = owner is None or owner.accepts(self.manifest.revision)
        return None if owner is None or accepted else owner.revision

    def _recorded_owner(self) -> Owner | None:
        """The owner that a server's collection records; an embedded store records none."""
        if self.manifest.store.kind == "edge" or self._ownership is None:
            return None
        return self._ownership.owner()

    def own(self, store: Store) -> None:
        """Use a store from now on, and write there only while no other copy of this index does."""
        self.store = store
        self._ownership = Ownership(store, self.key, self.manifest.id, self.folder.root)
        store.guard_writes(self._before_write)

    def _before_write(self) -> None:
        if self._ownership is not None and self.manifest.store.kind != "edge":
            self._ownership.before_write(self.manifest.revision)

    def _check_revision(self) -> None:
        """Refuse an index folder whose collection was written with another revision of it."""
        owner = self._recorded_owner()
        if owner is None or self._ownership is None:
            return
        if not owner.accepts(self.manifest.revision):
            self.manifest = self.folder.read()  # a writer may have replaced it since it was read
        if not owner.accepts(self.manifest.revision):
            raise self._ownership.refusal(owner, self.manifest.revision)

    def take_ownership(self) -> bool:
        """Record this folder's revision in a server's collection, if another one is recorded.

        Returns:
            Whether another revision was recorded.

        Raises:
            MismatchError: The collection belongs to another index.
        """
        try:
            self._check_revision()
        except MismatchError:
            self.put(self.manifest, trust_folder=True)
            return True
        return False

    def freeze_statistics(self, embedder: FittedEmbedder) -> None:
        """Store the statistics of the embedder and bind the index to them."""
        name = "embedder.safetensors"
        digest = save_arrays(self.folder.root / name, embedder.to_arrays(), self.folder.work)
        info = replace(self.manifest.embedder, statistics=Artifact(name, digest))
        self.put(replace(self.manifest, embedder=info))

    def keep_text_anchors(self, text_anchors: TextAnchors) -> None:
        """Store the texts whose vectors the embedder knows."""
        name = f"text-anchors-{text_anchors.digest()}.safetensors"
        kept = self.manifest.embedder.text_anchors
        if kept is not None and kept.name == name:
            return
        digest = text_anchors.save(self.folder.root / name, self.folder.work)
        info = replace(self.manifest.embedder, text_anchors=Artifact(name, digest))
        self.put(replace(self.manifest, embedder=info))
        self._text_anchors = text_anchors

    def make_collection(self, store: Store) -> None:
        """Make the collection of this index in a store, or the payload indexes that it lacks."""
        dim = self.manifest.embedder.dim
        store.create(collection_spec(dim, self.field, self.caption_vector))

    def put(self, manifest: Manifest, *, trust_folder: bool = False) -> None:
        """Activate another manifest.

        The metadata of a server's collection is written before and after: if the run is killed in
        between, both revisions are valid.

        Args:
            manifest: The manifest; it gets a new revision.
            trust_folder: Whether to take the collection over from any other copy of the index.

        Raises:
            MismatchError: The collection belongs to another index by now, or another copy of this
                one has written to it.
        """
        before = self.manifest
        manifest = replace(manifest, revision=uuid.uuid4().hex[:12])
        ownership = None if manifest.store.kind == "edge" else self._ownership
        if ownership is not None:
            ownership.replace_revision(manifest.revision, before.revision, trust=trust_folder)
        self.folder.write(manifest)
        self.manifest = manifest
        self.forget_models(before)
        if ownership is not None:
            ownership.confirm_revision(manifest.revision)

    def clear_work(self, names: Sequence[str]) -> None:
        """Remove files and folders of finished work from the work folder."""
        for name in names:
            path = self.folder.work / name
            if path.is_dir():
                shutil.rmtree(path)
            elif path.exists():
                path.unlink()

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _check_embedder(manifest: Manifest, root: Path, wanted: str | None) -> None:
    bound = manifest.embedder.name
    if wanted not in (None, "auto", bound):
        raise MismatchError(
            f"The index at {root} is bound to the embedder {bound!r}, not {wanted!r}.",
            f"Use `--embedder {bound}`, or another `--index`.",
        )


def _remedy_of_lost_points(place: StoreInfo, root: Path) -> str:
    if place.attachment is not None:
        return (
            "Bring the collection back, or attach its new place: `cartq attach`, another --index."
        )
    return f"Restore a backup into another --index; or delete {root} and ingest again."


def _check_place(
    info: StoreInfo,
    root: Path,
    url: str | None,
    collection: str | None,
    client: QdrantClient | None,
) -> None:
    """Refuse to look for the points elsewhere than where the manifest says they are."""
    for name, wanted, stored in (
        ("server", None if url is None else server_address(url), info.url),
        ("collection", collection, info.collection),
    ):
        if wanted is not None and stored is not None and wanted != stored:
            raise MismatchError(
                f"The index at {root} is in the {name} {stored!r}, not {wanted!r}.",
                "Use another `--index`.",
            )
    if url is not None and info.url is None:
        raise MismatchError(
            f"The index at {root} is in the embedded store, not at {url!r}.",
            "Use another `--index`.",
        )
    if collection is not None and info.collection is None:
        raise MismatchError(
            f"The index at {root} is in the embedded store, not in a collection {collection!r}.",
            "Leave the collection out, or use another `--index`.",
        )
    if client is not None and info.kind == "edge":
        raise MismatchError(
            f"The index at {root} is in the embedded store, not with a client.",
            "Leave the client out, or move the index: `cartq migrate --to URL`.",
        )
