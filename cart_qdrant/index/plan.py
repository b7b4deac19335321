"""Plans what to do for each file, by comparing it with what is stored; writes nothing.

A file whose size, modification time and captions are as stored is unchanged, and is not opened.
Else its content hash decides whether stored vectors, under this path or another, are used again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cart_qdrant.captions.reader import CaptionReader, FileCaptions
from cart_qdrant.errors import MediaError
from cart_qdrant.index.prune import (
    Folders,
    find_missing,
    hold_back_away,
    hold_back_most,
)
from cart_qdrant.media.scan import FileEntry, Scan, content_hash
from cart_qdrant.media.segments import MEDIA_EXTENSIONS, sniff
from cart_qdrant.records import Failure
from cart_qdrant.storage.protocol import Store

_KEYS = ["path", "size", "mtime", "hash", "segments", "caption_digest"]
_SAME_TIME = 1e-5
"""Tolerance in seconds: a store may round a float in JSON."""


@dataclass(slots=True)
class StoredFile:
    """What is stored about one file; a value that differs between its points is None."""

    size: int | None
    mtime: float | None
    hash: str | None
    segments: int | None
    digest: str | None
    ids: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether all points of the file are stored, and have the same content hash."""
        return self.hash is not None and len(self.ids) == self.segments

    def is_unopened(self, entry: FileEntry) -> bool:
        """Whether size and modification time are as stored: then the file is not opened."""
        if self.size is None or self.mtime is None:
            return False
        return self.size == entry.size and abs(self.mtime - modified(entry)) < _SAME_TIME


def modified(entry: FileEntry) -> float:
    """Modification time as it is stored: seconds since 1970, in whole microseconds."""
    return round(entry.mtime_ns / 1e9, 6)


def read_stored(store: Store) -> dict[str, StoredFile]:
    """Every stored file by path. Points that the index did not write are left out."""
    out: dict[str, StoredFile] = {}
    for record in store.scroll(with_payload=_KEYS):
        data = record.payload or {}
        if any(key not in data for key in _KEYS):
            continue
        one = StoredFile(*(data[key] for key in _KEYS[1:]))
        known = out.setdefault(data["path"], one)
        known.ids.append(str(record.id))
        # A run that was killed between two writes leaves points of both versions.
        for name in ("size", "mtime", "hash", "segments", "digest"):
            if getattr(known, name) != getattr(one, name):
                setattr(known, name, None)
    return out


@dataclass(frozen=True, slots=True)
class Job:
    """One file that needs work.

    Attributes:
        entry: The file.
        captions: Captions and columns from outside the file.
        replaces: Points that are removed once the file is stored, unless they are overwritten.
        source: Stored file with the same content; None where the file must be embedded.
        digest: Content hash, where `source` is given.
    """

    entry: FileEntry
    captions: FileCaptions
    replaces: tuple[str, ...] = ()
    source: str | None = None
    digest: str = ""


@dataclass(slots=True)
class Plan:
    """The work of a run.

    Attributes:
        fresh: Files to decode and embed.
        copies: Files whose content is stored under another path; those of one source together.
        recaption: Files whose content is stored, but whose captions or columns changed.
        touch: Files of which only the modification time changed.
        renamed: Deleted paths whose content was found under another path.
        removable: Other stored paths under the given folders that are gone or excluded.
        unwanted: Stored files that are no longer media, which are removable, too.
        held_back: Folders of which too much is gone to remove it unasked, with the reason.
        unchanged: Number of unchanged files.
        files: Number of media files.
        failures: Files and folders that cannot be read.
    """

    fresh: list[Job] = field(default_factory=list)
    copies: list[Job] = field(default_factory=list)
    recaption: list[Job] = field(default_factory=list)
    touch: list[Job] = field(default_factory=list)
    renamed: list[str] = field(default_factory=list)
    removable: list[str] = field(default_factory=list)
    unwanted: list[Failure] = field(default_factory=list)
    held_back: list[Failure] = field(default_factory=list)
    unchanged: int = 0
    files: int = 0
    failures: list[Failure] = field(default_factory=list)


def make_plan(
    found: Scan,
    stored: dict[str, StoredFile],
    reader: CaptionReader,
    *,
    base: Path,
    roots: Sequence[Path],
    use_captions: bool = True,
    force: bool = False,
) -> Plan:
    """Compare files with what is stored.

    Args:
        base: Folder that stored paths are relative to.
        roots: Folders and files that were scanned.
        force: Also what is left alone in doubt may be removed, see `prune`.
    """
    plan = Plan()
    changed: list[Job] = []
    for entry in found.entries:
        if reader.is_sidecar(entry.path):
            continue
        known = stored.get(entry.rel)
        same = known is not None and known.whole and known.is_unopened(entry)
        if not same and not _is_media(entry, plan.failures):
            if known is not None:
                reason = "it is no media any more; --prune removes what is stored of it"
                plan.unwanted.append(Failure(entry.rel, reason))
            continue
        plan.files += 1
        captions = _captions(reader, entry, use_captions)
        job = Job(entry, captions, tuple(known.ids) if known else ())
        if known is None or not same:
            changed.append(job)
        elif known.digest != captions.digest:
            plan.recaption.append(replace(job, source=entry.rel, digest=known.hash or ""))
        else:
            plan.unchanged += 1
    folders = Folders(base)
    missing = find_missing(found, stored, base=base, roots=roots)
    missing.excluded |= {failure.path for failure in plan.unwanted}
    if not force:
        hold_back_away(missing, found, folders, roots)
    _find_sources(plan, changed, stored)
    _find_renamed(plan, stored, missing.gone, folders)
    missing.gone -= set(plan.renamed)
    if not force:
        hold_back_most(missing, stored, base=base, roots=roots)
    plan.removable = sorted(missing.gone | missing.excluded)
    plan.held_back = missing.held_back
    return plan


def _captions(reader: CaptionReader, entry: FileEntry, use: bool) -> FileCaptions:
    found = reader.read(entry.path, entry.rel)
    if use:
        return found
    columns = json.dumps(found.meta, sort_keys=True).encode()
    return FileCaptions((), found.meta, "-" + hashlib.blake2b(columns, digest_size=15).hexdigest())


def _is_media(entry: FileEntry, failures: list[Failure]) -> bool:
    """Whether the file is media by its content or its extension. If the extension is wrong, the
    decoder reports it."""
    if entry.path.suffix.lower() in MEDIA_EXTENSIONS:
        return True
    try:
        return sniff(entry.path) is not None
    except (OSError, MediaError) as error:
        failures.append(Failure(entry.rel, getattr(error, "strerror", None) or str(error)))
        return False


def _find_sources(plan: Plan, changed: Sequence[Job], stored: dict[str, StoredFile]) -> None:
    """Sort changed files by whether their content is stored, first under the same path."""
    by_hash: dict[str, str] = {}
    sizes: set[int | None] = set()
    for rel, one in stored.items():
        if one.whole and one.hash is not None:
            by_hash.setdefault(one.hash, rel)
            sizes.add(one.size)
    for job in changed:
        rel = job.entry.rel
        digest = _hash(job.entry) if job.entry.size in sizes else None
        if digest is None or digest not in by_hash:
            plan.fresh.append(job)
            continue
        known = stored.get(rel)
        if known is None or not known.whole or known.hash != digest:
            plan.copies.append(replace(job, source=by_hash[digest], digest=digest))
        elif known.digest == job.captions.digest:
            plan.touch.append(replace(job, source=rel, digest=digest))
        else:
            plan.recaption.append(replace(job, source=rel, digest=digest))


def _hash(entry: FileEntry) -> str | None:
    try:
        return content_hash(entry.path)
    except MediaError:
        return None  # the decoder meets the same error and reports it


def _find_renamed(
    plan: Plan, stored: dict[str, StoredFile], gone: set[str], folders: Folders
) -> None:
    """Let the last copy of a source that is gone replace the points of the source.

    A source elsewhere than under the given folders may be away with its disk: then it stays.
    """
    plan.copies.sort(key=lambda job: (job.source or "", job.entry.rel))
    for n, job in enumerate(plan.copies):
        source = job.source
        assert source is not None
        last = n + 1 == len(plan.copies) or plan.copies[n + 1].source != source
        if last and (source in gone or folders.is_moved(source)):
            plan.copies[n] = replace(job, replaces=(*job.replaces, *stored[source].ids))
            plan.renamed.append(source)
