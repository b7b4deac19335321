"""Parses subtitles (SubRip `.srt`, WebVTT `.vtt`) to cues with times.

pysubs2 was measured and not taken: it does not report malformed lines (docs/experiments.md).
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

from cart_qdrant.captions.text import MAX_CHARS, clean_text, has_words

_TIME = r"(?:(\d{1,4}):)?(\d{1,3}):(\d{1,2})(?:[.,](\d{1,9}))?"
_TIMING = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s.*)?")
# Tags of HTML and WebVTT (`<i>`, `<c.loud>`, `<00:01.500>`) and overrides of ASS (`{\an8}`).
_TAG = re.compile(r"</?[A-Za-z][^<>]*>|</?>|<\d[\d:.,]*>|\{\\[^{}]*\}")


@dataclass(frozen=True, slots=True)
class Cue:
    """A subtitle that is shown from `start` to `end` (seconds)."""

    text: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Subtitles:
    """Cues in time order, and malformed lines as pairs of line number (from 1) and reason."""

    cues: tuple[Cue, ...]
    problems: tuple[tuple[int, str], ...]


def parse_subtitles(text: str) -> Subtitles:
    """Parse `.srt` or `.vtt` text.

    Both formats are read alike: hours are optional, the fraction begins with `,` or `.`, and blank
    lines between cues may be missing. Tags are removed, entities are resolved, and cues without a
    letter or digit are dropped. A timing line that is malformed, or whose end is not after its
    start, is reported as a problem.
    """
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    cues: list[Cue] = []
    problems: list[tuple[int, str]] = []
    at = 0
    while at < len(lines):
        line = lines[at]
        at += 1
        if "-->" not in line:  # header, cue number, NOTE and STYLE blocks
            continue
        number = at
        body, at = _body(lines, at)
        match = _TIMING.fullmatch(line)
        if match is None:
            problems.append((number, f"{line.strip()[:60]!r} is no timing (00:00:01,500 --> ...)"))
            continue
        start, end = _to_seconds(match.groups()[:4]), _to_seconds(match.groups()[4:])
        if end <= start:
            problems.append((number, f"the cue ends at {end:g} s, but starts at {start:g} s"))
            continue
        plain = _plain(body)
        if has_words(plain):
            cues.append(Cue(plain, start, end))
    return Subtitles(tuple(sorted(cues, key=lambda cue: (cue.start, cue.end))), tuple(problems))


def _body(lines: list[str], at: int) -> tuple[list[str], int]:
    """The lines of a cue from `at`, up to a blank line or the next timing line."""
    body: list[str] = []
    while at < len(lines) and lines[at].strip():
        if "-->" in lines[at]:
            if body and body[-1].strip().isdigit():  # the number of the next cue
                body.pop()
            break
        body.append(lines[at])
        at += 1
    return body, at


def _plain(body: list[str]) -> str:
    # Far more than is kept, so that a damaged file cannot make the work grow.
    marked = " ".join(body)[: 8 * MAX_CHARS]
    return clean_text(html.unescape(_TAG.sub("", marked)))


def _to_seconds(parts: tuple[str | None, ...]) -> float:
    hours, minutes, seconds, fraction = parts
    whole = int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds or 0)
    return whole + (int(fraction) / 10 ** len(fraction) if fraction else 0.0)
