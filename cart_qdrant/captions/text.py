"""Makes captions of texts: cleans them, reads file names and container tags, merges duplicates."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import PurePath

from cart_qdrant.records import Caption, CaptionSource, text_key

MAX_CHARS = 1_000
"""Characters; a longer caption is cut at the last space before this. Models read far fewer."""
TOUCHING = 0.25
"""Seconds; equal subtitles with a smaller gap are joined, since rolling subtitles repeat lines."""

_RANK = {source: n for n, source in enumerate(CaptionSource)}

_TAGS = ("title", "description", "imagedescription", "synopsis", "comment", "usercomment")
_TAG_NOISE = re.compile(
    r"""^(?:
        (?:lib)?(?:lav[fc]|x26[45]|vpx|mp3lame|vorbis)\b.* | lav[fc]\d.* | x26[45].*
      | (?:ffmpeg|handbrake|gpac|mp4box|isomedia|mainconcept|imovie|adobe\ \w+|vlc|obs)\b.*
      | (?:video|sound|media|audio|core\ media\ \w+)[ ]?handler\b.*
      | (?:created|encoded|made|processed|produced|converted|recorded|edited)\ (?:by|with|using)\ .*
      | (?:olympus\ digital\ camera|sony\ dsc|samsung|konica\ minolta.*|digital\ camera|dcim.*)
      | (?:untitled|unknown|no\ title|n/?a|none|null|default|track|title|video|audio|google)[ \d#-]*
      | vid:\S+
    )$""",
    re.IGNORECASE | re.VERBOSE,
)
_URL = re.compile(r"(?:https?://|www\.)\S+", re.IGNORECASE)

_TOKEN = re.compile(r"[^\W_]+(?:['\u2019][^\W\d_]+)*")  # `dog's` is one word
_CAMEL = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[^\W\d_]+")
_HEX = re.compile(r"(?=.*\d)[0-9a-f]{6,}|(?=.*\d)[0-9A-F]{6,}")
_PHRASES = re.compile(
    r"(?:screen[ _-]?(?:shot|recording|capture)|bildschirmfoto|whatsapp[ _-]?\w+)(?: \S+ at\b)?",
    re.IGNORECASE,
)
_VIDEO_ID = re.compile(r"(?=.*[a-z])(?=.*[A-Z])(?=.*[\d_-])[A-Za-z0-9_-]{11}(?:\.\d+)?")
_CODE = re.compile(r"[A-Za-z]{1,3}\d+")
_COUNTER = re.compile(r"\d{4,}")
# Counters and suffixes of cameras, phones and editors, and media extensions inside a name.
_NO_WORDS = frozenset(
    [
        *("img", "image", "imag", "photo", "pict", "pic", "cimg", "pxl", "wa", "sam", "dcim"),
        *("dsc", "dscf", "dscn", "dscim", "kodak", "mvi", "vid", "video", "movie", "clip"),
        *("gopr", "gopro", "gp", "gx", "gh", "rec", "recording", "audio", "voice", "memo"),
        *("capture", "untitled", "unnamed", "copy", "file", "mov", "avi", "mkv", "webm"),
        *("ogg", "oga", "aac", "aiff", "jpeg", "jpg", "png", "gif", "webp"),
    ]
)
_VOWELS = frozenset("aeiouy")


def clean_text(text: str) -> str:
    """`text` in NFC on one line, without control characters, at most `MAX_CHARS` long."""
    text = unicodedata.normalize("NFC", text)
    if not text.isprintable():
        text = "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)
    text = " ".join(text.split())
    if len(text) <= MAX_CHARS:
        return text
    head, _, _ = text[: MAX_CHARS + 1].rpartition(" ")
    return (head or text)[:MAX_CHARS].rstrip()


def has_words(text: str) -> bool:
    """Whether `text` contains a letter or digit."""
    return any(c.isalnum() for c in text)


def make_captions(texts: Iterable[str], source: CaptionSource) -> list[Caption]:
    """Captions without times, of the texts that contain a letter or digit."""
    cleaned = (clean_text(text) for text in texts)
    return [Caption(text, source) for text in cleaned if has_words(text)]


def merge_captions(captions: Iterable[Caption]) -> tuple[Caption, ...]:
    """Captions with the best source first, otherwise in the order given, and without duplicates.

    A caption with times is dropped where the same text is known without. Equal texts at different
    times are kept apart, unless they touch: these are joined to one caption that spans both.
    """
    ordered = sorted(captions, key=lambda caption: _RANK[caption.source])
    untimed: dict[str, int] = {}
    timed: dict[str, list[tuple[int, Caption]]] = {}
    for place, caption in enumerate(ordered):
        key = text_key(caption.text)
        if caption.start is None or caption.end is None:
            untimed.setdefault(key, place)
        else:
            timed.setdefault(key, []).append((place, caption))
    kept = [(place, ordered[place]) for place in untimed.values()]
    for key, group in timed.items():
        if key not in untimed:
            kept += _join_touching(group)
    return tuple(caption for _, caption in sorted(kept, key=lambda item: item[0]))


def _join_touching(group: list[tuple[int, Caption]]) -> list[tuple[int, Caption]]:
    """Captions of one text with their positions; those that touch are joined to the first one."""
    out: list[tuple[int, Caption]] = []
    for place, caption in sorted(group, key=lambda item: item[1].start or 0.0):
        if out:
            before, last = out[-1]
            assert caption.start is not None and caption.end is not None
            assert last.start is not None and last.end is not None
            if caption.start <= last.end + TOUCHING:
                first = last if before < place else caption
                span = replace(first, start=last.start, end=max(last.end, caption.end))
                out[-1] = (min(before, place), span)
                continue
        out.append((place, caption))
    return out


def from_tags(tags: Mapping[str, str]) -> list[Caption]:
    """Captions in the tags of a container (title, description, comment ...; any case).

    Tags that do not describe the content are dropped: names of encoders and cameras, bare links,
    placeholders, and titles that are only a counter or a hash (`IMG_1234.MOV`).
    """
    by_key = {key.casefold(): value for key, value in tags.items()}
    texts = [clean_text(by_key[key]) for key in _TAGS if key in by_key]
    kept = [text for text in texts if not _is_tag_noise(text)]
    return list(merge_captions(make_captions(kept, CaptionSource.CONTAINER)))


def _is_tag_noise(text: str) -> bool:
    if _TAG_NOISE.match(text) or not has_words(_URL.sub("", text)):
        return True
    # One "word" may be a file name, an id or a hash.
    return " " not in text and filename_words(PurePath(text + ".x")) is None


def filename_words(path: PurePath) -> str | None:
    """Words of a file's name in lower case; None where the name is only numbers, ids or hashes.

    `camelCase`, `snake_case`, `kebab-case` and spaces separate words. A word has at least two
    letters and, in Latin script, a vowel. At least one word must have three letters, or two in
    another script.
    """
    stem = unicodedata.normalize("NFC", path.stem)
    tokens = _TOKEN.findall(_PHRASES.sub(" ", stem))
    if any(_COUNTER.fullmatch(token) for token in tokens):  # `esc10_1-110389-A`
        tokens = [token for token in tokens if not _CODE.fullmatch(token)]
    found = [_token_words(token) for token in tokens]
    if _VIDEO_ID.fullmatch(stem) and not all(found):  # `C_7tn_oGHI0`
        return None
    words = list(dict.fromkeys(word for group in found for word in group))
    return " ".join(words) if any(_is_word(w, 3) for w in words) else None


def _token_words(token: str) -> list[str]:
    if _HEX.fullmatch(token):
        return []
    letters = token.rstrip("0123456789")
    if any(c.isdigit() for c in letters):  # `7OgSGfbOk`, `20200101`, `1080p`
        return []
    pieces = _CAMEL.findall(letters) if letters.isalpha() else [letters]
    if _is_random(pieces):
        return []
    words = [piece.casefold() for piece in pieces]
    return [w for w in words if w not in _NO_WORDS and _is_word(w, 2)]


def _is_random(pieces: list[str]) -> bool:
    """Whether camel-case pieces look random (`oKQn`, `MsfIVxDiuZ`), unlike words."""
    if len(pieces) < 2:
        return False
    bad = sum(len(piece) < 3 or not _is_word(piece.casefold(), 3) for piece in pieces)
    return 2 * bad > len(pieces) or (bad > 0 and len(pieces) > 3)


def _is_word(word: str, least: int) -> bool:
    plain = "".join(c for c in unicodedata.normalize("NFKD", word) if not unicodedata.combining(c))
    if not plain.isascii():
        return len(word) >= 2
    return len(word) >= least and any(c in _VOWELS for c in plain)
