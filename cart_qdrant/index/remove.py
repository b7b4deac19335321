"""Takes files out of an index: their points, and with them their identifiers. The files stay."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from cart_qdrant.errors import UsageError
from cart_qdrant.index.identify import remove_stale, summary, update_identifiers
from cart_qdrant.index.index import Index
from cart_qdrant.index.plan import StoredFile, read_stored
from cart_qdrant.index.writer import PointWriter
from cart_qdrant.media.path_match import is_under, path_key
from cart_qdrant.media.scan import relative_name
from cart_qdrant.records import Failure

_WILD = frozenset("*?[")


@dataclass(slots=True)
class Chosen:
    """Stored files that were named for removal.

    Attributes:
        files: What is stored of each, by path.
        failed: Names that fit no stored file.
    """

    files: dict[str, StoredFile] = field(default_factory=dict)
    failed: list[Failure] = field(default_factory=list)

    @property
    def ids(self) -> list[str]:
        """Their points."""
        return [one for file in self.files.values() for one in file.ids]


@dataclass(slots=True)
class RemoveReport:
    """What was removed, or would be in a dry run; `to_json` is the `--json` contract.

    Attributes:
        paths: Files whose points were removed.
        segments: Number of these points.
        failed: Names that fit no stored file.
        dry_run: Whether nothing was removed.
    """

    paths: list[str]
    segments: int
    failed: list[Failure]
    dry_run: bool = False
    identifiers: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object; a dry run has `would_remove` in place of `paths`."""
        return {
            "removed": 0 if self.dry_run else len(self.paths),
            "segments": 0 if self.dry_run else self.segments,
            "would_remove" if self.dry_run else "paths": self.paths,
            "failed": [failure.to_json() for failure in self.failed],
            "identifiers": self.identifiers,
            "seconds": round(self.seconds, 3),
        }


def choose(index: Index, names: Sequence[str]) -> Chosen:
    """The stored files that names fit; nothing is written.

    Args:
        index: Open index.
        names: Files and folders, seen from the current folder or as stored, whether they still
            exist or not; and patterns (`*`, `?`, `[...]`; `*` also matches `/`), which may fit the
            name of a file or its path.

    Raises:
        UsageError: The collection is filled by others, no name was given, or a name fits one file
            as it is stored and another one seen from the current folder.
    """
    if index.attachment is not None:
        raise UsageError(
            f"The collection at {index.store.location} is filled by others.",
            "Delete the points there, then run `cartq sync`.",
        )
    if not names:
        raise UsageError("Nothing to remove: no path was given.", "cartq rm PATH")
    stored = read_stored(index.store)
    base = index.folder.base
    places = {rel: _place(base, rel) for rel in stored}
    chosen = Chosen()
    for name in names:
        found = _fitting(name, places, base)
        if not found:
            reason = "no stored file has this path, is under it, or fits it as a pattern"
            chosen.failed.append(Failure(name, reason))
        chosen.files |= {rel: stored[rel] for rel in sorted(found)}
    return chosen


def remove(index: Index, chosen: Chosen) -> RemoveReport:
    """Remove points of chosen files and update identifiers, prefix tree and item table.

    The caller holds `index.folder.lock()`. A run that is killed leaves points that were not removed
    yet as they are, and the next run of `cartq rm` or `cartq ingest` updates the identifiers.
    """
    begin = time.perf_counter()
    report = RemoveReport(sorted(chosen.files), len(chosen.ids), chosen.failed)
    writer = PointWriter(index)
    writer.recover()
    if chosen.files:
        remove_stale(index)
        writer.remove(chosen.ids)
    if writer.changed and index.manifest.identifiers is not None:
        update_identifiers(index)
    info = index.manifest.identifiers
    report.identifiers = {} if info is None else summary(info)
    report.seconds = time.perf_counter() - begin
    return report


def still_there(index: Index, paths: Iterable[str]) -> list[str]:
    """Those of the stored paths that the next ingest of their folder would take again."""
    return [rel for rel in paths if os.path.lexists(index.folder.base / rel)]


def _place(base: Path, rel: str) -> str:
    """The absolute path of a file, in normal form."""
    return path_key(f"{base.as_posix()}/{rel}")


def _fitting(name: str, places: Mapping[str, str], base: Path) -> set[str]:
    """Paths of the stored files that a name fits."""
    seen_from_here = _below(_place(base, relative_name(Path(name), base)), places)
    as_stored = _below(_place(base, name), places)
    if seen_from_here and as_stored and seen_from_here != as_stored:
        raise UsageError(
            f"{name!r} fits {min(as_stored)} as it is stored, and {min(seen_from_here)} seen from "
            "the current folder.",
            "Give the absolute path.",
        )
    found = seen_from_here or as_stored
    if found or _WILD.isdisjoint(name):
        return found
    pattern, anywhere = path_key(str(Path(name).absolute())), path_key(name)
    return {
        rel
        for rel, place in places.items()
        if fnmatchcase(place, pattern)
        or fnmatchcase(path_key(rel), anywhere)
        or fnmatchcase(PurePosixPath(place).name, anywhere)
    }


def _below(place: str, places: Mapping[str, str]) -> set[str]:
    """Paths of the stored files that are at a place or under it."""
    return {rel for rel, one in places.items() if is_under(one, place)}
