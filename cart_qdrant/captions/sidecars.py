"""Reads sidecars, the caption files of one media file (`NAME.txt`, `.json`, `.srt`, `.vtt`)."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cart_qdrant.captions.encoding import decode_text
from cart_qdrant.captions.subtitles import parse_subtitles
from cart_qdrant.captions.tables import (
    Problem,
    Row,
    load_json,
    parse_captions,
    parse_object,
)
from cart_qdrant.captions.text import make_captions
from cart_qdrant.records import Caption, CaptionSource, text_key

TABLES = ("metadata.jsonl", "metadata.csv")
SUBTITLES = (".srt", ".vtt")
NOTES = (".txt", ".json")
SUFFIXES = frozenset({*SUBTITLES, *NOTES, ".jsonl", ".csv"})
_ENDINGS = tuple(SUFFIXES)
MAX_BYTES = 16 * 2**20
"""Bytes; a larger sidecar is refused."""

# `NAME.en.srt`, `NAME.pt-BR.vtt`, `NAME.en.forced.srt`
_LANGUAGE = re.compile(r"(?:\.(?:[A-Za-z]{2,3}(?:-[A-Za-z0-9]{2,8})*|forced|sdh|cc|auto|orig))+$")


@dataclass(frozen=True, slots=True)
class Folder:
    """The caption files of a folder: its tables, and its sidecars by the media file's name."""

    tables: tuple[Path, ...]
    by_name: dict[str, tuple[Path, ...]]
    links: frozenset[Path] = frozenset()
    """Those of them that are links."""

    def beside(self, path: Path) -> list[Path]:
        """Sidecars of the media file `path`, both `NAME.txt` and `NAME.mp4.txt`."""
        found = (*self.by_name.get(path.name, ()), *self.by_name.get(path.stem, ()))
        return list(dict.fromkeys(found))


def list_folder(folder: Path) -> Folder:
    """List the caption files of a folder.

    Raises:
        OSError: The folder cannot be listed.
    """
    tables: list[Path] = []
    by_name: dict[str, list[Path]] = {}
    with os.scandir(folder) as entries:
        found = {e.name: e.is_symlink() for e in entries if e.name.lower().endswith(_ENDINGS)}
    for name in sorted(found):
        stem, suffix = os.path.splitext(name)  # noqa: PTH122 - a million names: no Path each
        if name in TABLES:
            tables.append(folder / name)
        elif suffix.lower() in SUBTITLES:
            for key in {stem, _LANGUAGE.sub("", stem)}:
                by_name.setdefault(key, []).append(folder / name)
        elif suffix.lower() in NOTES:
            by_name.setdefault(stem, []).append(folder / name)
    tables.sort(key=lambda path: TABLES.index(path.name))
    links = frozenset(folder / name for name, is_link in found.items() if is_link)
    return Folder(tuple(tables), {key: tuple(paths) for key, paths in by_name.items()}, links)


@dataclass(frozen=True, slots=True)
class Sidecar:
    """The content of a sidecar, and what could not be read in it."""

    row: Row
    problems: Sequence[Problem] = ()


def read_sidecar(path: Path, media: Path) -> Sidecar:
    """Read a sidecar in the format of its suffix; a text that only repeats the name is dropped.

    Raises:
        OSError: The file cannot be read.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        return Sidecar(Row(), ((0, f"{size:,} bytes, more than the {MAX_BYTES:,} allowed"),))
    text = decode_text(path.read_bytes())
    suffix = path.suffix.lower()
    if suffix in SUBTITLES:
        subtitles = parse_subtitles(text)
        cues = [Caption(c.text, CaptionSource.SUBTITLE, c.start, c.end) for c in subtitles.cues]
        return Sidecar(Row(tuple(cues)), subtitles.problems)
    if suffix == ".txt":
        return Sidecar(Row(tuple(make_captions(text.splitlines(), CaptionSource.TXT))))
    try:
        row = _from_json(text)
    except (ValueError, RecursionError) as error:  # no JSON, or JSON of another form
        return Sidecar(Row(), ((0, str(error)),))
    own_names = {text_key(media.name), text_key(media.stem)}
    kept = tuple(c for c in row.captions if text_key(c.text) not in own_names)
    return Sidecar(Row(kept, row.meta))


def _from_json(text: str) -> Row:
    value = load_json(text)
    if isinstance(value, dict):
        return parse_object(value, CaptionSource.JSON, titles=True)
    return Row(tuple(parse_captions(value, CaptionSource.JSON, "the file")))
