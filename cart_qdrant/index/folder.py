"""The folder of an index: which files it has, and how they are replaced without a broken state.

```
.cartq/
  manifest.json          names and hashes of everything below; replacing it activates a version
  embedder.safetensors   statistics of the embedder, where it has some
  text-anchors-HASH.safetensors   texts whose vectors the embedder knows
  identifiers-N.safetensors, trie-HASH.safetensors, items-HASH.safetensors
  generator-N/           safetensors and JSON of the trained generator
  store/                 the embedded store
  store.lock, store.sock which process has it open, and where it answers the others
  work/                  drafts and unfinished work, from which a killed run resumes
  lock                   held by the one process that writes; marks the folder as an index
```
Files get a new name for every version and are drafted in `work/`; the manifest is replaced last. A
crash leaves the old version or the new one. Files of older versions stay until the next run that
writes, so that an open retriever can finish with them; that run removes them, by exact patterns of
names. An index is made in a new or empty folder, never among other files.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cart_qdrant.errors import IndexMissingError, MismatchError, StoreError, UsageError
from cart_qdrant.files import artifact_hash, make_folder, synchronise, write_atomic
from cart_qdrant.index.manifest import Artifact, Manifest
from cart_qdrant.locks import Holder, ProcessLock

log = logging.getLogger(__name__)

LOCK_PATIENCE = 10.0
"""Seconds to wait for another process that writes."""
SEEN = "checked.json"
"""File of an index folder with sizes and times of the files whose hashes were checked."""
COPIED = "copied-from"
"""File in a read-only copy of an index folder: it names the original."""
MARK = b"This folder is an index of cart-qdrant.\n"
"""Begin of the lock file; it marks the folder before there is a manifest. The record of the process
that writes follows."""
VERSIONED = re.compile(
    r"(identifiers-\d+|(trie|items)-[0-9a-f]{12}|text-anchors-[0-9a-f]+)\.safetensors"
    r"|generator-\d+"
)
"""Names of files and folders of one version of an index: the only ones that are ever removed."""
_DRAFT = re.compile(r"draft-[0-9a-f]{8}-.+")


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
        """Folder of the embedded store."""
        return self.root / "store"

    @property
    def work(self) -> Path:
        """Drafts and unfinished work."""
        return self.root / "work"

    @property
    def lock_file(self) -> Path:
        """The lock file, held by the process that writes; it begins with `MARK`."""
        return self.root / "lock"

    @property
    def is_copy(self) -> bool:
        """Whether this is a read-only copy of an index behind a URL."""
        return (self.root / COPIED).exists()

    def exists(self) -> bool:
        """Whether there is an index."""
        return self.manifest.is_file()

    def read(self) -> Manifest:
        """The manifest in force.

        Raises:
            IndexMissingError: There is none.
            UsageError: The folder is a file.
            MismatchError: It has another format, or is no manifest.
        """
        try:
            data = self.manifest.read_bytes()
        except FileNotFoundError:
            raise IndexMissingError(
                f"There is no index at {self.root}.", "Make one with `cartq ingest FOLDER`."
            ) from None
        except NotADirectoryError:
            raise UsageError(f"{self.root} is a file.", "Name a folder with --index.") from None
        return Manifest.from_bytes(data, str(self.manifest))

    def prepare(self) -> None:
        """Make the folder, or check that it is an index or empty.

        Raises:
            UsageError: The folder holds other files than those of an index.
            MismatchError: Its manifest.json belongs to another program.
        """
        if self.manifest.exists():
            self.read()
            return
        if self.root.exists() and not self.root.is_dir():
            raise UsageError(f"{self.root} is a file.", "Name a folder with --index.")
        if self.root.exists() and any(self.root.iterdir()) and not self._marked():
            raise UsageError(
                f"{self.root} holds files that are not an index.",
                f"Name a separate folder: --index {self.root / '.cartq'}",
            )
        make_folder(self.root)
        if not self.lock_file.exists() or not self.lock_file.read_bytes().startswith(MARK):
            self.lock_file.write_bytes(MARK)
            synchronise(self.root)  # without it, what is made next would count as foreign

    def _marked(self) -> bool:
        """Whether the lock file says that the folder is an index; a power cut while the folder was
        made may have left it alone and without its content."""
        try:
            found = self.lock_file.read_bytes()
        except OSError:
            return False
        if self.lock_file.is_symlink():
            return False
        is_alone = len(list(self.root.iterdir())) == 1
        return found.startswith(MARK) or (is_alone and not found.strip(b"\0"))

    def only_locked(self) -> bool:
        """Whether the folder has only lock files, left by a run that made no index."""
        names = {one.name for one in self.root.iterdir()}
        return self._marked() and names <= {"lock", "store.lock"}

    def write(self, manifest: Manifest) -> None:
        """Activate a manifest. Files that it no longer names stay until `sweep`."""
        write_atomic(self.manifest, manifest.to_bytes(), self.work)
        # The hashes of new files were computed when they were written.
        seen = self._seen()
        known = {a.name: a for a in manifest.artifacts() if (self.root / a.name).exists()}
        fresh = {
            name: self._state(a) for name, a in known.items()
            if seen.get(name, {}).get("hash") != a.hash
        }  # fmt: skip
        self._remember({name: one for name, one in seen.items() if name in known} | fresh)

    def path(self, artifact: Artifact, *, rehash: bool = False) -> Path:
        """Path of a file or folder that the manifest names, after its content was checked.

        If sizes and times are those of the last check, the content counts as unchanged: hashing
        takes longer than a search.

        Args:
            artifact: The file or folder.
            rehash: Compute the hash in any case.

        Raises:
            MismatchError: The file is missing, or its hash differs from the manifest's.
        """
        path = self.root / artifact.name
        if not path.exists():
            raise MismatchError(
                f"{path} is missing, but the manifest names it.",
                "Repair the index: `cartq doctor --fix`.",
            )
        state = self._state(artifact)
        seen = self._seen()
        if not rehash and seen.get(artifact.name) == state:
            return path
        found = artifact_hash(path)
        if found != artifact.hash:
            raise MismatchError(
                f"{path} has hash {found}, but the manifest says {artifact.hash}.",
                "Repair the index: `cartq doctor --fix`.",
            )
        if seen.get(artifact.name) != state:
            self._remember({**seen, artifact.name: state})
        return path

    def _state(self, artifact: Artifact) -> dict[str, Any]:
        """Hash, sizes and times of a checked file or folder."""
        path = self.root / artifact.name
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        stats = [(file.name, file.stat()) for file in files]
        return {
            "hash": artifact.hash,
            "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
        }

    def _seen(self) -> dict[str, Any]:
        """Recorded states by name; none if the record is missing or damaged."""
        try:
            found = json.loads((self.root / SEEN).read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _remember(self, states: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):  # a read-only folder is checked each time
            write_atomic(self.root / SEEN, json.dumps(states).encode(), self.work)

    def sweep(self, manifest: Manifest) -> None:
        """Remove files of versions that are no longer in force, and drafts of killed runs."""
        named = {artifact.name for artifact in manifest.artifacts()}
        old = [
            entry for entry in self.root.iterdir()
            if entry.name not in named and VERSIONED.fullmatch(entry.name)
        ]  # fmt: skip
        if self.work.exists():
            old += [entry for entry in self.work.iterdir() if _DRAFT.fullmatch(entry.name)]
        for entry in old:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)  # another process may just have renamed its draft

    @contextlib.contextmanager
    def lock(self, patience: float = LOCK_PATIENCE) -> Iterator[None]:
        """Keep other writers out; the lock is released also when the process is killed.

        Args:
            patience: Seconds to wait for another process that writes.

        Raises:
            StoreError: Another process still writes to the index; it is named.
            UsageError: The folder is a read-only copy, or holds files that are not an index.
        """
        copied = self.root / COPIED
        if copied.exists():
            raise UsageError(
                f"{self.root} is a read-only copy of {copied.read_text().strip()}.",
                "Write to the original.",
            )
        self.prepare()
        lock = ProcessLock(self.lock_file, MARK)

        def say(holder: Holder | None) -> None:
            log.warning("Waiting for another writer of %s: %s", self.root, _named(holder))

        if not lock.acquire(patience, say):
            raise StoreError(
                f"Another process is writing to {self.root}: {_named(lock.holder())}.",
                "Wait until it ends, or stop it.",
            )
        try:
            yield
        finally:
            lock.release()


def _named(holder: Holder | None) -> str:
    return "it does not say which one" if holder is None else str(holder)
