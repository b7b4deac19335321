"""What this user allowed, kept in the user's own configuration.

An index folder may come from others: by a backup, an archive, a shared disk. It cannot allow
itself anything, so what was allowed is kept elsewhere: files outside of the folder of an index that
this user ingested, and servers that an API key was given for.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from cart_qdrant.errors import MismatchError
from cart_qdrant.files import config_folder, write_atomic
from cart_qdrant.index.folder import IndexFolder
from cart_qdrant.media.folder import MediaFolder
from cart_qdrant.media.scan import FileEntry
from cart_qdrant.storage.address import server_address

log = logging.getLogger(__name__)

URL_VARIABLE = "CARTQ_URL"
"""Environment variable with the address of the server that the key in `CARTQ_API_KEY` is for."""


def media_folder(folder: IndexFolder, index: str) -> MediaFolder:
    """The media of an index on this machine.

    Args:
        folder: Folder of the index.
        index: Id of the index.
    """
    try:
        found = json.loads(_media_record(folder).read_bytes())
    except (OSError, ValueError):
        found = {}
    ours = isinstance(found, dict) and found.get("index") == index
    return MediaFolder(folder.base, tuple(map(Path, found["folders"])) if ours else ())


def remember_media(
    folder: IndexFolder, index: str, given: Sequence[Path], entries: Iterable[FileEntry]
) -> None:
    """Note which of the files that this user ingests lie outside of the base of the index.

    Args:
        folder: Folder of the index.
        index: Id of the index.
        given: Files and folders that the user named.
        entries: The files that were found there.
    """
    before = media_folder(folder, index)
    covered = {folder.base.resolve(), *before.also}
    single = {one.absolute() for one in given if not one.is_dir()}
    real = [one.resolve() for one in given]
    parents: dict[Path, None] = {}
    for entry in entries:
        if entry.path in single or entry.path.is_symlink():
            real.append(entry.path.resolve())
        if entry.path not in single:
            parents.setdefault(entry.path.parent)
    real += sorted(one.resolve() for one in parents)
    outside: list[Path] = []
    for path in real:
        if covered.isdisjoint((path, *path.parents)):
            covered.add(path)
            outside.append(path)
    if not outside:
        return
    folders = sorted(map(str, {*before.also, *outside}))
    record = {"index": index, "root": str(folder.root), "folders": folders}
    _write(_media_record(folder), json.dumps(record, indent=1).encode())


def check_key(root: Path, stored: str | None, api_key: str | None, url: str | None) -> None:
    """Refuse to send an API key to a server that an index folder alone names.

    Args:
        root: Folder of the index, for the message.
        stored: Server that the index names; None where it names none.
        api_key: The key, if one is given.
        url: Server that the user names for this call, if any; it is the one that the index names.

    Raises:
        MismatchError: The key was never given for that server.
    """
    if (
        api_key is None
        or stored is None
        or url is not None
        or _key_record(api_key, stored).exists()
    ):
        return
    named = os.environ.get(URL_VARIABLE)
    if named and server_address(named) == stored:
        return
    given = f"{URL_VARIABLE} names {server_address(named)}" if named else "no server was named"
    raise MismatchError(
        f"The index at {root} is on {stored}, but the API key was not given for that server: "
        f"{given}. The key was not sent.",
        f"If the server is yours, name it once: --url {stored} (in Python: url=...), or in "
        f"{URL_VARIABLE}.",
    )


def remember_key(api_key: str | None, url: str | None) -> None:
    """Note that the user gave a key for a server. Only a hash of both is kept."""
    if api_key is not None and url is not None:
        path = _key_record(api_key, server_address(url))
        if not path.exists():
            _write(path, b"")


def _key_record(api_key: str, address: str) -> Path:
    text = f"{address}\n{api_key}".encode("utf-8", "surrogateescape")
    return config_folder() / "keys" / hashlib.blake2b(text, digest_size=16).hexdigest()


def _media_record(folder: IndexFolder) -> Path:
    name = hashlib.blake2b(str(folder.root.resolve()).encode(), digest_size=8).hexdigest()
    return config_folder() / "media" / f"{name}.json"


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomic(path, data)
    except OSError as error:
        log.warning("What this user allowed cannot be kept in %s: %s", path, error.strerror)
