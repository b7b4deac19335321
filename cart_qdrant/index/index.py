"""An open index: its folder, manifest, store and embedder, bound to each other."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from cart_qdrant.embedders.external import EXTERNAL, ExternalEmbedder
from cart_qdrant.embedders.protocol import Embedder, FittedEmbedder
from cart_qdrant.embedders.registry import open_embedder
from cart_qdrant.embedders.text.folder import text_encoder_folder
from cart_qdrant.errors import IndexMissingError, MismatchError, UsageError
from cart_qdrant.files import load_arrays, save_arrays
from cart_qdrant.index.folder import IndexFolder
from cart_qdrant.index.manifest import Artifact, EmbedderInfo, Manifest
from cart_qdrant.index.ownership import check_owner, set_owner
from cart_qdrant.progress import say_nothing
from cart_qdrant.records import Modality
from cart_qdrant.storage.attachment import Attachment
from cart_qdrant.storage.factory import open_store
from cart_qdrant.storage.protocol import CAPTION, CAPTION_TEXTS, MEDIA, CollectionSpec, Store
from cart_qdrant.storage.store_info import StoreInfo

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

    from cart_qdrant.embedders.text.minilm import TextEncoder
    from cart_qdrant.embedders.text.onnx_encoder import OnnxTextEncoder
    from cart_qdrant.embedders.zero_shot import TextAnchors
    from cart_qdrant.identifiers.hubness import QueryBank


TEXT_DIM = 384
"""Width of a caption vector (all-MiniLM-L6-v2)."""
QUERY_BANK = "querybank.safetensors"
"""File of a generator's folder with the queries that hubness is measured by."""
DISTILLED = "teacher.safetensors"
"""File of a generator's folder with texts and the vectors that the embedder's text tower gave."""
KEY = "cart"
"""Payload field of identifiers, unless a collection of others has it."""


def identifier_fields(field: str) -> list[str]:
    """Payload fields by which identifiers are looked up, and that have an index: each one more
    makes opening the store slower (docs/experiments.md)."""
    return [f"{field}.id", f"{field}.p1"]


def _collection(dim: int, key: str) -> CollectionSpec:
    return CollectionSpec(
        vectors={MEDIA: dim, CAPTION: TEXT_DIM},
        keywords=[*identifier_fields(key), "modality", "path", "hash"],
        texts=[CAPTION_TEXTS],
    )


class Index:
    """One index, open for reading and, under `folder.lock()`, for writing.

    Use `Index.open` or `Index.create`; it is a context manager that closes the store.
    """

    def __init__(self, folder: IndexFolder, manifest: Manifest, store: Store) -> None:
        self.folder = folder
        self.manifest = manifest
        self.store = store
        self.vectors_file: Path | None = None
        self._embedder: Embedder | None = None
        self._text: TextEncoder | None = None
        self._quick: OnnxTextEncoder | None = None
        self._text_anchors: TextAnchors | None = None
        self._distilled_anchors: TextAnchors | None = None

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
            url: Server it must be on, if given; None takes the manifest's.
            api_key: Key of the server.
            collection: Collection it must be in, if given.
            embedder: Name it must be bound to, if given.
            client: Client of your own to reach its server by; you close it.
            trust_folder: Take the folder for right, whatever the collection was told.

        Raises:
            IndexMissingError: There is none.
            MismatchError: It is bound to another embedder or collection, or the collection was
                written with another model; both are named.
            StoreError: The store cannot be opened.
        """
        folder = IndexFolder(Path(root).absolute())
        manifest = folder.read()
        bound = manifest.embedder.name
        if embedder not in (None, "auto", bound):
            raise MismatchError(
                f"The index at {root} is bound to the embedder {bound!r}, not {embedder!r}.",
                f"Use `--embedder {bound}`, or another `--index`.",
            )
        info = manifest.store
        for name, wanted, stored in (
            ("server", url, info.url),
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
        if client is not None and info.kind == "edge":
            raise MismatchError(
                f"The index at {root} is in the embedded store, not with a client.",
                "Leave the client out, or move the index: `cartq migrate --to URL`.",
            )
        store = open_store(info, folder.store, api_key, client)
        try:
            if not store.exists():
                raise IndexMissingError(
                    f"The points of the index {root} are gone from {store.location}.",
                    "Delete the folder and ingest again.",
                )
            index = cls(folder, manifest, store)
            if not trust_folder:
                index._check_owner()
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
            UsageError: The folder holds files that are not an index.
            MismatchError: The collection has points already and belongs to no index of ours.
            StoreError: The store cannot be made.
        """
        folder = IndexFolder(Path(root).absolute())
        folder.prepare()
        info = StoreInfo()
        if url is not None:
            info = StoreInfo(kind="server", url=url, collection=collection or "media")
        store = open_store(info, folder.store, api_key)
        try:
            # An empty one may be left by a run that was killed before the manifest was written.
            if store.exists() and (points := store.count()):
                raise MismatchError(
                    f"The collection at {store.location} has {points} points, but the index "
                    f"{root} has no manifest that says how they were made.",
                    "Bring back its manifest.json, or use another `--index` or `--collection`.",
                )
            store.create(_collection(embedder.dim, KEY))
            check_owner(store, KEY, None)
        except BaseException:
            store.close()
            raise
        spaces = {str(m): s for m, s in embedder.spaces.items()}
        manifest = Manifest(
            id=str(uuid.uuid4()),
            embedder=EmbedderInfo(
                name=embedder.name, version=embedder.version, dim=embedder.dim, spaces=spaces
            ),
            store=info,
        )
        index = cls(folder, manifest, store)
        index._embedder = embedder
        index.put(manifest)
        return index

    @property
    def attachment(self) -> Attachment | None:
        """How a collection that others fill is read; None where the collection is ours."""
        return self.manifest.store.attachment

    @property
    def key(self) -> str:
        """Payload field of the first identifiers; later ones have a number behind it."""
        return KEY if self.attachment is None else self.attachment.key

    @property
    def field(self) -> str:
        """Payload field of the identifiers in force, or of those that come first."""
        info = self.manifest.identifiers
        return self.key if info is None else info.field

    @property
    def keeps_captions(self) -> bool:
        """Whether the collection has room for caption vectors."""
        return self.attachment is None or self.attachment.caption_vector is not None

    def require_own(self) -> None:
        """Refuse what would write points.

        Raises:
            UsageError: The index is attached to a collection that others fill.
        """
        if self.attachment is not None:
            raise UsageError(
                f"The collection at {self.store.location} is filled by others.",
                "Follow it with `cartq sync`, or ingest into another --index.",
            )

    def _check_owner(self) -> None:
        """Refuse an index folder that is not the one that the collection was written with."""
        if self.manifest.store.kind == "edge":
            return
        owner = check_owner(self.store, self.key, self.manifest.id)
        if owner is None:
            return
        if self.manifest.revision not in (owner.get("model"), owner.get("before")):
            self.manifest = self.folder.read()  # it may just have flipped
        if self.manifest.revision not in (owner.get("model"), owner.get("before")):
            raise MismatchError(
                f"The collection at {self.store.location} was last written with the model "
                f"{owner.get('model')!r}, but {self.folder.root} has {self.manifest.revision!r}.",
                "Copy the folder of that model here; or, if it is lost or the collection was set "
                "back, take this one: `cartq doctor --fix`.",
            )

    def take_ownership(self) -> bool:
        """Tell a server's collection that this folder is right, if it was told otherwise.

        Returns:
            Whether it was.

        Raises:
            MismatchError: The collection belongs to another index.
        """
        try:
            self._check_owner()
        except MismatchError:
            self.put(self.manifest)
            return True
        return False

    def embedder(self, say: Callable[[str], None] = say_nothing) -> Embedder:
        """The embedder that the index is bound to, with its frozen statistics.

        Raises:
            MismatchError: The installed one has another version or width.
        """
        info = self.manifest.embedder
        if self._embedder is None and info.name == EXTERNAL:
            spaces = {Modality(m): space for m, space in info.spaces.items()}
            self._embedder = ExternalEmbedder(info.dim, spaces)
        elif self._embedder is None:
            self._embedder = open_embedder(info.name, vectors=self.vectors_file, say=say)
        found = self._embedder
        if (found.name, found.version, found.dim) != (info.name, info.version, info.dim):
            raise MismatchError(
                f"The index was made with the embedder {info.name} {info.version} "
                f"({info.dim}-d), but this one is {found.name} {found.version} ({found.dim}-d).",
                "Ingest into another `--index`.",
            )
        if isinstance(found, FittedEmbedder) and info.statistics is not None:
            found.load_arrays(load_arrays(self.folder.path(info.statistics)))
        return found

    def set_embedder(self, embedder: Embedder) -> None:
        """Use an embedder that is already open."""
        self._embedder = embedder

    def freeze_statistics(self, embedder: FittedEmbedder) -> None:
        """Store the embedder's statistics and bind the index to them."""
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

    def distilled_anchors(self) -> TextAnchors | None:
        """The texts through which others reach the media spaces without the embedder: its own, or
        those that training has learned from; None where there are none."""
        own, generator = self.text_anchors(), self.manifest.generator
        if own is not None or generator is None:
            return own
        if self._distilled_anchors is None:
            path = self.folder.path(generator.folder) / DISTILLED
            if not path.exists():
                return None
            from cart_qdrant.embedders.zero_shot import TextAnchors

            self._distilled_anchors = TextAnchors.load(path)
        return self._distilled_anchors

    def text_anchors(self) -> TextAnchors | None:
        """The texts whose vectors the embedder knows; None where it embeds any text itself."""
        kept = self.manifest.embedder.text_anchors
        if self._text_anchors is None and kept is not None:
            from cart_qdrant.embedders.zero_shot import TextAnchors

            self._text_anchors = TextAnchors.load(self.folder.path(kept))
        return self._text_anchors

    def query_bank(self) -> QueryBank | None:
        """Queries that hubness is measured by; None before training, or of an older version."""
        generator = self.manifest.generator
        if generator is None:
            return None
        path = self.folder.path(generator.folder) / QUERY_BANK
        if not path.exists():
            return None
        from cart_qdrant.identifiers.hubness import QueryBank

        return QueryBank.load(path)

    def text_encoder(self) -> TextEncoder:
        """The text encoder, loaded once."""
        if self._text is None:
            from cart_qdrant.embedders.text.minilm import TextEncoder

            self._text = TextEncoder(text_encoder_folder())
        return self._text

    def query_text_encoder(self) -> OnnxTextEncoder:
        """The text encoder for searches, without torch, loaded once."""
        if self._quick is None:
            from cart_qdrant.embedders.text.onnx_encoder import OnnxTextEncoder

            self._quick = OnnxTextEncoder(text_encoder_folder())
        return self._quick

    def add_indexes(self) -> None:
        """Make payload indexes that an index of an older version lacks."""
        self.make_collection(self.store)

    def make_collection(self, store: Store) -> None:
        """Make the collection of this index in a store, or the payload indexes that it lacks."""
        store.create(_collection(self.manifest.embedder.dim, self.field))

    def put(self, manifest: Manifest) -> None:
        """Flip to another manifest.

        A server's collection is told before and after: a run that is killed in between leaves
        both models right.

        Raises:
            MismatchError: The collection belongs to another index by now.
        """
        before, manifest = self.manifest.revision, replace(manifest, revision=uuid.uuid4().hex[:12])
        shared = manifest.store.kind != "edge"
        if shared:
            check_owner(self.store, self.key, manifest.id)
            set_owner(self.store, self.key, manifest.id, manifest.revision, before)
        self.folder.write(manifest)
        self.manifest = manifest
        if shared:
            set_owner(self.store, self.key, manifest.id, manifest.revision)

    def clear_work(self, names: Sequence[str]) -> None:
        """Remove finished work of a step."""
        for name in names:
            path = self.folder.work / name
            if path.is_dir():
                shutil.rmtree(path)
            elif path.exists():
                path.unlink()

    def space(self, modality: str) -> str | None:
        """Vector space of a modality; None when the embedder does not know it."""
        return self.manifest.embedder.spaces.get(modality)

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
