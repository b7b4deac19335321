"""Parses filters of users: `year=2020`, `date>=2020-06-01`, `camera=gopro,dji`, `caption~surf`.

Payload fields come from CSV as text and from JSON with types, so a value that looks like a
number, a boolean or a date matches both forms. Quotes (`year="2020"`) ask for the text alone, and
keep commas.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from cart_qdrant.errors import UsageError
from cart_qdrant.records import Modality
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.protocol import CAPTION_TEXTS

if TYPE_CHECKING:
    from cart_qdrant.index.index import Index

MOST_CONDITIONS = 64
"""Conditions of one filter, at most."""
MOST_CHARACTERS = 4_000
"""Characters of one condition, at most."""
MOST_VALUES = 256
"""Values between the commas of one condition, at most."""

# A filter may come from anybody whom an assistant listens to, so that it is read in time that grows
# with its length: no pattern here can begin a match at one place in two ways.
_OPERATOR = re.compile(r"==|!=|>=|<=|[=<>~]")
_END_OF_KEY = re.compile(r"[=!<>~]")
_SHOWN = 200  # characters of a condition in a message
_SPACE = re.compile(r"\s*")
_PATH_PART = re.compile(r'"[^"]+"|[^."\[\]]+|\[\d{0,9}\]|\.')
_PLAIN = re.compile(r"[A-Za-z0-9_-]+|\[\d*\]|\.|\".*\"")
_INT = re.compile(r"[+-]?\d+")
_FLOAT = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_EXACT_FLOAT = 2**53  # whole numbers above are rounded by a range condition
_RANGES = {">=": "gte", ">": "gt", "<=": "lte", "<": "lt"}


def has_caption(index: Index) -> qdrant.Filter:
    """Items of an index that have a caption vector."""
    return qdrant.Filter(must=[qdrant.HasVectorCondition(has_vector=index.caption_vector)])


def lacks_caption(index: Index) -> qdrant.Filter:
    """Items of an index that have no caption vector."""
    return qdrant.Filter(must_not=[qdrant.HasVectorCondition(has_vector=index.caption_vector)])


def parse_filter(
    expressions: Sequence[str], modality: Modality | None = None
) -> qdrant.AnyFilter | None:
    """A Qdrant filter for expressions that must all hold.

    `key=a,b` means any of the values, `key!=a,b` none of them (a point without the key matches),
    `key~words` that the text has all these words (`caption~words`: one of an item's captions has
    them). `key` may be a path: `cart.p1`, `tags[]`, `captions[].text`. Dates are UTC; a day without
    a time means the whole day.

    Args:
        expressions: Conditions, such as `year>=2020`.
        modality: Only segments of this modality match.

    Returns:
        The filter, which stores take (`storage.requests.to_client` converts it for the client);
        None where no condition is given.

    Raises:
        UsageError: An expression cannot be parsed, or is too long; the message has an example.
    """
    _check_size(expressions)
    must: list[qdrant.AnyCondition] = []
    must_not: list[qdrant.AnyCondition] = []
    if modality is not None:
        match = qdrant.MatchValue(value=str(modality))
        must.append(qdrant.FieldCondition(key="modality", match=match))
    for expression in expressions:
        name, op, value = _parts(expression)
        key = _path(name, expression)
        if not value:
            raise _bad(expression, 'it has no value (write key="" for the empty text)')
        if value[0] in "=!<>~":
            raise _bad(expression, f"{op + value[0]!r} is not an operator")
        if op in _RANGES:
            must.append(_range(key, op, value, expression))
        elif op == "~":
            words = qdrant.MatchText(text=value.strip('"'))
            if not words.text.strip():
                raise _bad(expression, "it has no words")
            # Captions are stored as objects, and their texts are what users mean.
            where = CAPTION_TEXTS if key == "caption" else key
            must.append(qdrant.FieldCondition(key=where, match=words))
        else:
            any_of = [c for v, q in _values(value, expression) for c in _equals(key, v, quoted=q)]
            (must_not if op == "!=" else must).append(qdrant.Filter(should=any_of))
    if not must and not must_not:
        return None
    return qdrant.Filter(must=must or None, must_not=must_not or None)


def merge_filters(*filters: qdrant.AnyFilter | None) -> qdrant.AnyFilter | None:
    """One filter that holds where all of them do; None where none is given."""
    given = [f for f in filters if f is not None]
    if len(given) < 2:
        return given[0] if given else None
    return qdrant.Filter(must=list(given))


def _check_size(expressions: Sequence[str]) -> None:
    """Refuse what is too much, or no text that a store can hold.

    Raises:
        UsageError: It is.
    """
    if isinstance(expressions, str):
        raise UsageError("A filter is a list of conditions, not a text.", 'Write ["year>=2020"].')
    if len(expressions) > MOST_CONDITIONS:
        raise UsageError(
            f"The filter has {len(expressions)} conditions, but may have {MOST_CONDITIONS}.",
            "Join values of one field by commas: camera=gopro,dji.",
        )
    for expression in expressions:
        if len(expression) > MOST_CHARACTERS:
            raise _bad(
                expression,
                f"it has {len(expression)} characters, but may have {MOST_CHARACTERS}",
            )
        try:
            expression.encode()
        except UnicodeEncodeError:
            raise _bad(expression, "it is not UTF-8") from None


def _parts(expression: str) -> tuple[str, str, str]:
    """Key, operator and value of a condition, without the spaces around each."""
    text = expression.strip()
    start = 0
    if text.startswith('"'):
        start = text.find('"', 1) + 1
        if start < 3:
            raise _bad(expression, "a quote is not closed")
    end = _END_OF_KEY.search(text, start)
    op = None if end is None else _OPERATOR.match(text, end.start())
    if op is None or not op.start():
        raise _bad(expression, "it has no operator or no key")
    key = text[: op.start()].rstrip()
    # Behind a quoted name comes nothing but the rest of a path; elsewhere there are no quotes.
    if (start and key[start : start + 1] not in ("", ".", "[")) or (not start and '"' in key):
        raise _bad(expression, f"{key!r} is not a payload key")
    return key, op[0], text[op.end() :].lstrip()


def _bad(expression: str, why: str) -> UsageError:
    shown = expression if len(expression) <= _SHOWN else f"{expression[:_SHOWN]}..."
    return UsageError(
        f"Filter {shown!r} cannot be read: {why}.",
        "Write for example year=2020, year>=2020, camera=gopro,dji, camera!=dji or caption~surf.",
    )


def _path(key: str, expression: str) -> str:
    """A key as a JSON path, whose parts with special characters are quoted."""
    parts = _PATH_PART.findall(key)
    if "".join(parts) != key or key.startswith((".", "[")) or key.endswith(".") or ".." in key:
        raise _bad(expression, f"{key!r} is not a payload key")
    return "".join(part if _PLAIN.fullmatch(part) else f'"{part}"' for part in parts)


def _values(value: str, expression: str) -> list[tuple[str, bool]]:
    """The values between commas, and whether each was quoted."""
    out: list[tuple[str, bool]] = []
    at = 0
    while at <= len(value):
        if len(out) == MOST_VALUES:
            raise _bad(expression, f"it has more than {MOST_VALUES} values")
        at = _space(value, at)
        quoted = value.startswith('"', at)
        if quoted:
            close = value.find('"', at + 1)
            end = _space(value, close + 1)
            if close < 0 or value[end : end + 1] not in ("", ","):
                raise _bad(expression, "a quote is not closed, or is inside a value")
            text = value[at + 1 : close]
        else:
            end = value.find(",", at)
            end = len(value) if end < 0 else end
            text = value[at:end].strip()
            if not text:
                raise _bad(expression, 'a value is empty (write "" for the empty text)')
            if '"' in text:
                raise _bad(expression, "a quote is not closed, or is inside a value")
        out.append((text, quoted))
        at = end + 1
    return out


def _space(text: str, at: int) -> int:
    """Where the spaces from a place on end."""
    found = _SPACE.match(text, at)
    assert found is not None  # no space matches, too
    return found.end()


def _equals(key: str, value: str, *, quoted: bool) -> list[qdrant.AnyCondition]:
    """Conditions of which one must hold for `key` to equal `value`, typed or as text."""

    def exactly(wanted: str | int | bool) -> qdrant.AnyCondition:
        return qdrant.FieldCondition(key=key, match=qdrant.MatchValue(value=wanted))

    out = [exactly(value)]
    if quoted:
        return out
    if value.lower() in ("true", "false"):
        texts = {value.lower(), value.capitalize(), value.upper()} - {value}
        out += [exactly(value.lower() == "true"), *map(exactly, sorted(texts))]
    number = _number(value)
    if isinstance(number, int) and abs(number) >= _EXACT_FLOAT:
        if abs(number) < 2**63:
            out.append(exactly(number))
    elif number is not None:
        same = qdrant.Range(gte=number, lte=number)
        out.append(qdrant.FieldCondition(key=key, range=same))
    elif _DAY.fullmatch(value) and (start := parse_instant(value)) is not None:
        day = qdrant.DatetimeRange(gte=start, lt=_next_day(start))
        out.append(qdrant.FieldCondition(key=key, range=day))
    elif (instant := parse_instant(value)) is not None:
        moment = qdrant.DatetimeRange(gte=instant, lte=instant)
        out.append(qdrant.FieldCondition(key=key, range=moment))
    return out


def _range(key: str, op: str, value: str, expression: str) -> qdrant.AnyCondition:
    limit: Any = _number(value)
    if limit is not None:
        return qdrant.FieldCondition(key=key, range=qdrant.Range(**{_RANGES[op]: limit}))
    limit = parse_instant(value)
    if limit is None:
        raise _bad(expression, f"{value!r} is neither a number nor an ISO date like 2020-06-01")
    if _DAY.fullmatch(value) and op in ("<=", ">"):
        limit = _next_day(limit)
        op = {"<=": "<", ">": ">="}[op]
    return qdrant.FieldCondition(key=key, range=qdrant.DatetimeRange(**{_RANGES[op]: limit}))


def _number(value: str) -> int | float | None:
    if not _FLOAT.fullmatch(value) or not math.isfinite(float(value)):
        return None
    return int(value) if _INT.fullmatch(value) else float(value)


def _next_day(day: datetime) -> datetime:
    try:
        return day + timedelta(days=1)
    except OverflowError:  # the last day of the calendar
        return datetime.max.replace(tzinfo=UTC)


def parse_instant(value: str) -> datetime | None:
    """An ISO date or time, in UTC where it names no zone; None when it is not one."""
    if not _DAY.match(value):
        return None
    try:
        instant = datetime.fromisoformat(value)
    except ValueError:
        return None
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)
