"""Writes files as a whole, so that they survive a power cut; hashes them; names the cache."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cart_qdrant.errors import MismatchError, first_line

_RUST_ERROR = re.compile(r"\(os error (\d+)\)")
CACHE_VARIABLE = "CARTQ_CACHE"
"""Environment variable that names the folder of files that can be made or fetched again."""
CONFIG_VARIABLE = "CARTQ_CONFIG"
"""Environment variable that names the folder of what the user allowed."""


def file_hash(path: Path) -> str:
    """blake2b hash (16 bytes, in hex) of a file's content."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_atomic(path: Path, data: bytes, drafts: Path | None = None) -> None:
    """Replace a file's content: a reader sees the old or the new one, also after a power cut.

    Args:
        drafts: Folder on the same disk where the new content is written first; None takes the
            folder of `path`.
    """
    draft = draft_path(path.parent if drafts is None else drafts, path.name)
    with draft.open("wb") as file:
        file.write(data)
    rename_durably(draft, path)


def draft_path(folder: Path, name: str) -> Path:
    """A path for a file that is yet to be written; its folder is made."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"draft-{uuid.uuid4().hex[:8]}-{name}"


def rename_durably(source: Path, target: Path) -> None:
    """Rename a finished file, or a folder of files; its content and its new name survive a power
    cut. A file of the new name is replaced."""
    synchronise(source)
    source.replace(target)
    _synchronise(target.parent)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, so that their names survive a power cut."""
    missing = [one for one in (path, *path.parents) if not one.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for one in reversed(missing):
        _synchronise(one.parent)


def synchronise(path: Path) -> None:
    """Return when the content of a file, or of all that is in a folder, survives a power cut."""
    if path.is_dir():
        for one in path.rglob("*"):
            _synchronise(one)
    _synchronise(path)


def _synchronise(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_arrays(
    path: Path, arrays: Mapping[str, npt.NDArray[Any]], drafts: Path | None = None
) -> str:
    """Write arrays to a safetensors file as `write_atomic` does, and give the file's hash."""
    from safetensors.numpy import save

    write_atomic(path, save({k: np.ascontiguousarray(v) for k, v in arrays.items()}), drafts)
    return file_hash(path)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise the errors of libraries in Rust about a disk, such as a full one, as `OSError`.

    Args:
        path: What is written, for the message.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if (found := _RUST_ERROR.search(str(error))) is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def load_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read all arrays of a safetensors file into memory, by name.

    Raises:
        MismatchError: The file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise MismatchError(
            f"{path} is damaged: {first_line(error)}.", "Repair the index: `cartq doctor --fix`."
        ) from error


def artifact_hash(path: Path) -> str:
    """Hash of a file, or of all files of a folder."""
    return folder_hash(path) if path.is_dir() else file_hash(path)


def folder_hash(folder: Path) -> str:
    """blake2b hash (16 bytes, in hex) over the names and hashes of a folder's files."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.iterdir()):
        digest.update(f"{path.name}\0{file_hash(path)}\n".encode())
    return digest.hexdigest()


def cache_folder() -> Path:
    """Folder of files that can be made again: `$CARTQ_CACHE`, else `user_cache_folder()`."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else user_cache_folder()


def user_cache_folder() -> Path:
    """The package's folder in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cart-qdrant"


def config_folder() -> Path:
    """The package's folder in the user's configuration: `$CARTQ_CONFIG`, else
    `~/.config/cart-qdrant`. It holds what this user allowed, which no index folder may say."""
    named = os.environ.get(CONFIG_VARIABLE)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "cart-qdrant"
