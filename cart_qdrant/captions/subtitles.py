"""Subtitles (SubRip `.srt`, WebVTT `.vtt`) as cues with times."""

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
    """A line of subtitles from `start` to `end` (seconds)."""

    text: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Subtitles:
    """Cues in order of time, and what could not be read as (line number from 1, reason)."""

    cues: tuple[Cue, ...]
    problems: tuple[tuple[int, str], ...]


def parse_subtitles(text: str) -> Subtitles:
    """Read `.srt` or `.vtt` text; both are told apart by nothing but their timing lines.

    Hours are optional, `,` and `.` both start the fraction, blank lines between cues may be
    missing. Tags are removed, entities resolved, and cues without a letter or digit dropped.
    A timing line that is malformed, or that ends before it starts, becomes a problem.
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
        start, end = _seconds(match.groups()[:4]), _seconds(match.groups()[4:])
        if end <= start:
            problems.append((number, f"the cue ends at {end:g} s, but starts at {start:g} s"))
            continue
        spoken = _plain(body)
        if has_words(spoken):
            cues.append(Cue(spoken, start, end))
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
    # Far more than is kept, so that a broken file cannot make the work grow.
    marked = " ".join(body)[: 8 * MAX_CHARS]
    return clean_text(html.unescape(_TAG.sub("", marked)))


def _seconds(parts: tuple[str | None, ...]) -> float:
    hours, minutes, seconds, fraction = parts
    whole = int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds or 0)
    return whole + (int(fraction) / 10 ** len(fraction) if fraction else 0.0)
