"""Plans what to do for each file, by comparing it with what is stored; writes nothing.

A file whose size, times, inode and captions are as stored is unchanged, and is not opened. Else its
content hash decides whether stored vectors, under this path or another, are used again.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

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
from cart_qdrant.progress import Reporter, Silent
from cart_qdrant.records import Failure
from cart_qdrant.storage.protocol import Store

_KEYS = ["path", "size", "mtime", "ctime", "inode", "hash", "segments", "caption_digest"]
_FIELDS = ("size", "mtime", "ctime", "inode", "hash", "segments", "digest")
"""Attributes of `StoredFile` in the order of these keys, after the path."""
_values_of = itemgetter(*_KEYS)
PAGE = 5_000
"""Points that are looked at together."""
_SAME_TIME = 1e-5
"""Tolerance in seconds: a store may round a float in JSON."""
FALSE_ALARMS = 20
"""Files of a device with another inode and the same content, after which inodes say nothing there:
some file systems number their files anew at each mount."""


@dataclass(slots=True)
class StoredFile:
    """What is stored about one file; a value that differs between its points is None."""

    size: int | None
    mtime: float | None
    ctime: float | None
    inode: int | None
    hash: str | None
    segments: int | None
    digest: str | None
    ids: list[str] = field(default_factory=list)

    def keep_equal(self, values: Sequence[Any]) -> None:
        """Forget what another point of the file says differently: a run that was killed between
        two writes leaves points of both versions."""
        for name, value in zip(_FIELDS, values, strict=True):
            if getattr(self, name) != value:
                setattr(self, name, None)

    @property
    def whole(self) -> bool:
        """Whether all points of the file are stored, and have the same content hash."""
        return self.hash is not None and len(self.ids) == self.segments

    def is_unopened(self, entry: FileEntry) -> bool:
        """Whether size, times and inode are as stored: then the file is not opened."""
        return self.inode == entry.inode and self._is_as_old(entry)

    def is_renumbered(self, entry: FileEntry) -> bool:
        """Whether nothing but the inode differs from what is stored."""
        return self.inode != entry.inode and self._is_as_old(entry)

    def _is_as_old(self, entry: FileEntry) -> bool:
        now = file_state(entry)
        return self.size == entry.size and all(
            one is not None and abs(one - now[name]) < _SAME_TIME
            for name, one in (("mtime", self.mtime), ("ctime", self.ctime))
        )


def file_state(entry: FileEntry) -> dict[str, Any]:
    """What is stored of a file's folder entry; times are seconds since 1970, in microseconds."""
    return {
        "size": entry.size,
        "mtime": round(entry.mtime_ns / 1e9, 6),
        "ctime": round(entry.ctime_ns / 1e9, 6),
        "inode": entry.inode,
    }


def read_stored(store: Store) -> dict[str, StoredFile]:
    """Every stored file by path. Points that the index did not write are left out."""
    out: dict[str, StoredFile] = {}
    for record in store.scroll(with_payload=_KEYS, batch=PAGE):
        try:
            path, *values = _values_of(record.payload or {})
        except KeyError:
            continue
        known = out.get(path)
        if known is None:
            known = out[path] = StoredFile(*values)
        else:
            known.keep_equal(values)
        known.ids.append(str(record.id))
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
        touch: Files of which only times or inode changed.
        renamed: Deleted paths whose content was found under another path.
        removable: Other stored paths under the given folders that are gone or excluded.
        unwanted: Stored files that are no longer media, which are removable, too.
        held_back: Folders of which too much is gone to remove it unasked, with the reason.
        unchanged: Number of unchanged files.
        hashed: Number of files whose content was hashed.
        altered: Files whose content changed while size and times did not.
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
    hashed: int = 0
    altered: list[Failure] = field(default_factory=list)
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
    verify: bool = False,
    reporter: Reporter | None = None,
) -> Plan:
    """Compare files with what is stored.

    Args:
        base: Folder that stored paths are relative to.
        roots: Folders and files that were scanned.
        force: Also what is left alone in doubt may be removed, see `prune`.
        verify: Files that look unchanged are hashed, too.
        reporter: Receives the progress of hashing.
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
        if known is None or not same or (verify and known.whole):
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
    _Sources(plan, stored, verify=verify).find(changed, reporter or Silent())
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


class _Sources:
    """Sorts changed files by whether their content is stored, first under the same path."""

    def __init__(self, plan: Plan, stored: dict[str, StoredFile], *, verify: bool) -> None:
        self.plan = plan
        self.stored = stored
        self.verify = verify
        self.by_hash: dict[str, str] = {}
        self.sizes: set[int | None] = set()
        for rel, one in stored.items():
            if one.whole and one.hash is not None:
                self.by_hash.setdefault(one.hash, rel)
                self.sizes.add(one.size)
        self.false_alarms: Counter[int] = Counter()

    def find(self, changed: Sequence[Job], reporter: Reporter) -> None:
        likely = [job for job in changed if job.entry.size in self.sizes]
        self.plan.fresh += [job for job in changed if job.entry.size not in self.sizes]
        if likely:
            reporter.phase("hash", len(likely))
        for job in likely:
            self._sort(job)
            reporter.advance()

    def _sort(self, job: Job) -> None:
        entry, plan = job.entry, self.plan
        known = self.stored.get(entry.rel)
        digest = self._hash(entry, known)
        if digest is None or digest not in self.by_hash:
            plan.fresh.append(job)
        elif known is None or not known.whole or known.hash != digest:
            plan.copies.append(replace(job, source=self.by_hash[digest], digest=digest))
        elif known.digest != job.captions.digest:
            plan.recaption.append(replace(job, source=entry.rel, digest=digest))
        elif known.is_unopened(entry) or self._renumbers(entry):
            plan.unchanged += 1
        else:
            plan.touch.append(replace(job, source=entry.rel, digest=digest))

    def _hash(self, entry: FileEntry, known: StoredFile | None) -> str | None:
        renumbered = known is not None and known.whole and known.is_renumbered(entry)
        if known is not None and renumbered and self._renumbers(entry) and not self.verify:
            return known.hash
        try:
            digest = content_hash(entry.path)
        except MediaError:
            return None  # the decoder meets the same error and reports it
        self.plan.hashed += 1
        if known is None or not known.whole:
            return digest
        if renumbered:
            self.false_alarms[entry.device] += 1 if digest == known.hash else -FALSE_ALARMS
        if digest != known.hash and known.is_unopened(entry):
            reason = "its content changed, but its size and times did not: is the disk damaged?"
            self.plan.altered.append(Failure(entry.rel, reason))
        return digest

    def _renumbers(self, entry: FileEntry) -> bool:
        """Whether the file system of a file gives it another inode without a reason."""
        return self.false_alarms[entry.device] >= FALSE_ALARMS


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
