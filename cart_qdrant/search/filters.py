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
from typing import Any

from cart_qdrant.errors import UsageError
from cart_qdrant.records import Modality
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.protocol import CAPTION, CAPTION_TEXTS

HAS_CAPTION = qdrant.HasVectorCondition(has_vector=CAPTION)
"""Condition that an item has a caption vector."""

_EXPRESSION = re.compile(
    r"""\s*(?P<key>"[^"]+"(?:[.\[][^=!<>~]*)?|[^=!<>~"]+?)\s*
        (?P<op>==|!=|>=|<=|=|>|<|~)\s*
        (?P<value>.*?)\s*""",
    re.VERBOSE | re.DOTALL,
)
_VALUE = re.compile(r'\s*(?:"(?P<quoted>[^"]*)"|(?P<bare>[^,"]*))\s*(?:,|$)')
_PATH_PART = re.compile(r'"[^"]+"|[^."\[\]]+|\[\d*\]|\.')
_PLAIN = re.compile(r"[A-Za-z0-9_-]+|\[\d*\]|\.|\".*\"")
_INT = re.compile(r"[+-]?\d+")
_FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_EXACT_FLOAT = 2**53  # whole numbers above are rounded by a range condition
_RANGES = {">=": "gte", ">": "gt", "<=": "lte", "<": "lt"}


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
        UsageError: An expression cannot be parsed; the message has an example.
    """
    must: list[qdrant.AnyCondition] = []
    must_not: list[qdrant.AnyCondition] = []
    if modality is not None:
        match = qdrant.MatchValue(value=str(modality))
        must.append(qdrant.FieldCondition(key="modality", match=match))
    for expression in expressions:
        found = _EXPRESSION.fullmatch(expression)
        if found is None:
            raise _bad(expression, "it has no operator or no key")
        key, op, value = _path(found["key"], expression), found["op"], found["value"]
        if not value.strip():
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


def _bad(expression: str, why: str) -> UsageError:
    return UsageError(
        f"Filter {expression!r} cannot be read: {why}.",
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
    while True:
        found = _VALUE.match(value, at)
        if found is None:
            raise _bad(expression, "a quote is not closed, or is inside a value")
        quoted = found["quoted"] is not None
        text = found["quoted"] if quoted else found["bare"].strip()
        if not quoted and not text:
            raise _bad(expression, 'a value is empty (write "" for the empty text)')
        out.append((text, quoted))
        at = found.end()
        if not found[0].endswith(","):
            return out


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
