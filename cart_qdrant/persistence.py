"""The folder of an index: what lies where, and how it changes without ever being half changed.

```
.cartq/
  manifest.json          names and hashes of everything below; replacing it is the flip
  embedder.safetensors   statistics of the embedder, where it has some
  embedder-lexicon-HASH.safetensors   texts whose vectors it knows
  identifiers-N.safetensors, trie-HASH.safetensors, items-HASH.safetensors
  generator-N/           safetensors and JSON of the trained generator
  store/                 the embedded engine
  work/                  drafts, and unfinished work, so that a killed run resumes
  lock                   held by the one process that writes; says that the folder is an index
```
Files get a new name for every version and are drafted in `work/`; the manifest is replaced last;
files of older versions are removed afterwards, by exact patterns of names. A crash leaves the old
version or the new one. An index is made in a new or empty folder, never among other files.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cart_qdrant.errors import IndexMissingError, MismatchError, StoreError, UsageError

FORMAT = 1
SEEN = "checked.json"
"""File of an index folder with sizes and times of the artefacts that were checked."""
COPIED = "copied-from"
"""File in a folder that is a copy for reading: it names the original."""
MARK = b"This folder is an index of cart-qdrant.\n"
"""Content of the lock file, from before there is a manifest."""
_VERSIONED = re.compile(
    r"(identifiers-\d+|(trie|items)-[0-9a-f]{12}|embedder-lexicon-[0-9a-f]+)\.safetensors"
    r"|generator-\d+"
)
"""Names of files and folders of one version of an index: the only ones that are ever removed."""
_DRAFT = re.compile(r"draft-[0-9a-f]{8}-.+")


def file_hash(path: Path) -> str:
    """blake2b (16 bytes, hex) of a file."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_atomic(path: Path, data: bytes, drafts: Path | None = None) -> None:
    """Replace a file's content: a reader sees the old or the new, also after a power cut.

    Args:
        drafts: Folder on the same disk where the new content is written first; that of `path` if
            not given.
    """
    draft = draft_path(path.parent if drafts is None else drafts, path.name)
    with draft.open("wb") as file:
        file.write(data)
    rename_durably(draft, path)


def draft_path(folder: Path, name: str) -> Path:
    """A path for a file that is not finished; its folder is made."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"draft-{uuid.uuid4().hex[:8]}-{name}"


def rename_durably(source: Path, target: Path) -> None:
    """Rename a finished file, or a folder of files, to a name where a file may be replaced; both
    content and name survive a power cut."""
    if source.is_dir():
        for file in source.iterdir():
            _sync(file)
    _sync(source)
    source.replace(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_arrays(
    path: Path, arrays: Mapping[str, npt.NDArray[Any]], drafts: Path | None = None
) -> str:
    """Write a safetensors file as `write_atomic` does; returns its hash."""
    from safetensors.numpy import save

    write_atomic(path, save({k: np.ascontiguousarray(v) for k, v in arrays.items()}), drafts)
    return file_hash(path)


def load_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read a safetensors file."""
    from safetensors.numpy import load_file

    return load_file(path)


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
    statistics: Artifact | None = None
    lexicon: Artifact | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentifierInfo:
    """The identifiers in force: code books, payload field, tree, and what ranks the items."""

    version: int
    field: str
    books: Artifact
    trie: Artifact
    meta: dict[str, Any]
    levels: int
    count: int
    U: float
    items: Artifact | None = None
    """None in an index of an older version: payloads are read instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorInfo:
    """The trained generator and what it was trained for."""

    version: int
    folder: Artifact
    identifiers: int
    """Version of the identifiers that it writes."""
    summary: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """How a collection that others fill is read. Payload fields are dotted paths: `meta.url`.

    Attributes:
        vector: Name of its media vector; "" where it has no name.
        key: Payload field that identifiers are written to, and the only one that is written.
        modality: Kind of all items, unless `kind` names a field that tells.
        kind: Field that holds `image`, `video` or `audio`; items of other kinds are left alone.
        kinds: Kinds that the embedder knows.
        path: Field that names the file; None takes the point's id.
        start: Field of the first second of an item.
        end: Field of its last second.
        captions: Fields that hold texts, lists of texts, or lists of objects with a `text`.
        words: Field whose words are searched.
        caption_vector: Vector that holds caption vectors; None where there is none.
    """

    vector: str
    key: str = "cart"
    modality: str = "image"
    kind: str | None = None
    kinds: list[str] = field(default_factory=lambda: ["image", "video", "audio"])
    path: str | None = None
    start: str | None = None
    end: str | None = None
    captions: list[str] = field(default_factory=list)
    words: str | None = None
    caption_vector: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreInfo:
    """Where the points are: in the index's own folder unless a URL or another folder is named."""

    kind: str = "edge"
    url: str | None = None
    collection: str | None = None
    path: str | None = None
    attachment: Attachment | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Binds embedder, identifiers, tree, generator and collection of one index."""

    id: str
    embedder: EmbedderInfo
    store: StoreInfo
    identifiers: IdentifierInfo | None = None
    generator: GeneratorInfo | None = None
    stale_fields: list[str] = field(default_factory=list)
    """Payload fields of older identifiers that are still to be removed."""
    flip: str = ""
    """Random, of the last change; what a server's collection is told."""
    format: int = FORMAT

    @property
    def version(self) -> str:
        """Short hash of all that decides an answer."""
        text = json.dumps(asdict(replace(self, flip="")), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()

    def artifacts(self) -> list[Artifact]:
        """All files and folders that it names."""
        named = [self.embedder.statistics, self.embedder.lexicon]
        if self.identifiers is not None:
            named += [self.identifiers.books, self.identifiers.trie, self.identifiers.items]
        if self.generator is not None:
            named.append(self.generator.folder)
        return [one for one in named if one is not None]

    def to_bytes(self) -> bytes:
        """JSON form."""
        return (json.dumps(asdict(self), indent=2, sort_keys=True) + "\n").encode()

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Manifest:
        """Inverse of `to_bytes`, after parsing."""

        def artifact(value: dict[str, Any] | None) -> Artifact | None:
            return None if value is None else Artifact(**value)

        embedder = dict(data["embedder"])
        for name in ("statistics", "lexicon"):
            embedder[name] = artifact(embedder.get(name))
        identifiers, generator = data.get("identifiers"), data.get("generator")
        if identifiers is not None:
            files = {name: artifact(identifiers.get(name)) for name in ("books", "trie", "items")}
            identifiers = IdentifierInfo(**{**identifiers, **files})
        if generator is not None:
            generator = GeneratorInfo(**{**generator, "folder": artifact(generator["folder"])})
        store = dict(data["store"])
        if store.get("attachment") is not None:
            store["attachment"] = Attachment(**store["attachment"])
        return cls(
            id=data["id"],
            embedder=EmbedderInfo(**embedder),
            store=StoreInfo(**store),
            identifiers=identifiers,
            generator=generator,
            stale_fields=data["stale_fields"],
            flip=data.get("flip", ""),
        )

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Manifest:
        """Inverse of `to_bytes`.

        Raises:
            MismatchError: It is of another format, or no manifest at all.
        """
        try:
            found = json.loads(data)
        except ValueError as error:
            raise MismatchError(f"{where} is not readable as JSON: {error}.") from error
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            format_ = found.get("format") if isinstance(found, dict) else None
            raise MismatchError(
                f"{where} has index format {format_!r}, but this version reads {FORMAT}.",
                "Ingest again into a new folder with `--index`.",
            )
        try:
            manifest = cls.from_json(found)
        except (KeyError, TypeError) as error:
            raise MismatchError(f"{where} lacks or misnames {error}.") from error
        for artifact in manifest.artifacts():
            if Path(artifact.name).name != artifact.name:
                raise MismatchError(f"{where} names {artifact.name!r}, which is no plain name.")
        return manifest


@dataclass(frozen=True, slots=True)
class IndexFolder:
    """Paths of one index."""

    root: Path

    @property
    def base(self) -> Path:
        """Folder that stored paths are relative to."""
        return self.root.parent

    @property
    def manifest(self) -> Path:
        """The manifest."""
        return self.root / "manifest.json"

    @property
    def store(self) -> Path:
        """The embedded engine's folder."""
        return self.root / "store"

    @property
    def work(self) -> Path:
        """Drafts and unfinished work."""
        return self.root / "work"

    @property
    def lock_file(self) -> Path:
        """Held by the process that writes; its content is `MARK`."""
        return self.root / "lock"

    def exists(self) -> bool:
        """Whether there is an index."""
        return self.manifest.is_file()

    def read(self) -> Manifest:
        """The manifest in force.

        Raises:
            IndexMissingError: There is none.
            MismatchError: It is of another format, or no manifest at all.
        """
        try:
            data = self.manifest.read_bytes()
        except FileNotFoundError:
            raise IndexMissingError(
                f"There is no index at {self.root}.", "Make one with `cartq ingest FOLDER`."
            ) from None
        return Manifest.from_bytes(data, str(self.manifest))

    def claim(self) -> None:
        """Make the folder, or make sure that it is an index or that one may be made in it.

        Raises:
            UsageError: It holds other files than those of an index.
            MismatchError: Its manifest.json is that of another program.
        """
        if self.manifest.exists():
            self.read()
            return
        if self.root.exists() and not self.root.is_dir():
            raise UsageError(f"{self.root} is a file.", "Name a folder with --index.")
        if self.root.exists() and any(self.root.iterdir()) and not self._marked():
            raise UsageError(
                f"{self.root} holds files that are not an index.",
                f"Name a folder of its own: --index {self.root / '.cartq'}",
            )
        self.root.mkdir(parents=True, exist_ok=True)
        with self.lock_file.open("ab") as file:
            if file.tell() == 0:
                file.write(MARK)

    def _marked(self) -> bool:
        try:
            return self.lock_file.read_bytes() == MARK
        except OSError:
            return False

    def only_locked(self) -> bool:
        """Whether there is nothing but the lock file of a run that has made no index."""
        return self._marked() and len(list(self.root.iterdir())) == 1

    def write(self, manifest: Manifest) -> None:
        """Put a manifest in force (the flip) and remove files of versions it no longer names."""
        write_atomic(self.manifest, manifest.to_bytes(), self.work)
        # Whoever writes an artefact has just hashed it.
        seen = self._seen()
        known = {a.name: a for a in manifest.artifacts() if (self.root / a.name).exists()}
        fresh = {
            name: self._state(a) for name, a in known.items()
            if seen.get(name, {}).get("hash") != a.hash
        }  # fmt: skip
        self._remember({name: one for name, one in seen.items() if name in known} | fresh)
        self._sweep(manifest)

    def path(self, artifact: Artifact, *, anew: bool = False) -> Path:
        """Path of an artefact, after its content was checked.

        Files that have the sizes and times that they had when they were last checked are taken to
        be unchanged: hashing takes longer than a search.

        Args:
            anew: Whether to hash them all the same.

        Raises:
            MismatchError: It is missing, or its hash is not that of the manifest.
        """
        path = self.root / artifact.name
        if not path.exists():
            raise MismatchError(
                f"{path} is missing, but the manifest names it.", "Mend: `cartq doctor --fix`."
            )
        state = self._state(artifact)
        seen = self._seen()
        if not anew and seen.get(artifact.name) == state:
            return path
        found = artifact_hash(path)
        if found != artifact.hash:
            raise MismatchError(
                f"{path} has hash {found}, but the manifest says {artifact.hash}.",
                "Mend: `cartq doctor --fix`.",
            )
        if seen.get(artifact.name) != state:
            self._remember({**seen, artifact.name: state})
        return path

    def _state(self, artifact: Artifact) -> dict[str, Any]:
        """What is remembered of a checked artefact."""
        path = self.root / artifact.name
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        stats = [(file.name, file.stat()) for file in files]
        return {
            "hash": artifact.hash,
            "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
        }

    def _seen(self) -> dict[str, Any]:
        """States of checked artefacts; whatever is wrong with the file, it means none."""
        try:
            found = json.loads((self.root / SEEN).read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _remember(self, states: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):  # a folder that may only be read is checked each time
            write_atomic(self.root / SEEN, json.dumps(states).encode(), self.work)

    def _sweep(self, manifest: Manifest) -> None:
        named = {artifact.name for artifact in manifest.artifacts()}
        old = [
            entry for entry in self.root.iterdir()
            if entry.name not in named and _VERSIONED.fullmatch(entry.name)
        ]  # fmt: skip
        old += [entry for entry in self.work.iterdir() if _DRAFT.fullmatch(entry.name)]
        for entry in old:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)  # a reader's draft may just have got its name

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other writers out; released also when the process is killed.

        Raises:
            StoreError: Another process writes to the index.
            UsageError: The folder is a copy for reading, or holds files that are not an index.
        """
        copied = self.root / COPIED
        if copied.exists():
            raise UsageError(
                f"{self.root} is a copy of {copied.read_text().strip()}, for reading.",
                "Write to the original.",
            )
        self.claim()
        with self.lock_file.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(
                    f"Another process is writing to {self.root}.",
                    "Wait until it ends, or stop it.",
                ) from None
            yield


def artifact_hash(path: Path) -> str:
    """Hash of a file, or of a folder's files."""
    return folder_hash(path) if path.is_dir() else file_hash(path)


def folder_hash(folder: Path) -> str:
    """blake2b over the names and hashes of a folder's files."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.iterdir()):
        digest.update(f"{path.name}\0{file_hash(path)}\n".encode())
    return digest.hexdigest()
