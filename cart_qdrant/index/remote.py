"""Index folders that are elsewhere: `s3://bucket/photos/.cartq`, or any URL that fsspec opens.

What the manifest names is copied into a cache, once for each version, and checked by its hash. The
copy is for reading: its points are on a server, and it is written where the original is.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cart_qdrant.errors import (
    IndexMissingError,
    MismatchError,
    StoreError,
    UsageError,
    first_line,
)
from cart_qdrant.files import artifact_hash, cache_folder, write_atomic
from cart_qdrant.index.folder import COPIED, IndexFolder
from cart_qdrant.index.manifest import Artifact, Manifest

log = logging.getLogger(__name__)

KEPT = 3
"""Versions of one index that stay in the cache."""
_VERSION = re.compile("[0-9a-f]{16}")
_AGAIN = "Copy the index folder there again, its manifest.json last."


def is_url(root: str) -> bool:
    """Whether an index is named by a URL, and not by a folder."""
    return "://" in root


def local_folder(root: str) -> Path:
    """A folder with the index at `root`: itself, or a copy that is brought up to date.

    Raises:
        UsageError: No file system is known for the URL, or the index is embedded.
        IndexMissingError: There is no index.
        MismatchError: A file is not what the manifest says.
        StoreError: The file system refuses.
    """
    if not is_url(root):
        return Path(root)
    import fsspec

    root = root.rstrip("/")
    try:
        system, path = fsspec.core.url_to_fs(root)
    except (ValueError, ImportError) as error:
        raise UsageError(
            f"{root} cannot be opened: {error}", "Install the file system that it names."
        ) from error
    source = _Source(root, system, path)
    data = source.manifest()
    manifest = Manifest.from_bytes(data, f"{root}/manifest.json")
    if manifest.store.kind == "edge":
        raise UsageError(
            f"The index at {root} holds its points itself, in the embedded store.",
            "Move them to a server first: `cartq migrate --to URL`.",
        )
    # A folder for each version: what an open index reads later is not taken away.
    name, version = (hashlib.blake2b(x, digest_size=8).hexdigest() for x in (root.encode(), data))
    above = cache_folder() / name
    folder = IndexFolder(above / version)
    folder.root.mkdir(parents=True, exist_ok=True)
    with (above / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder.root / COPIED).write_text(root + "\n")
        for artifact in manifest.artifacts():
            source.bring(artifact, folder.root)
        write_atomic(folder.manifest, data)
        _forget(above, folder.root)
    return folder.root


def media_folder(folder: IndexFolder, paths: Iterable[str]) -> Path:
    """The folder that files of an index lie in here.

    Args:
        folder: The index. Of a copy, the files are brought from beside the original into the
            user's cache; what is not there, or may not be read, is left out.
        paths: Of the files that are wanted, relative to the index's base.
    """
    copied = folder.root / COPIED
    if not copied.exists():
        return folder.base
    import fsspec

    root = copied.read_text().strip()
    name = hashlib.blake2b(root.encode(), digest_size=8).hexdigest()
    cached = cache_folder() / f"{name}-media"
    system, path = fsspec.core.url_to_fs(root)
    beside = path.rpartition("/")[0]
    for one in paths:
        target = cached / one
        if target.exists() or not target.resolve().is_relative_to(cached.resolve()):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cached, prefix=".fetching-") as where:
            draft = Path(where) / "file"
            try:
                system.get_file(f"{beside}/{one}", str(draft))
            except Exception as error:  # noqa: BLE001 - file systems raise what they like
                log.info("%s/%s cannot be read: %s", beside, one, first_line(error))
            else:
                draft.replace(target)
    return cached


def _forget(above: Path, used: Path) -> None:
    """Remove old versions; the last ones may still be open somewhere."""
    used.touch()
    versions = sorted(
        (one for one in above.iterdir() if _VERSION.fullmatch(one.name)),
        key=lambda one: one.stat().st_mtime,
    )
    for old in versions[:-KEPT]:
        shutil.rmtree(old)


@dataclass(frozen=True, slots=True)
class _Source:
    """An index folder on a file system."""

    root: str
    system: Any
    path: str

    def manifest(self) -> bytes:
        """Its manifest."""
        try:
            with self._mapped():
                found: bytes = self.system.cat_file(f"{self.path}/manifest.json")
        except FileNotFoundError:
            raise IndexMissingError(
                f"There is no index at {self.root}.", "Copy an index folder there."
            ) from None
        return found

    def bring(self, artifact: Artifact, folder: Path) -> None:
        """Copy an artefact unless it is here already."""
        target = folder / artifact.name
        if target.exists() and artifact_hash(target) == artifact.hash:
            return
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as where:
            draft = Path(where) / artifact.name
            try:
                with self._mapped():
                    self._get(f"{self.path}/{artifact.name}", draft)
            except FileNotFoundError as error:
                raise MismatchError(
                    f"{artifact.name} is missing at {self.root}, but the manifest names it.", _AGAIN
                ) from error
            found = artifact_hash(draft)
            if found != artifact.hash:
                raise MismatchError(
                    f"{artifact.name} at {self.root} has hash {found}, but the manifest says "
                    f"{artifact.hash}.",
                    _AGAIN,
                )
            if target.is_dir():
                shutil.rmtree(target)
            draft.replace(target)

    def _get(self, path: str, draft: Path) -> None:
        if not self.system.isdir(path):
            self.system.get_file(path, str(draft))
            return
        draft.mkdir()
        for one in self.system.ls(path, detail=False):
            self.system.get_file(one, str(draft / Path(one).name))

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:
            raise StoreError(
                f"{self.root} cannot be read: {first_line(error)}.",
                "Check its name, and what may read it.",
            ) from error
