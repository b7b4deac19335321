"""Reads again which payload fields of an attached collection hold what: others change them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cart_qdrant.index.field_guess import (
    FIELDS,
    SAMPLE,
    fits,
    guess_fields,
    modality_by_name,
    word_field,
)
from cart_qdrant.index.points import has_identifier
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.attached import AttachedStore
from cart_qdrant.storage.attachment import Attachment


def read_again(store: AttachedStore, how: Attachment, field: str | None) -> Attachment:
    """How to read a collection by what its payloads hold now.

    What the user gave stays. A guess stays as long as it fits.

    Args:
        store: The collection.
        how: How it was read so far.
        field: Payload field of the identifiers in force; points without one are new.
    """
    payloads = store.sample(SAMPLE)  # and as many of those that are new
    if field is not None and len(payloads) == SAMPLE:
        new = qdrant.Filter(must_not=[has_identifier(field)])
        payloads += store.sample(SAMPLE, new)
    return guessed_anew(payloads, how) if payloads else how


def guessed_anew(payloads: Sequence[Mapping[str, Any]], how: Attachment) -> Attachment:
    """How to read a collection with these payloads, see `read_again`."""
    fields = field_names(how)
    found = guess_fields(payloads)
    for ours in FIELDS:
        now = fields[ours]
        if ours in how.given or (now is not None and fits(payloads, ours, now)):
            continue
        fields[ours] = found.get(ours)
    changed = replace(
        how, path=fields["path"], start=fields["start"], end=fields["end"],
        modality_field=fields["modality"],
    )  # fmt: skip
    if "modality" not in how.given and fields["modality"] is None:
        modality = str(modality_by_name(payloads, fields["path"]))
        if modality in how.modalities:
            changed = replace(changed, modality=modality)
    if fields["captions"] != field_names(how)["captions"]:
        captions = [fields["captions"]] if fields["captions"] else []
        changed = replace(changed, captions=captions, words=word_field(payloads, captions))
    return changed


def field_names(how: Attachment) -> dict[str, str | None]:
    """The payload field of each of `FIELDS`; None where there is none."""
    return {
        "path": how.path,
        "modality": how.modality_field,
        "captions": ",".join(how.captions) or None,
        "start": how.start,
        "end": how.end,
    }


def changes_between(before: Attachment, after: Attachment) -> dict[str, dict[str, str | None]]:
    """What is read from another field than before: `was` and `is` by name."""
    old, new = field_names(before), field_names(after)
    out = {name: {"was": old[name], "is": new[name]} for name in FIELDS if old[name] != new[name]}
    if "modality" not in out and before.modality != after.modality and new["modality"] is None:
        out["modality"] = {"was": before.modality, "is": after.modality}
    return out


def remarks_on(changes: Mapping[str, Mapping[str, str | None]]) -> list[str]:
    """A sentence on each change."""
    return [
        f"{name}: read from {_shown(one['is'])} now, not from {_shown(one['was'])} any more; "
        f"if that is wrong, attach again with --field {name}=..."
        for name, one in changes.items()
    ]


def _shown(field: str | None) -> str:
    return "no payload field" if field is None else f"{field!r}"
