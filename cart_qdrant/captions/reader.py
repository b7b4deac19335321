"""Collects the captions of a media file from files beside it, without opening the media.

The sources, best first: an explicit table (`--captions FILE`), `metadata.jsonl` and
`metadata.csv` in the file's folder or a parent up to the ingest root, `NAME.txt`, `NAME.json`,
`NAME.srt` / `NAME.vtt`, and as a weak guess the words of the file's name. Tags of the container are
read with the media, by `from_tags` and `merge_captions`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from cart_qdrant.captions.explicit import ExplicitTable
from cart_qdrant.captions.sidecars import SUFFIXES, Folder, list_folder, read_sidecar
from cart_qdrant.captions.tables import JSON, RESERVED, Problem, Row, Table, read_table
from cart_qdrant.captions.text import (
    MAX_CHARS,
    filename_words,
    from_tags,
    make_captions,
    merge_captions,
)
from cart_qdrant.errors import CaptionError, UsageError
from cart_qdrant.media.path_match import relative_key
from cart_qdrant.records import Caption, CaptionSource, Failure, text_key

__all__ = [
    "JSON",
    "MAX_CHARS",
    "RESERVED",
    "CaptionReader",
    "FileCaptions",
    "filename_words",
    "from_tags",
    "merge_captions",
    "segment_captions",
]

MAX_PROBLEMS = 20
"""Failures that are reported of one caption file; one more tells the number of the others."""
EXPLICIT_SUFFIXES = (".jsonl", ".csv", ".json")


@dataclass(frozen=True, slots=True)
class FileCaptions:
    """Captions and metadata of a file, known without opening it.

    Attributes:
        captions: Best source first, each text once, at most `MAX_CHARS` characters each.
        meta: Other columns; names in `RESERVED` are prefixed with `meta_`.
        digest: BLAKE2b of both, 32 hexadecimal digits; it changes when a caption file does.
    """

    captions: tuple[Caption, ...]
    meta: dict[str, JSON]
    digest: str


class CaptionReader:
    """Reads the captions of many files; each folder and each table is read once.

    Args:
        base: Folder that holds the index; `rel` of `read` is relative to it.
        roots: Folders or files that are ingested; `metadata.*` above them is not read.
        follow: Read also caption files that are links out of `roots`.
        explicit: A table named by the user. Its `file_name` is relative to its own folder or to
            `base`, or the tail of a path that no other file under `roots` has.

    Raises:
        UsageError: `explicit` has another suffix than .jsonl, .csv or .json.
        CaptionError: `explicit` cannot be read, or holds no usable row.
    """

    def __init__(
        self,
        *,
        base: Path,
        roots: Sequence[Path],
        explicit: Path | None = None,
        follow: bool = False,
    ) -> None:
        self._base = base.absolute()
        self._roots = _top_folders(roots)
        self._follow = follow
        self._folders: dict[Path, Folder] = {}
        self._tables: dict[Path, Table] = {}
        self._above: dict[Path, tuple[Path, ...]] = {}
        self._failures: dict[Failure, None] = {}
        self._remarks: dict[Failure, None] = {}
        self._explicit = None if explicit is None else self._open_explicit(explicit)

    @property
    def failures(self) -> list[Failure]:
        """Caption files and lines that could not be used so far, each once."""
        return list(self._failures)

    @property
    def remarks(self) -> list[Failure]:
        """Caption files that were left alone so far, each once."""
        return list(self._remarks)

    @property
    def unused(self) -> int:
        """Rows of the explicit table that no file read so far belongs to."""
        return 0 if self._explicit is None else self._explicit.unused

    def is_sidecar(self, path: Path) -> bool:
        """Whether a file can only hold captions, so is never media."""
        return path.suffix.lower() in SUFFIXES

    def read(self, path: Path, rel: str) -> FileCaptions:
        """Captions and metadata of the media file `path` (absolute), which is `rel` below `base`.

        A caption file that cannot be read is left out and listed in `failures`.
        """
        row = Row() if self._explicit is None else self._explicit.find(path, rel, self._fail)
        for folder in self._folders_above(path.parent):
            row = row.joined(self._from_tables(folder, path))
        for sidecar in filter(self._may_read, self._folder(path.parent).beside(path)):
            row = row.joined(self._from_sidecar(sidecar, path))
        words = filename_words(PurePath(path.name))
        weak = make_captions([words] if words else [], CaptionSource.FILENAME)
        captions, meta = merge_captions((*row.captions, *weak)), dict(row.meta)
        return FileCaptions(captions, meta, _digest(captions, meta))

    def _open_explicit(self, path: Path) -> ExplicitTable:
        if path.suffix.lower() not in EXPLICIT_SUFFIXES:
            raise UsageError(
                f"The caption file {path} ends in {path.suffix!r}, but must end in one of "
                f"{', '.join(EXPLICIT_SUFFIXES)}.",
                "Give a table with the columns file_name and caption.",
            )
        path = path.absolute()
        try:
            table = read_table(path, CaptionSource.EXPLICIT)
        except OSError as error:
            raise CaptionError(
                f"The caption file {path} cannot be read: {error.strerror or error}.",
                "Check the path given to --captions.",
            ) from error
        if not table.rows:
            reason = _at(table.problems[0]) if table.problems else "it is empty"
            raise CaptionError(
                f"The caption file {path} holds no usable row: {reason}.",
                "Each row needs file_name, and text, caption or captions.",
            )
        self._report(path, table.problems)
        return ExplicitTable(path, table, base=self._base, roots=self._roots)

    def _folders_above(self, folder: Path) -> tuple[Path, ...]:
        """`folder` and its parents up to the ingest root, nearest first."""
        if folder not in self._above:
            self._above[folder] = self._climb(folder) or self._climb(folder.resolve()) or (folder,)
        return self._above[folder]

    def _climb(self, folder: Path) -> tuple[Path, ...]:
        chain = (folder, *folder.parents)
        tops = [n for n, parent in enumerate(chain) if parent in self._roots]
        return chain[: tops[-1] + 1] if tops else ()

    def _folder(self, folder: Path) -> Folder:
        if folder not in self._folders:
            self._folders[folder] = Folder((), {})
            try:
                self._folders[folder] = list_folder(folder)
            except OSError as error:
                self._fail(folder, error.strerror or str(error))
        return self._folders[folder]

    def _may_read(self, file: Path) -> bool:
        """Whether a caption file lies in the given folders; a link out of them is named."""
        if self._follow or file not in self._folder(file.parent).links:
            return True
        target = file.resolve()
        if any(target.is_relative_to(root) for root in self._roots):
            return True
        reason = f"a link to {target}, out of the given folders; --follow reads it"
        self._remarks[Failure(self._named(file), reason)] = None
        return False

    def _from_tables(self, folder: Path, path: Path) -> Row:
        row = Row()
        for file in self._folder(folder).tables:
            if file not in self._tables:
                readable = self._may_read(file)
                self._tables[file] = self._read_table(file) if readable else Table({}, ())
            if found := self._tables[file].rows.get(relative_key(path, folder)):
                row = row.joined(found)
        return row

    def _read_table(self, file: Path) -> Table:
        try:
            table = read_table(file, CaptionSource.METADATA)
        except OSError as error:
            self._fail(file, error.strerror or str(error))
            return Table({}, ())
        self._report(file, table.problems)
        return table

    def _from_sidecar(self, sidecar: Path, path: Path) -> Row:
        try:
            found = read_sidecar(sidecar, path)
        except OSError as error:
            self._fail(sidecar, error.strerror or str(error))
            return Row()
        self._report(sidecar, found.problems)
        return found.row

    def _report(self, file: Path, problems: Sequence[Problem]) -> None:
        for problem in problems[:MAX_PROBLEMS]:
            self._fail(file, _at(problem))
        if len(problems) > MAX_PROBLEMS:
            self._fail(file, f"{len(problems) - MAX_PROBLEMS} more lines cannot be used")

    def _fail(self, file: Path, reason: str) -> None:
        self._failures[Failure(self._named(file), reason)] = None

    def _named(self, file: Path) -> str:
        below = file.is_relative_to(self._base)
        return file.relative_to(self._base).as_posix() if below else file.as_posix()


def _top_folders(roots: Iterable[Path]) -> frozenset[Path]:
    """The folders of `roots`, as given and with links resolved: paths come in either form."""
    folders = {root.absolute() if root.is_dir() else root.absolute().parent for root in roots}
    return frozenset(folders | {folder.resolve() for folder in folders})


def _at(problem: Problem) -> str:
    line, reason = problem
    return f"line {line}: {reason}" if line else reason


def _digest(captions: Sequence[Caption], meta: Mapping[str, JSON]) -> str:
    content = json.dumps([[c.to_payload() for c in captions], meta], sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def segment_captions(
    captions: Iterable[Caption], start: float, end: float, *, limit: int = 32
) -> list[Caption]:
    """Captions of the stretch from `start` to `end` (seconds), best source first.

    Captions without times describe every segment, those with times the segments that they overlap.
    Each text occurs once, and there are at most `limit`. Weak captions are kept, at the end.

    Raises:
        UsageError: `limit` is negative.
    """
    if limit < 0:
        raise UsageError(f"limit is {limit}, but must be 0 or more.")
    by_text: dict[str, Caption] = {}
    for caption in merge_captions(c for c in captions if c.covers(start, end)):
        by_text.setdefault(text_key(caption.text), caption)
    return list(by_text.values())[:limit]
