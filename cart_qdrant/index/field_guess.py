"""Guesses which payload fields of an attached collection hold paths, captions and so on."""

from __future__ import annotations

import mimetypes
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cart_qdrant.records import Modality
from cart_qdrant.storage.attached_mapping import texts_of, value_at

SAMPLE = 1_000
"""Points from whose payloads the fields are guessed."""
FIELDS = ("path", "modality", "captions", "start", "end")
"""What may be read from a payload field of the collection."""
GUESSES: Mapping[str, tuple[str, ...]] = {
    "path": ("path", "file_path", "filepath", "image_path", "file_name", "filename", "file", "url",
             "uri", "image_url", "src", "source", "image"),
    "captions": ("captions", "caption", "text", "description", "page_content", "title", "alt",
                 "alt_text", "transcript", "prompt"),
    "modality": ("modality", "media_type", "kind", "type"),
    "start": ("start", "start_time", "start_s", "t_start", "begin"),
    "end": ("end", "end_time", "end_s", "t_end"),
}  # fmt: skip
"""Usual names of payload fields, the most likely first; of a nested field, the last part."""
_OFTEN = {"path": 0.5, "captions": 0.02, "modality": 0.99, "start": 0.5, "end": 0.5}
"""Share of the sample that must hold a fitting value for a field to be guessed."""


_FITS: Mapping[str, Callable[[Any], bool]] = {
    "path": lambda v: isinstance(v, str) and bool(v),
    "captions": lambda v: bool(texts_of({"v": v}, ["v"])),
    "modality": lambda v: v in list(Modality),
    "start": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "end": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
}


def fits(payloads: Sequence[Mapping[str, Any]], ours: str, theirs: str) -> bool:
    """Whether so many payloads hold a fitting value in a field that it is taken for `ours`."""
    least = max(1, int(_OFTEN[ours] * len(payloads)))
    return sum(_FITS[ours](value_at(payload, theirs)) for payload in payloads) >= least


def guess_fields(payloads: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Guess the payload field of each of `FIELDS` by names and values.

    One level of nested objects is read. What fits no field is left out.
    """
    fields: Counter[str] = Counter()
    for payload in payloads:
        for key, value in payload.items():
            fields[key] += 1
            if isinstance(value, Mapping):
                fields.update(f"{key}.{inner}" for inner in value)
    found: dict[str, str] = {}
    for ours, names in GUESSES.items():
        likely = sorted(
            (names.index(last), one.count("."), one)
            for one in fields
            if (last := one.rpartition(".")[2].lower()) in names
        )
        for _, _, one in likely:
            if one in found.values():
                continue
            if fits(payloads, ours, one):
                found[ours] = one
                break
    return found


def modality_by_name(payloads: Sequence[Mapping[str, Any]], path: str | None) -> Modality:
    """The most frequent modality by file names; images where the names do not say."""
    names = (str(value_at(payload, path) or "") for payload in payloads)
    found = Counter((mimetypes.guess_type(name)[0] or "").split("/")[0] for name in names)
    known = [one for one, _ in found.most_common() if one in list(Modality)]
    return Modality(known[0]) if known else Modality.IMAGE


def word_field(payloads: Sequence[Mapping[str, Any]], captions: Sequence[str]) -> str | None:
    """The payload field whose words get a full-text index; within objects, their key `text`."""
    for name in captions:
        for payload in payloads:
            value = value_at(payload, name)
            if isinstance(value, list) and value:
                return f"{name}[].text" if isinstance(value[0], Mapping) else name
            if value is not None:
                return name
    return captions[0] if captions else None
