"""Which stored files are gone or no longer taken, and which of them are left alone in doubt.

A disk that is not mounted leaves an empty folder: what was stored of it must not go with it.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cart_qdrant.media.path_match import is_under
from cart_qdrant.media.scan import Scan, absolute, relative_name
from cart_qdrant.records import Failure

HANDFUL = 5
"""Files that may be removed whatever share of the stored ones they are."""
SHARE = 0.5
"""Share of the files stored under a given folder, of which no more are removed without force."""
_REMEDY = "is a disk not mounted? --force removes them"


@dataclass(slots=True)
class Missing:
    """Stored files under the given folders that a scan did not list.

    Attributes:
        gone: Paths of files that no longer exist.
        excluded: Paths of files that exist, but are excluded or ignored now.
        held_back: Folders whose files are left alone in doubt, with the reason.
    """

    gone: set[str] = field(default_factory=set)
    excluded: set[str] = field(default_factory=set)
    held_back: list[Failure] = field(default_factory=list)


def is_gone(path: Path) -> bool:
    """Whether there is surely no file at a path: its folder can be read, and it is not there."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


class Folders:
    """Answers whether the files of folders may be away with their disk; each folder is read once.

    Args:
        base: Folder that stored paths are relative to.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self._nearest: dict[Path, Path] = {}
        self._empty: dict[Path, bool] = {}

    def nearest(self, rel: str) -> Path:
        """The nearest folder above a stored path that exists."""
        parent = absolute(self.base / rel).parent
        if parent not in self._nearest:
            above = parent
            while is_gone(above) and above != above.parent:
                above = above.parent
            self._nearest[parent] = above
        return self._nearest[parent]

    def is_moved(self, rel: str) -> bool:
        """Whether a stored file is gone, while the folder it was in, or one above it, is in use."""
        return is_gone(self.base / rel) and not self.is_away(rel)

    def is_away(self, rel: str) -> bool:
        """Whether the folder in which a missing file was is empty, or cannot be read."""
        folder = self.nearest(rel)
        if folder not in self._empty:
            try:
                with os.scandir(folder) as found:
                    self._empty[folder] = next(iter(found), None) is None
            except OSError:
                self._empty[folder] = True
        return self._empty[folder]


def find_missing(
    found: Scan, stored: Iterable[str], *, base: Path, roots: Sequence[Path]
) -> Missing:
    """Stored paths under `roots` that the scan did not list.

    Paths in folders that could not be read, and those that the scan left for another run, are in
    neither set: they may still be there.
    """
    here = {entry.rel for entry in found.entries}
    unread = {absolute(base / failure.path) for failure in (*found.failures, *found.skipped)}
    given, tops = {absolute(root) for root in roots}, _tops(roots)
    out = Missing()
    for rel in set(stored) - here:
        path = absolute(base / rel)
        above = {path, *path.parents}
        if above.isdisjoint(tops) or not above.isdisjoint(unread):
            continue
        if is_gone(path):
            out.gone.add(rel)
        elif not above.isdisjoint(given):  # by a link's target, it was listed under another name
            out.excluded.add(rel)
    return out


def hold_back_away(missing: Missing, found: Scan, folders: Folders, roots: Sequence[Path]) -> None:
    """Take the files of folders that are empty now out of `missing.gone`.

    A given folder counts where nothing was found in it; another one where it is empty and more
    than a `HANDFUL` of files were stored of it.
    """
    listed = [str(entry.path) for entry in found.entries]
    tops = [(root, str(absolute(root))) for root in roots]
    vacant = _tops([r for r, top in tops if not any(is_under(path, top) for path in listed)])
    by_folder: dict[Path, set[str]] = defaultdict(set)
    for rel in missing.gone:
        nearest = folders.nearest(rel)
        given = next((top for top in (nearest, *nearest.parents) if top in vacant), None)
        if given is not None:
            by_folder[given].add(rel)
        elif folders.is_away(rel):
            by_folder[nearest].add(rel)
    for folder, rels in sorted(by_folder.items()):
        if folder in vacant or len(rels) > HANDFUL:
            missing.gone -= rels
            missing.held_back.append(
                Failure(
                    relative_name(folder, folders.base),
                    f"nothing is found in it, but {_files(len(rels))} stored under it: "
                    f"not removed; {_REMEDY}",
                )
            )


def hold_back_most(
    missing: Missing, stored: Iterable[str], *, base: Path, roots: Sequence[Path]
) -> None:
    """Empty both sets of `missing` under each given folder of which most files would be removed."""
    for top in sorted(_tops(roots)):
        removed = set(_below(missing.gone | missing.excluded, base, top))
        if len(removed) <= HANDFUL:
            continue
        kept = sum(1 for _ in _below(stored, base, top))
        if len(removed) <= SHARE * kept:
            continue
        gone = len(removed & missing.gone)
        missing.gone -= removed
        missing.excluded -= removed
        missing.held_back.append(
            Failure(
                relative_name(top, base),
                f"of {_files(kept)} stored under it, {gone} are gone and "
                f"{len(removed) - gone} excluded: not removed; {_REMEDY}",
            )
        )


def _tops(roots: Sequence[Path]) -> set[Path]:
    return {absolute(root) for root in roots} | {Path(root).resolve() for root in roots}


def _below(rels: Iterable[str], base: Path, top: Path) -> Iterable[str]:
    """The stored paths at and under a folder."""
    return (rel for rel in rels if is_under(os.path.normpath(f"{base}/{rel}"), str(top)))


def _files(count: int) -> str:
    return f"{count} file was" if count == 1 else f"{count} files were"
