"""The manifest: one frozen record that names all parts of an index, written as JSON."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cart_qdrant.config import SegmentConfig
from cart_qdrant.errors import MismatchError
from cart_qdrant.storage.attachment import Attachment
from cart_qdrant.storage.protocol import CAPTION
from cart_qdrant.storage.store_info import StoreInfo

FORMAT = 1
CHECKSUM = "checksum"
"""Key of the checksum of all other keys, by which a damaged manifest is seen."""
_PLAIN_NAME = re.compile(r"\w[\w.-]*")
_REPAIR = (
    "Bring back the manifest of a backup (`cartq restore`), or ingest into another --index and "
    "remove this one."
)


def sealed(data: Mapping[str, Any]) -> bytes:
    """The JSON form of a manifest's content, with its checksum."""
    whole = {**data, CHECKSUM: _checksum(data)}
    return (json.dumps(whole, indent=2, sort_keys=True) + "\n").encode()


def _checksum(data: Mapping[str, Any]) -> str:
    text = json.dumps({k: v for k, v in data.items() if k != CHECKSUM}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file or folder of the index, by name within it, and the hash of its content."""

    name: str
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderInfo:
    """The embedder that an index is bound to."""

    name: str
    version: str
    dim: int
    spaces: dict[str, str]
    """Space of each modality."""
    model: str | None = None
    """Name of the model that made precomputed vectors, where it was given."""
    statistics: Artifact | None = None
    text_anchors: Artifact | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentifierInfo:
    """The identifiers in force: codebooks, payload field, prefix tree and item table."""

    version: int
    field: str
    books: Artifact
    trie: Artifact
    meta: dict[str, Any]
    levels: int
    count: int
    unique_ratio: float
    items: Artifact


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorInfo:
    """The trained generator, and the identifiers that it was trained on."""

    version: int
    folder: Artifact
    identifiers: int
    """Version of the identifiers that the generator writes."""
    summary: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionVectors:
    """The caption vectors in force.

    Attributes:
        vector: Which of the store's `CAPTION_SLOTS` holds them.
        encoder: Folder of the trained model whose query encoder made them; None for the sentence
            vectors of the text encoder. The folder is kept as long as its vectors are in force,
            also where its generator is not.
    """

    vector: str = CAPTION
    encoder: Artifact | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Binds embedder, identifiers, tree, generator and collection of one index."""

    id: str
    embedder: EmbedderInfo
    store: StoreInfo
    identifiers: IdentifierInfo | None = None
    generator: GeneratorInfo | None = None
    captions: CaptionVectors = field(default_factory=CaptionVectors)
    segments: SegmentConfig = field(default_factory=SegmentConfig)
    """How files are cut into segments; one index has segments of one kind."""
    stale_fields: list[str] = field(default_factory=list)
    """Payload fields of earlier identifiers that are still to be removed."""
    stale_vectors: list[str] = field(default_factory=list)
    """Vectors of earlier caption vectors, or of those of a killed training, to be removed."""
    revision: str = ""
    """Random name of this state of the manifest; a server's collection records it."""
    format: int = FORMAT

    @property
    def version(self) -> str:
        """Short hash of all that determines the answers of a search."""
        text = json.dumps(asdict(replace(self, revision="")), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()

    def artifacts(self) -> list[Artifact]:
        """All files and folders that the manifest names."""
        named = [self.embedder.statistics, self.embedder.text_anchors]
        if self.identifiers is not None:
            named += [self.identifiers.books, self.identifiers.trie, self.identifiers.items]
        if self.generator is not None:
            named.append(self.generator.folder)
        if self.captions.encoder not in named:
            named.append(self.captions.encoder)
        return [one for one in named if one is not None]

    def to_bytes(self) -> bytes:
        """JSON form, see `sealed`."""
        return sealed(asdict(self))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Manifest:
        """The manifest of a parsed JSON object, see `to_bytes`."""

        def artifact(value: dict[str, Any] | None) -> Artifact | None:
            return None if value is None else Artifact(**value)

        embedder = dict(data["embedder"])
        for name in ("statistics", "text_anchors"):
            embedder[name] = artifact(embedder.get(name))
        identifiers, generator = data.get("identifiers"), data.get("generator")
        if identifiers is not None:
            files = {name: Artifact(**identifiers[name]) for name in ("books", "trie", "items")}
            identifiers = IdentifierInfo(**{**identifiers, **files})
        if generator is not None:
            generator = GeneratorInfo(**{**generator, "folder": artifact(generator["folder"])})
        captions = data.get("captions", {})
        store = dict(data["store"])
        if store.get("attachment") is not None:
            store["attachment"] = Attachment(**store["attachment"])
        return cls(
            id=data["id"],
            embedder=EmbedderInfo(**embedder),
            store=StoreInfo(**store),
            identifiers=identifiers,
            generator=generator,
            captions=CaptionVectors(**{**captions, "encoder": artifact(captions.get("encoder"))}),
            segments=SegmentConfig(**data["segments"]),
            stale_fields=data["stale_fields"],
            stale_vectors=data.get("stale_vectors", []),
            revision=data["revision"],
        )

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Manifest:
        """Parse and check what `to_bytes` has made.

        Raises:
            MismatchError: The data has another format, or is no manifest.
        """
        try:
            found = json.loads(data)
        except ValueError as error:
            raise MismatchError(f"{where} is not readable as JSON: {error}.", _REPAIR) from error
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            format_ = found.get("format") if isinstance(found, dict) else None
            raise MismatchError(
                f"{where} has index format {format_!r}, but this version reads {FORMAT}.",
                "Ingest again into a new folder with `--index`.",
            )
        named, right = found.pop(CHECKSUM, None), _checksum(found)
        if named != right:
            raise MismatchError(
                f"{where} was damaged or changed: its content has the checksum {right!r}, but it "
                f"names {named!r}.",
                _REPAIR,
            )
        try:
            manifest = cls.from_json(found)
        except (KeyError, TypeError) as error:
            raise MismatchError(f"{where} lacks or misnames {error}.") from error
        for artifact in manifest.artifacts():
            if not _PLAIN_NAME.fullmatch(artifact.name):
                raise MismatchError(
                    f"{where} names {artifact.name!r}, which is not a plain file name."
                )
        return manifest
