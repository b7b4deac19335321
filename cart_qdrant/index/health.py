"""How good the identifiers of an index are, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cart_qdrant.identifiers.codec import (
    LevelReport,
    level_reports,
    unique_ratio,
)
from cart_qdrant.identifiers.fit import distinct_rows
from cart_qdrant.index.identifier_files import load_codec
from cart_qdrant.index.identify import GROWN, encode, fitted_on
from cart_qdrant.index.index import Index
from cart_qdrant.index.points import has_identifier, read_vectors

DRIFT = 1.25
"""Reconstruction error of new items over that at fitting from which renewal is advised."""
OUTGROWN = 4
"""Growth of the collection since fitting from which renewal is advised."""


def advice(index: Index, unnamed: int) -> list[str]:
    """What is worth telling after `bring_in_step`, of which `unnamed` is the answer."""
    info = index.manifest.identifiers
    if unnamed:
        return [
            f"{unnamed} items are of a kind that was not there when identifiers were fitted: "
            "they are found by their vectors alone until `cartq train`"
        ]
    if info is not None and info.count > GROWN * fitted_on(info):
        return [
            f"identifiers were fitted on {fitted_on(info)} items, now there are {info.count}: "
            "renew them with `cartq train`"
        ]
    return []


@dataclass(frozen=True, slots=True)
class Health:
    """How good the identifiers are, and what to do about it.

    Attributes:
        U: Unique-identifier ratio of the semantic part.
        levels: Use of each level's codes.
        clashes: Items that share their semantic part with an earlier one.
        duplicates: Items whose vector equals an earlier one: these must clash.
        error: Relative reconstruction error now, per space.
        fitted_error: The same at fitting.
        fitted_on: Items at fitting, per space.
        items: Items now.
        problems: What is wrong, each with its remedy; empty is a pass.
        remarks: What is worth knowing, but no fault.
    """

    unique_ratio: float
    levels: list[LevelReport]
    clashes: int
    duplicates: int
    error: dict[str, float]
    fitted_error: dict[str, float]
    fitted_on: dict[str, int]
    items: int
    problems: list[str]
    remarks: list[str]

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def check(index: Index, target_u: float = 0.95) -> Health | None:
    """Measure the identifiers in force; None when there is none."""
    info = index.manifest.identifiers
    codec = load_codec(index)
    if info is None or codec is None:
        return None
    vectors = read_vectors(index)
    codes = encode(codec, vectors.x_ND, vectors.spaces)
    items = len(codes)
    distinct = len(distinct_rows(vectors.x_ND))
    u = unique_ratio(codes)
    by_space = vectors.by_space()
    error = {
        space: codec.quantizers[space].relative_error(x, codes[vectors.spaces == space])
        for space, x in by_space.items()
        if space in codec.quantizers
    }
    problems: list[str] = []
    remarks: list[str] = []
    trained = index.manifest.generator is not None
    repair = f"Renew the identifiers: `{'cartq train' if trained else 'cartq doctor --fix'}`."
    reachable = distinct / items if items else 1.0
    if u < target_u * reachable:
        problems.append(f"U is {u:.3f}, under {target_u * reachable:.3f}. {repair}")
    if items < 20:
        remarks.append(f"{items} items: identifier statistics mean little below 20.")
    if items - distinct:
        copies = items - distinct
        are = "item is an exact copy" if copies == 1 else "items are exact copies"
        remarks.append(f"{copies} {are} of another item's vector.")
    fitted_on = {space: q.fitted_on for space, q in codec.quantizers.items()}
    fitted_error = {space: q.error for space, q in codec.quantizers.items()}
    for space, x in by_space.items():
        if space not in error:
            problems.append(f"The space {space!r} has {len(x)} items, but no identifiers. {repair}")
        elif len(x) > OUTGROWN * fitted_on[space]:
            problems.append(
                f"{space}: fitted on {fitted_on[space]} items, but there are {len(x)}. {repair}"
            )
        elif len(x) >= 20 and error[space] > DRIFT * max(fitted_error[space], 0.05):
            problems.append(
                f"{space}: reconstruction error is {error[space]:.3f}, but was "
                f"{fitted_error[space]:.3f} at fitting (drift). {repair}"
            )
    stored = index.store.count(has_identifier(info.field))
    if not stored == info.count == items:
        problems.append(
            f"{items} items, {stored} identifiers stored, {info.count} in the tree. "
            "Mend: run `cartq ingest` again, or `cartq doctor --fix`."
        )
    sizes = [codec.coarse, *([codec.codes] * (codec.levels - 1))]
    return Health(
        unique_ratio=u,
        levels=level_reports(codes, sizes),
        clashes=items - len(np.unique(codes, axis=0)) if items else 0,
        duplicates=items - distinct,
        error=error,
        fitted_error=fitted_error,
        fitted_on=fitted_on,
        items=items,
        problems=problems,
        remarks=remarks,
    )
