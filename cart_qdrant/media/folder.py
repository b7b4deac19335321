"""Which media files of an index may be opened.

The paths of items are data: others write them where an index is attached to a collection, restored
from a backup or kept on a server. So every file of an item is found by `MediaFolder.file`.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cart_qdrant.errors import MediaError

MEDIA_VARIABLE = "CARTQ_MEDIA"
"""Environment variable with further folders whose files may be opened, separated as in PATH."""
_OTHER_SYSTEM = re.compile(r"[A-Za-z]:[\\/]|\\\\")


@dataclass(frozen=True, slots=True)
class MediaFolder:
    """The folder that the paths of items are relative to, and what of other places may be opened.

    Attributes:
        base: The folder. Links are followed, but only to what lies inside.
        also: Other folders and files that may be opened, such as those that this user ingested.
    """

    base: Path
    also: tuple[Path, ...] = ()

    def file(self, name: str) -> Path:
        """The real path of an item's file, with no link in it; it need not exist.

        Args:
            name: The item's path as it is stored.

        Raises:
            MediaError: The path leads out of the folder, or is none. The message shows no folder.
        """
        if not isinstance(name, str) or "\0" in name or _OTHER_SYSTEM.match(name):
            raise MediaError("its path is none of this system.")
        try:
            found = (self.base / name).resolve()
            with suppress(FileNotFoundError, NotADirectoryError):
                found.lstat()
            allowed = {self.base.resolve(), *self.also, *named_folders()}
        except (OSError, ValueError, RuntimeError) as error:  # too long, a circle of links
            raise MediaError("its path cannot be followed.") from error
        if allowed.isdisjoint((found, *found.parents)):
            raise MediaError(
                "its path leads out of the folder of the index, and the file was not ingested by "
                "this user.",
                f"If its folder may be read, name that in {MEDIA_VARIABLE}.",
            )
        return found


def named_folders() -> list[Path]:
    """The folders that `CARTQ_MEDIA` names."""
    named = os.environ.get(MEDIA_VARIABLE, "")
    return [Path(one).resolve() for one in named.split(os.pathsep) if one]
