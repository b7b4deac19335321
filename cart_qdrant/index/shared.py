"""Index folders that are elsewhere: `s3://bucket/photos/.cartq`, or any URL that fsspec opens.

What the manifest names is copied into a cache, once for each version, and checked by its hash. The
copy is for reading: its points are on a server, and it is written where the original is.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from cart_qdrant.errors import IndexMissingError, MismatchError, UsageError
from cart_qdrant.persistence import (
    COPIED,
    Artifact,
    IndexFolder,
    Manifest,
    file_hash,
    folder_hash,
)

CACHE_VARIABLE = "CARTQ_CACHE"
"""Folder of copies; that of the user's cache without it."""


_AGAIN = "Copy the index folder there again, its manifest.json last."


def is_url(root: str) -> bool:
    """Whether an index is named by a URL, and not by a folder."""
    return "://" in root


def cache_folder() -> Path:
    """Where copies lie."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cart-qdrant"


def local_folder(root: str) -> Path:
    """A folder with the index at `root`: itself, or a copy that is brought up to date.

    Raises:
        UsageError: No file system is known for the URL, or the index is embedded.
        IndexMissingError: There is no index.
        MismatchError: A file is not what the manifest says.
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
    try:
        data = system.cat_file(f"{path}/manifest.json")
    except FileNotFoundError:
        raise IndexMissingError(
            f"There is no index at {root}.", "Copy an index folder there, without its work/."
        ) from None
    manifest = _parsed(data, root)
    if manifest.store.kind == "edge":
        raise UsageError(
            f"The index at {root} holds its points itself, in the embedded store.",
            "Move them to a server first: `cartq migrate --to URL`.",
        )
    name = hashlib.blake2b(root.encode(), digest_size=8).hexdigest()
    folder = IndexFolder(cache_folder() / name)
    folder.root.mkdir(parents=True, exist_ok=True)
    (folder.root / COPIED).write_text(root + "\n")
    for artifact in manifest.artifacts():
        _bring(system, path, artifact, folder.root)
    folder.write(manifest)
    return folder.root


def _parsed(data: bytes, root: str) -> Manifest:
    try:
        return Manifest.from_json(json.loads(data))
    except (ValueError, KeyError, TypeError) as error:
        raise MismatchError(f"{root}/manifest.json is no manifest: {error}.") from error


def _bring(system: Any, path: str, artifact: Artifact, root: Path) -> None:
    """Copy an artefact unless it is here already."""
    target = root / artifact.name
    if target.exists() and _hash(target) == artifact.hash:
        return
    with tempfile.TemporaryDirectory(dir=root, prefix=".fetching-") as where:
        draft = Path(where) / artifact.name
        try:
            if system.isdir(f"{path}/{artifact.name}"):
                draft.mkdir()
                for one in system.ls(f"{path}/{artifact.name}", detail=False):
                    system.get_file(one, str(draft / Path(one).name))
            else:
                system.get_file(f"{path}/{artifact.name}", str(draft))
        except FileNotFoundError as error:
            raise MismatchError(
                f"{artifact.name} is missing at {path}, but the manifest names it.", _AGAIN
            ) from error
        found = _hash(draft)
        if found != artifact.hash:
            raise MismatchError(
                f"{artifact.name} at {path} has hash {found}, but the manifest says "
                f"{artifact.hash}.",
                _AGAIN,
            )
        if target.is_dir():
            shutil.rmtree(target)
        draft.replace(target)


def _hash(path: Path) -> str:
    return folder_hash(path) if path.is_dir() else file_hash(path)
