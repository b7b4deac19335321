"""Model files: their folder, their download, and whether the Hugging Face hub can be reached."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cart_qdrant.errors import DownloadError
from cart_qdrant.files import rename_durably, user_cache_folder

MODELS_VARIABLE = "CARTQ_MODELS"
"""Environment variable that names the folder of downloaded models."""


def models_folder() -> Path:
    """Folder of downloaded models.

    It is `$CARTQ_MODELS` where that is set, else `cart-qdrant/models` in the user's cache folder.
    """
    given = os.environ.get(MODELS_VARIABLE)
    return Path(given) if given else user_cache_folder() / "models"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file on a server.

    Attributes:
        url: Address of the file.
        sha256: SHA-256 of its content, in hexadecimal digits.
        bytes: Size of the file.
    """

    url: str
    sha256: str
    bytes: int


def hub_answers(seconds: float = 5.0) -> bool:
    """Whether the Hugging Face hub answers within `seconds`.

    This is asked before a model is loaded by name, since the libraries would retry for minutes.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return False
    import httpx

    url = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        httpx.head(url, timeout=seconds)
    except (httpx.HTTPError, httpx.InvalidURL):
        return False
    return True


def only_local(model: str) -> bool:
    """Whether to load `model` without the hub: it is a folder, or the hub does not answer."""
    return Path(model).is_dir() or not hub_answers()


def download(remote: RemoteFile, path: Path, advance: Callable[[int], None]) -> None:
    """Download a file, resuming where an earlier call ended, and check its SHA-256.

    Args:
        remote: The file to download.
        path: Where to write it; until it is complete, its name ends in `.part`.
        advance: Receives the number of bytes that have just become available.

    Raises:
        DownloadError: The server does not answer, or size or hash differ from `remote`.
    """
    import httpx

    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    there = part.stat().st_size if part.exists() else 0
    if there > remote.bytes:
        part.unlink()
        there = 0
    if there < remote.bytes:
        headers = {"Accept-Encoding": "identity"}
        if there:
            headers["Range"] = f"bytes={there}-"
        timeout = httpx.Timeout(30.0)
        try:
            with httpx.stream(
                "GET", remote.url, headers=headers, timeout=timeout, follow_redirects=True
            ) as response:
                if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                    part.unlink()  # the server's file is shorter than ours
                response.raise_for_status()
                resumed = there and response.status_code == httpx.codes.PARTIAL_CONTENT
                with part.open("ab" if resumed else "wb") as file:
                    advance(there if resumed else 0)
                    for block in response.iter_raw():
                        file.write(block)
                        advance(len(block))
        except (httpx.HTTPError, OSError) as error:
            raise DownloadError(
                f"{remote.url} could not be fetched whole: {error or type(error).__name__}.",
                "Run the command again: it goes on where it stopped. Or fetch it elsewhere, and "
                "name the file by --file.",
            ) from error
    else:
        advance(there)
    if (size := part.stat().st_size) < remote.bytes:
        raise DownloadError(
            f"{remote.url} ended after {size:,} of {remote.bytes:,} bytes.",
            "Run the command again: it goes on where it stopped.",
        )
    found = file_sha256(part)
    if found != remote.sha256:
        part.unlink()
        raise DownloadError(
            f"{remote.url} has the SHA-256 {found} ({size:,} bytes), not {remote.sha256} "
            f"({remote.bytes:,} bytes).",
            "Run the command again; if it stays so, the file on the server has changed.",
        )
    rename_durably(part, path)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
