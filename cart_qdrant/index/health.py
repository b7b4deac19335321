"""Measures how good the identifiers of an index are, and says what to do about it.

Shape legend: N items, D vector width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cart_qdrant.arrays.types import IntArray
from cart_qdrant.arrays.vectors import unique_ratio
from cart_qdrant.identifiers.codec import LevelReport, level_reports
from cart_qdrant.identifiers.fit import distinct_rows
from cart_qdrant.identifiers.parts import uncaptioned
from cart_qdrant.identifiers.quantizer import Codec
from cart_qdrant.identifiers.trie import Trie
from cart_qdrant.index.collection import TEXT_DIM
from cart_qdrant.index.identifier_files import load_codec, load_trie
from cart_qdrant.index.identifier_writes import ENCODED, Errors, encode
from cart_qdrant.index.identify import GROWN, fitted_on
from cart_qdrant.index.index import Index
from cart_qdrant.index.manifest import IdentifierInfo
from cart_qdrant.index.points import Vectors, has_identifier, read_captions, read_vectors

DRIFT = 1.25
"""Reconstruction error of the items, divided by that at fitting, from which a refit is advised."""
OUTGROWN = 4
"""Growth of a space since fitting from which a refit is advised."""
UNIQUE = 0.95
"""Least unique-identifier ratio, times the share of distinct vectors."""
FEW = 20
"""Items below which statistics of identifiers are unreliable."""


@dataclass(frozen=True, slots=True)
class Health:
    """How good the identifiers are, and what to do about it.

    Attributes:
        unique_ratio: Share of items whose semantic part is unique.
        levels: Use of each level's codes.
        clashes: Items that share their semantic part with an earlier item.
        duplicates: Items whose vector equals that of an earlier item: these must clash.
        error: Relative reconstruction error now, per identifier space.
        fitted_error: Relative reconstruction error at fitting, likewise.
        fitted_on: Number of items at fitting, likewise.
        items: Number of items now.
        complete: Whether every item has an identifier, and the tree has all of them.
        problems: What is wrong, each with its remedy; empty if nothing is.
        remarks: What is worth knowing, but not wrong.
    """

    unique_ratio: float
    levels: list[LevelReport]
    clashes: int
    duplicates: int
    error: dict[str, float]
    fitted_error: dict[str, float]
    fitted_on: dict[str, int]
    items: int
    complete: bool
    problems: list[str]
    remarks: list[str]

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class KnownHealth:
    """What manifest and prefix tree know of the identifiers; no vector and no payload is read.

    Attributes:
        unique_ratio: Share of items whose semantic part is unique.
        levels: Number of semantic levels.
        items: Number of items that have an identifier.
        clashes: Items that share their semantic part with an earlier item.
        sizes: Number of items now, per identifier space.
        fitted_on: Number of items at fitting, likewise.
        problems: What is wrong, each with its remedy; empty if nothing is known to be.
        remarks: What is worth knowing, but not wrong.
    """

    unique_ratio: float
    levels: int
    items: int
    clashes: int
    sizes: dict[str, int]
    fitted_on: dict[str, int]
    problems: list[str]
    remarks: list[str]

    @property
    def fitted_on_items(self) -> int:
        """Number of items at fitting: the code books of the media spaces know all of them."""
        return sum(count for name, count in self.fitted_on.items() if name == uncaptioned(name))


def known_health(index: Index) -> KnownHealth | None:
    """The health that is known without a look at the points, see `check`; None before the first
    fit."""
    info, trie = index.manifest.identifiers, load_trie(index)
    if info is None or trie is None:
        return None
    sizes = _sizes(trie, {space: int(one["offset"]) for space, one in info.meta.items()})
    fitted = {space: int(one["fitted_on"]) for space, one in info.meta.items()}
    repair = _repair(index)
    problems = [
        f"{space}: fitted on {fitted[space]} items, but there are {size}. {repair}"
        for space, size in sizes.items()
        if size > OUTGROWN * fitted[space]
    ]
    remarks = _remarks(info.count, copies=0)
    if info.unique_ratio < UNIQUE and info.count >= FEW:
        remarks.append(
            f"The unique-identifier ratio is {info.unique_ratio:.3f}; `cartq doctor` finds out "
            "whether exact copies are the reason."
        )
    clashes = info.count - round(info.unique_ratio * info.count)
    return KnownHealth(
        info.unique_ratio, info.levels, info.count, clashes, sizes, fitted, problems, remarks
    )


def _sizes(trie: Trie, offsets: dict[str, int]) -> dict[str, int]:
    """Number of identifiers of each identifier space, whose coarse codes begin at its offset."""
    spaces = sorted(offsets, key=offsets.__getitem__)
    begins = trie.leaf_begins()
    nodes = trie.levels[0].tokens.searchsorted([offsets[space] for space in spaces])
    first = [*begins[nodes].tolist(), len(trie)]
    return {space: first[n + 1] - first[n] for n, space in enumerate(spaces)}


def _repair(index: Index) -> str:
    trained = index.manifest.generator is not None
    return f"Refit the identifiers: `{'cartq train' if trained else 'cartq doctor --fix'}`."


def check(index: Index, min_unique_ratio: float = UNIQUE) -> Health | None:
    """Measure the identifiers in force; None before the first fit.

    Reads all media vectors, and the caption vectors where identifiers are made of them.
    """
    info = index.manifest.identifiers
    codec = load_codec(index)
    if info is None or codec is None:
        return None
    vectors = read_vectors(index)
    codes, errors = _measured(index, codec, vectors)
    error, sizes = errors.relative(), errors.sizes
    items, distinct = len(codes), len(distinct_rows(vectors.x_ND))
    ratio = unique_ratio(codes)
    repair = _repair(index)
    wanted = min_unique_ratio * (distinct / items if items else 1.0)
    problems: list[str] = []
    if ratio < wanted:
        problems.append(f"The unique-identifier ratio is {ratio:.3f}, below {wanted:.3f}. {repair}")
    problems += _space_problems(codec, sizes, error, repair)
    incomplete = _count_problems(index, info, items)
    problems += incomplete
    return Health(
        unique_ratio=ratio,
        levels=level_reports(codes, [codec.coarse, *([codec.codes] * (codec.levels - 1))]),
        clashes=items - len(np.unique(codes, axis=0)) if items else 0,
        duplicates=items - distinct,
        error=error,
        fitted_error={space: q.error for space, q in codec.quantizers.items()},
        fitted_on={space: q.fitted_on for space, q in codec.quantizers.items()},
        items=items,
        complete=not incomplete,
        problems=problems,
        remarks=_remarks(items, copies=items - distinct),
    )


def _measured(index: Index, codec: Codec, vectors: Vectors) -> tuple[IntArray, Errors]:
    """Codes (N, L) of all items, and how well they stand for them."""
    codes_NL, errors = np.empty((len(vectors.ids), codec.levels), np.int32), Errors(codec)
    for begin in range(0, len(codes_NL), ENCODED):
        some = slice(begin, begin + ENCODED)
        x_BD, spaces = vectors.x_ND[some], vectors.spaces[some]
        caption_BW = np.zeros((len(x_BD), TEXT_DIM), np.float32)
        if codec.reads_captions:
            caption_BW = read_captions(index, vectors.ids[some], index.caption_vector)
        codes_NL[some] = encode(codec, x_BD, spaces, caption_BW)
        errors.add(x_BD, spaces, caption_BW, codes_NL[some])
    return codes_NL, errors


def _space_problems(
    codec: Codec, sizes: dict[str, int], error: dict[str, float], repair: str
) -> list[str]:
    """Identifier spaces whose items the codebooks no longer fit."""
    problems = []
    for space, size in sizes.items():
        if space not in error:
            problems.append(f"The space {space!r} has {size} items, but no identifiers. {repair}")
            continue
        quantizer = codec.quantizers[space]
        if size > OUTGROWN * quantizer.fitted_on:
            problems.append(
                f"{space}: fitted on {quantizer.fitted_on} items, but there are {size}. {repair}"
            )
        elif size >= FEW and error[space] > DRIFT * max(quantizer.error, 0.05):
            problems.append(
                f"{space}: the reconstruction error is {error[space]:.3f}, but was "
                f"{quantizer.error:.3f} at fitting (drift). {repair}"
            )
    return problems


def _count_problems(index: Index, info: IdentifierInfo, items: int) -> list[str]:
    stored = index.store.count(has_identifier(info.field))
    if stored == info.count == items:
        return []
    return [
        f"There are {items} items, {stored} identifiers stored and {info.count} in the prefix "
        "tree. Run `cartq doctor --fix`."
    ]


def _remarks(items: int, copies: int) -> list[str]:
    remarks = []
    if items < FEW:
        remarks.append(f"{items} items: identifier statistics are unreliable below {FEW}.")
    if copies:
        are = "item is an exact copy" if copies == 1 else "items are exact copies"
        remarks.append(f"{copies} {are} of another item's vector.")
    return remarks


def advice(index: Index, without: int) -> list[str]:
    """Remarks for the user after `update_identifiers`.

    Args:
        index: Open index.
        without: Number of items that stayed without an identifier.
    """
    info = index.manifest.identifiers
    if without:
        return [
            f"{without} items have a modality that no item had when the identifiers were fitted: "
            "they have no identifier and are found by their vectors alone until `cartq train`"
        ]
    if info is not None and info.count > GROWN * fitted_on(info):
        return [
            f"identifiers were fitted on {fitted_on(info)} items, now there are {info.count}: "
            "refit them with `cartq train`"
        ]
    return []
