"""What a scan leaves out: thumbnails and bins of systems, downloads in progress, ignore files."""

from __future__ import annotations

import fnmatch
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cart_qdrant.extras import require
from cart_qdrant.media.sniff import MEDIA_EXTENSIONS

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

IGNORE_FILE = ".cartqignore"
"""Name of a file with patterns, in the syntax of gitignore, for its folder and those below."""

_FOLDERS = (
    # Bins, snapshots and thumbnails of Synology, QNAP and other network disks
    *("@eadir", "#recycle", "@recycle", "#snapshot", "@recently-snapshot", "@tmp", "@sharebin"),
    *("$recycle.bin", "recycler", "recycled", "system volume information", "lost+found"),
    *("found.[0-9][0-9][0-9]", "network trash folder", "temporary items", "__macosx"),
    # Previews of Lightroom and Capture One, thumbnails of iPods and of cameras
    *("*.lrdata", "captureone", "ipod photo cache", "thmbnl", "avchdtn"),
    # Nextcloud's previews, bins and versions; Plex's and Jellyfin's copies
    *("appdata_oc*", "files_trashbin", "files_versions", "plex versions", "*.trickplay"),
)
_FILES = (
    *("thumbs.db", "ehthumbs*.db", "desktop.ini", "albumart_{*}_*.jpg", "albumartsmall.jpg"),
    # Thumbnails and small copies that cameras and drones write beside their films
    *("*.thm", "*.lrv", "*.lrf"),
)
_LIBRARIES = ("*.photoslibrary", "*.photolibrary", "*.aplibrary", "*.migratedphotolibrary")
"""Photo libraries of macOS; all in them but `_ORIGINALS` is derived from these."""
_ORIGINALS = frozenset({"originals", "masters"})
_PARTIAL = (
    *("*.part", "*.partial", "*.filepart", "*.part-frag*", "*.crdownload", "*.opdownload"),
    *("*.download", "*.!qb", "*.!ut", "*.!bt", "*.bc!", "*.!sync", "*.xltd", "*.dtapart"),
    *("*.aria2", "*.ytdl", "*.tmp", "~syncthing~*"),
)
_CACHE_TAG = b"Signature: 8a477f597d28d172789f06886806bc55"


def _any_of(patterns: Iterable[str]) -> Callable[[str], re.Match[str] | None]:
    return re.compile("|".join(fnmatch.translate(one) for one in patterns)).match


_is_folder, _is_file = _any_of(_FOLDERS), _any_of(_FILES)
_is_library, _is_partial = _any_of(_LIBRARIES), _any_of(_PARTIAL)


def is_clutter(path: Path, *, folder: bool) -> bool:
    """Whether a file or folder is of a kind that systems keep beside media: thumbnails, bins."""
    name = path.name.lower()
    if _is_library(path.parent.name.lower()):
        return not (folder and name in _ORIGINALS)
    return (_is_folder if folder else _is_file)(name) is not None


def is_cache(folder: Path) -> bool:
    """Whether a folder calls itself a cache (https://bford.info/cachedir/).

    Raises:
        OSError: Its tag cannot be read.
    """
    with (folder / "CACHEDIR.TAG").open("rb") as file:
        return file.read(len(_CACHE_TAG)) == _CACHE_TAG


def finished_name(name: str) -> str | None:
    """The name that a download in progress will have; None where a file is none."""
    if not _is_partial(name.lower()):
        return None
    name = name.removeprefix("~syncthing~")
    return name.rpartition(".")[0] if _is_partial(name.lower()) else name


def is_media_name(name: str) -> bool:
    """Whether a name has the extension of a media file."""
    return Path(name).suffix.lower() in MEDIA_EXTENSIONS


@dataclass(frozen=True, slots=True)
class IgnoreRules:
    """The patterns of one ignore file.

    Attributes:
        folder: The folder that it lies in.
        spec: Its patterns.
        bad: Lines that are no patterns: number from 1, and the reason.
    """

    folder: Path
    spec: GitIgnoreSpec
    bad: tuple[tuple[int, str], ...] = ()

    def verdict(self, path: Path, *, folder: bool) -> bool | None:
        """True where a path is ignored, False where a pattern takes it back, else None."""
        rel = composed(path.relative_to(self.folder).as_posix())
        return self.spec.check_file(f"{rel}/" if folder else rel).include


def read_rules(folder: Path) -> IgnoreRules:
    """Read the ignore file of a folder.

    Raises:
        OSError: It cannot be read.
        MissingExtraError: The package that knows the syntax is not installed.
    """
    require("media", "pathspec")
    from pathspec import GitIgnoreSpec

    good: list[str] = []
    bad: list[tuple[int, str]] = []
    text = (folder / IGNORE_FILE).read_bytes().decode("utf-8-sig", "replace")
    for number, line in enumerate(composed(text).splitlines(), 1):
        try:
            GitIgnoreSpec.from_lines([line])
        except ValueError as error:
            bad.append((number, str(error)))
        else:
            good.append(line)
    return IgnoreRules(folder, GitIgnoreSpec.from_lines(good), tuple(bad))


def composed(name: str) -> str:
    """A name in Unicode NFC: disks keep some names decomposed, patterns are typed composed."""
    return unicodedata.normalize("NFC", name)
