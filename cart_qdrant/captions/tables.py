"""Reads tables of captions (`.jsonl`, `.csv`, `.json`), and makes JSON values fit for a payload."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

from cart_qdrant.captions.encoding import decode_text
from cart_qdrant.captions.text import clean_text, has_words, make_captions
from cart_qdrant.media.path_match import path_key
from cart_qdrant.records import OWN_FIELDS, Caption, CaptionSource

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

FILE_NAME = "file_name"
TEXT_COLUMNS = ("text", "caption", "captions")
TITLE_COLUMNS = ("title", "description")
"""Columns that are captions in `NAME.json`, but metadata in a table."""

RESERVED = OWN_FIELDS | frozenset({"cart", "meta"})
"""Payload fields of this package; a column of the same name is stored as `meta_<name>`."""

_RESERVED_CART = re.compile(r"cart_\d+")
_NUMBERED = re.compile(r"captions?_[0-9]+")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_INT64 = range(-(2**63), 2**63)
_DIGITS = 4_000  # Python reads no whole number of more than 4,300 digits
_FOREVER = 1e9  # seconds
_MAX_DEPTH = 32  # levels of nesting; parsers of payloads stop at 128

Problem: TypeAlias = tuple[int, str]
"""Line number from 1 (0 for the whole file) and reason."""


@dataclass(frozen=True, slots=True)
class Row:
    """Captions and other columns of one media file, whose rows are joined."""

    captions: tuple[Caption, ...] = ()
    meta: Mapping[str, JSON] = field(default_factory=dict)

    def joined(self, other: Row) -> Row:
        """Captions of both rows; a column of `other` only where this row has none of that name."""
        return Row((*self.captions, *other.captions), {**other.meta, **self.meta})


@dataclass(frozen=True, slots=True)
class Table:
    """Rows by file name (in the normal form of `path_key`), and what could not be read."""

    rows: Mapping[str, Row]
    problems: tuple[Problem, ...]


class _BadRowError(ValueError):
    """A row that cannot be used; the message says why."""


def read_table(path: Path, source: CaptionSource) -> Table:
    """Read a table in the format of its suffix.

    The formats are `.jsonl`, `.csv` and `.json` (a list, or an object from file name to captions).
    `file_name` names the file; captions are in `text`, `caption`, `captions` (a list, in CSV as
    JSON) and `caption_0`, `caption_1` ...; all other columns become `meta`.

    Raises:
        OSError: The file cannot be read.
    """
    joined: dict[str, Row] = {}
    problems: list[Problem] = []
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".json": _read_json}
    for line, record in readers[path.suffix.lower()](path):
        try:
            name, row = _to_row(record, source)
        except _BadRowError as error:
            problems.append((line, str(error)))
            continue
        joined[name] = joined[name].joined(row) if name in joined else row
    return Table(joined, tuple(problems))


def _to_row(record: object, source: CaptionSource) -> tuple[str, Row]:
    if isinstance(record, _BadRowError):
        raise record
    if not isinstance(record, dict):
        raise _BadRowError(f"expected an object with {FILE_NAME!r}, found {_kind(record)}")
    name = record.get(FILE_NAME)
    if not isinstance(name, str) or not name.strip():
        known = ", ".join(map(repr, record)) or "none"
        raise _BadRowError(f"no {FILE_NAME!r}; the columns are {known[:200]}")
    return path_key(name.strip()), parse_object(record, source)


def _read_jsonl(path: Path) -> Iterator[tuple[int, object]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            try:
                yield number, load_json(decode_text(raw))
            except (ValueError, RecursionError) as error:
                yield number, _BadRowError(f"no JSON: {error}")


def _read_json(path: Path) -> Iterator[tuple[int, object]]:
    try:
        value = load_json(decode_text(path.read_bytes()))
    except (ValueError, RecursionError) as error:
        yield 0, _BadRowError(f"no JSON: {error}")
        return
    if isinstance(value, dict) and FILE_NAME not in value:
        for name, item in value.items():
            record = item if isinstance(item, dict) else {"captions": item}
            yield 0, {**record, FILE_NAME: name}
    elif isinstance(value, list):
        yield from ((0, item) for item in value)
    else:
        yield 0, value


def _read_csv(path: Path) -> Iterator[tuple[int, object]]:
    rows = csv.reader(io.StringIO(decode_text(path.read_bytes()), newline=""), strict=True)
    header: list[str] | None = None
    while True:
        try:
            cells = next(rows, None)
        except csv.Error as error:
            yield rows.line_num, _BadRowError(f"no CSV: {error}")
            continue
        if cells is None:
            return
        if header is None:
            header = [name.strip() for name in cells]
            if FILE_NAME not in header:
                yield rows.line_num, dict.fromkeys(header)
                return
        elif len(cells) > len(header):
            reason = f"{len(cells)} values for {len(header)} columns; quote texts with commas"
            yield rows.line_num, _BadRowError(reason)
        elif cells:
            pairs = zip(header, cells, strict=False)
            yield rows.line_num, {k: _cell(k, v) for k, v in pairs if v.strip()}


def _cell(column: str, text: str) -> object:
    """The value of a CSV cell: a number or a list where the cell is one in JSON, else its text."""
    if column == FILE_NAME or is_caption_column(column):
        listed = column == "captions" and text.lstrip().startswith("[")
        return _json_list(text) if listed else text
    text = text.strip()
    if _NUMBER.fullmatch(text):
        number = load_json(text)
        return number if not isinstance(number, float) or math.isfinite(number) else text
    return _json_list(text) if text.startswith("[") else text


def _json_list(text: str) -> object:
    try:
        return load_json(text)
    except (ValueError, RecursionError):
        return text


def load_json(text: str) -> Any:
    """Parse JSON; a whole number of more digits than Python reads becomes its text.

    Raises:
        ValueError: The text is no JSON.
        RecursionError: It is nested too deep.
    """
    return json.loads(
        text, parse_int=lambda digits: int(digits) if len(digits) < _DIGITS else digits
    )


def is_caption_column(name: str) -> bool:
    """Whether a column holds captions; others are `meta`."""
    return name in TEXT_COLUMNS or _NUMBERED.fullmatch(name) is not None


def parse_object(record: Mapping[str, Any], source: CaptionSource, *, titles: bool = False) -> Row:
    """Captions and `meta` of one JSON object; with `titles`, title and description are captions.

    Raises:
        ValueError: A caption is neither a text nor a list of texts; the message names it.
    """
    wanted = (*TEXT_COLUMNS, *(TITLE_COLUMNS if titles else ()))
    numbered = sorted(filter(_NUMBERED.fullmatch, record), key=_column_number)
    captions: list[Caption] = []
    for column in (*wanted, *numbered):
        captions += parse_captions(record.get(column), source, column)
    taken = {FILE_NAME, *wanted, *numbered}
    return Row(tuple(captions), _to_meta({k: v for k, v in record.items() if k not in taken}))


def _column_number(name: str) -> tuple[int, str]:
    """Sort key of the column `caption_<n>`: the order of numbers, whatever their length."""
    digits = name.rsplit("_", 1)[1].lstrip("0")
    return len(digits), digits


def parse_captions(value: object, source: CaptionSource, where: str) -> list[Caption]:
    """Captions in a text, a list of texts, or objects with `text`, `start` and `end` (seconds).

    Raises:
        ValueError: The value is something else; the message names `where` and its type.
    """
    if value is None:
        return []
    if isinstance(value, str):
        return make_captions([value], source)
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        return _timed(value, source)
    if isinstance(value, list) and all(isinstance(item, str | dict) for item in value):
        nested = (parse_captions(item, source, f"an item of {where}") for item in value)
        return [caption for captions in nested for caption in captions]
    found = _kind(value) if not isinstance(value, list) else "a list of other things"
    raise _BadRowError(f"{where} must be a text or a list of texts, but is {found}")


def _timed(value: Mapping[str, Any], source: CaptionSource) -> list[Caption]:
    text, start, end = clean_text(value["text"]), value.get("start"), value.get("end")
    if not has_words(text):
        return []
    if start is None and end is None:
        return [Caption(text, source)]
    if not (_is_number(start) and _is_number(end) and 0 <= start < end < _FOREVER):
        raise _BadRowError(f"start {start!r} and end {end!r} must be seconds, start before end")
    return [Caption(text, source, float(start), float(end))]


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _to_meta(record: Mapping[str, Any]) -> dict[str, JSON]:
    """Columns as `meta`: reserved names prefixed, values fit for a payload."""
    meta: dict[str, JSON] = {}
    clashing: dict[str, JSON] = {}
    for key, value in record.items():
        name = clean_text(key)
        if not name:
            continue
        (clashing if is_reserved(name) else meta)[name] = to_json(value)
    for name, clean in clashing.items():
        name = f"meta_{name}"
        while name in meta:
            name = f"meta_{name}"
        meta[name] = clean
    return meta


def is_reserved(name: str) -> bool:
    """Whether this package uses a payload field of this name (`RESERVED`, `cart_<n>`)."""
    return name in RESERVED or _RESERVED_CART.fullmatch(name) is not None


def to_json(value: Any, depth: int = 0) -> JSON:
    """`value` in a form that Qdrant can store.

    Numbers that are not finite become None, integers beyond 64 bits text, and lone surrogates
    the replacement character.

    Raises:
        ValueError: The value is nested too deep.
    """
    if depth > _MAX_DEPTH:
        raise _BadRowError(f"nested more than {_MAX_DEPTH} levels deep")
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return value if value in _INT64 else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(to_json(str(k))): to_json(v, depth + 1) for k, v in value.items()}
    return [to_json(item, depth + 1) for item in value]


def _kind(value: object) -> str:
    names: Sequence[tuple[type | tuple[type, ...], str]] = (
        (bool, "true or false"),
        ((int, float), "a number"),
        (str, "a text"),
        (list, "a list"),
        (dict, "an object"),
    )
    return next((name for kind, name in names if isinstance(value, kind)), "nothing")
