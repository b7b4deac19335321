"""Opens index folders on other file systems: `s3://bucket/photos/.cartq`, or any URL of fsspec.

The files that the manifest names are copied into a cache, once for each version, and checked by
their hashes. The copy is read-only: its points are on a server, and writers use the original.
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
    MediaError,
    MismatchError,
    StoreError,
    UsageError,
    first_line,
    hide_password,
)
from cart_qdrant.extras import require
from cart_qdrant.files import artifact_hash, cache_folder, rename_durably, write_atomic
from cart_qdrant.index.consent import media_folder
from cart_qdrant.index.folder import COPIED, IndexFolder
from cart_qdrant.index.manifest import Artifact, Manifest
from cart_qdrant.media.folder import MediaFolder

log = logging.getLogger(__name__)

KEPT = 3
"""Versions of one index that are kept in the cache."""
_VERSION = re.compile("[0-9a-f]{16}")
_AGAIN = "Copy the index folder there again, its manifest.json last."


def is_url(root: str) -> bool:
    """Whether `root` is a URL instead of the path of a folder."""
    return "://" in root


def local_folder(root: str) -> Path:
    """The folder of the index at `root`: `root` itself, or for a URL a copy of the latest version.

    Raises:
        UsageError: No file system is installed for the URL, it holds a password, or the store of
            the index is embedded.
        IndexMissingError: There is no index.
        MismatchError: A file is missing, or its hash differs from the manifest's.
        StoreError: The file system cannot be read.
    """
    if not is_url(root):
        return Path(root)
    if hide_password(root) != root:
        raise UsageError(
            f"The address {hide_password(root)} holds a password, which would be stored and "
            "printed with it.",
            "Leave it out, and configure it for fsspec: ~/.config/fsspec.",
        )
    require("remote", "fsspec")
    import fsspec

    root = root.rstrip("/")
    try:
        system, path = fsspec.core.url_to_fs(root)
    except (ValueError, ImportError) as error:
        raise UsageError(
            f"{root} cannot be opened: {error}", "Install the fsspec package for this kind of URL."
        ) from error
    source = _Source(root, system, path)
    data = source.manifest()
    manifest = Manifest.from_bytes(data, f"{root}/manifest.json")
    if manifest.store.kind == "edge":
        raise UsageError(
            f"The index at {root} keeps its points in the embedded store.",
            "Move them to a server first: `cartq migrate --to URL`.",
        )
    # A folder for each version: an open index may still read files of an earlier one.
    name, version = (hashlib.blake2b(x, digest_size=8).hexdigest() for x in (root.encode(), data))
    above = cache_folder() / name
    folder = IndexFolder(above / version)
    folder.root.mkdir(parents=True, exist_ok=True)
    with (above / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        write_atomic(folder.root / COPIED, f"{root}\n".encode())
        for artifact in manifest.artifacts():
            source.bring(artifact, folder.root)
        write_atomic(folder.manifest, data)
        _forget(above, folder.root)
    return folder.root


def fetch_media(folder: IndexFolder, index: str, paths: Iterable[str]) -> MediaFolder:
    """A local folder with media files of an index.

    Args:
        folder: The folder of the index. If it is a copy that `local_folder` made, the media files
            are fetched from beside the original into the user's cache; files that are missing,
            unreadable, or lie elsewhere are left out.
        index: Id of the index.
        paths: The wanted files, relative to the base of the index.
    """
    copied = folder.root / COPIED
    # An index folder of others may hold such a file, too: it says nothing outside of the cache.
    if not copied.exists() or not folder.root.resolve().is_relative_to(cache_folder().resolve()):
        return media_folder(folder, index)
    require("remote", "fsspec")
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    root = copied.read_text().strip()
    name = hashlib.blake2b(root.encode(), digest_size=8).hexdigest()
    cached = cache_folder() / f"{name}-media"
    system, path = fsspec.core.url_to_fs(root)
    beside = path.rpartition("/")[0]
    media = MediaFolder(cached)
    for one in paths:
        try:
            target = media.file(one)
            if isinstance(system, LocalFileSystem):
                MediaFolder(Path(beside)).file(one)  # links of that folder lead nowhere else, too
        except MediaError as error:
            log.info("%r is not fetched: %s", one, error)
            continue
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cached, prefix=".fetching-") as where:
            draft = Path(where) / "file"
            try:
                system.get_file(f"{beside}/{one}", str(draft))
            except Exception as error:  # noqa: BLE001 - file systems raise what they like
                log.info("%s/%s cannot be read: %s", beside, one, first_line(error))
            else:
                rename_durably(draft, target)
    return media


def _forget(above: Path, used: Path) -> None:
    """Remove all but the last `KEPT` versions, which may still be open."""
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
        """Content of the manifest."""
        try:
            with self._mapped():
                found: bytes = self.system.cat_file(f"{self.path}/manifest.json")
        except FileNotFoundError:
            raise IndexMissingError(
                f"There is no index at {self.root}.", "Copy an index folder there."
            ) from None
        return found

    def bring(self, artifact: Artifact, folder: Path) -> None:
        """Copy a file or folder that the manifest names, unless it is here already."""
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
            rename_durably(draft, target)

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
                "Check the URL and its access rights.",
            ) from error
