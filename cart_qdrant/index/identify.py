"""Identifiers in the index: fit, assign to new points, renew without an interruption, report."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cart_qdrant.arrays.mmap import map_arrays
from cart_qdrant.arrays.point_ids import key_of
from cart_qdrant.arrays.spill import RowWriter
from cart_qdrant.arrays.types import FloatArray, IntArray
from cart_qdrant.errors import MismatchError, StoreError
from cart_qdrant.files import draft_path, file_hash, load_arrays, rename_durably, save_arrays
from cart_qdrant.identifiers.codec import (
    Codec,
    Counters,
    IdentifierConfig,
    LevelReport,
    fit_codec,
    level_reports,
    unique_ratio,
)
from cart_qdrant.identifiers.fit import distinct_rows
from cart_qdrant.identifiers.hubness import CAPTION as CAPTION_BANK
from cart_qdrant.identifiers.hubness import QueryBank, media_space
from cart_qdrant.identifiers.item_table import ItemTable, file_number, kind_number
from cart_qdrant.identifiers.trie import FreeCounters, Trie
from cart_qdrant.index.index import Index, identifier_fields
from cart_qdrant.index.manifest import Artifact, IdentifierInfo
from cart_qdrant.records import Identifier
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.protocol import CAPTION, MEDIA, Store

BLOCK = 2_000
"""Points read, coded and written together."""
ENCODED = 65_536
"""Vectors copied out of all to be coded."""
DRIFT = 1.25
"""Reconstruction error of new items over that at fitting from which renewal is advised."""
GROWN = 2
"""Growth since fitting from which identifiers are renewed while nothing depends on them."""
OUTGROWN = 4
"""Growth of the collection since fitting from which renewal is advised."""


@dataclass(frozen=True, slots=True)
class Vectors:
    """All media vectors of an index in order of id.

    Attributes:
        ids: Point ids.
        x_ND: Unit vectors; many lie in a file, see `RowWriter`.
        spaces: Space of each (N,).
        folder: Where that file is; None keeps parts of them in memory.
    """

    ids: list[str]
    x_ND: FloatArray
    spaces: npt.NDArray[np.str_]
    folder: Path | None = None

    def by_space(self) -> dict[str, FloatArray]:
        """Vectors of each space that has items."""
        names = [str(s) for s in np.unique(self.spaces)]
        if len(names) == 1:
            return {names[0]: self.x_ND}
        return {name: self._part(np.flatnonzero(self.spaces == name)) for name in names}

    def _part(self, places: npt.NDArray[np.intp]) -> FloatArray:
        rows = RowWriter(self.x_ND.shape[1], self.folder)
        for begin in range(0, len(places), BLOCK):
            rows.add(self.x_ND[places[begin : begin + BLOCK]])
        return rows.array()


def vector_of(record: qdrant.AnyRecord, name: str = MEDIA) -> list[float] | None:
    """One named dense vector of a record, if it has it."""
    vectors = record.vector
    if not isinstance(vectors, dict):
        return None
    found = vectors.get(name)
    return found if isinstance(found, list) else None  # type: ignore[return-value]


def is_ours() -> qdrant.Filter:
    """Points of ours: a shared collection may hold others."""
    return qdrant.Filter(must_not=[_lacks("hash")])


def _lacks(key: str) -> qdrant.IsEmptyCondition:
    return qdrant.IsEmptyCondition(is_empty=qdrant.PayloadField(key=key))


def read_vectors(index: Index) -> Vectors:
    """Read every media vector, 4 D bytes an item; many into the index's work folder, not memory.

    Raises:
        StoreError: There is no room for them.
    """
    dim = index.manifest.embedder.dim
    ids: list[str] = []
    spaces: list[str] = []
    read = RowWriter(dim, index.folder.work)
    found = index.store.scroll(is_ours(), with_payload=["modality"], with_vectors=[MEDIA])
    for chunk in in_blocks(found):
        rows: list[list[float]] = []
        for record in chunk:
            vector = vector_of(record)
            space = index.space((record.payload or {}).get("modality", ""))
            if vector is not None and space is not None:
                ids.append(str(record.id))
                spaces.append(space)
                rows.append(vector)
        read.add(np.asarray(rows, dtype=np.float32).reshape(-1, dim))
    return Vectors(ids, read.array(), np.asarray(spaces, dtype=np.str_), index.folder.work)


def in_blocks(records: Iterable[qdrant.AnyRecord]) -> Iterator[list[qdrant.AnyRecord]]:
    """Points in lists of `BLOCK`."""
    source = iter(records)
    while chunk := list(islice(source, BLOCK)):
        yield chunk


def load_codec(index: Index, *, mapped: bool = False) -> Codec | None:
    """The code books in force, or None before the first fit.

    Args:
        mapped: Whether they are read, for decoding alone, as they are looked at.
    """
    info = index.manifest.identifiers
    if info is None:
        return None
    path = index.folder.path(info.books)
    return Codec.from_arrays(map_arrays(path) if mapped else load_arrays(path), info.meta)


def load_trie(index: Index) -> Trie | None:
    """The prefix tree in force, or None before the first fit; it is read as it is walked.

    Raises:
        MismatchError: The file is missing, cut short, or holds another number of identifiers.
    """
    info = index.manifest.identifiers
    if info is None:
        return None
    path = index.folder.path(info.trie)
    trie = Trie.load(path)
    if len(trie) != info.count:
        raise MismatchError(
            f"{path} holds {len(trie)} identifiers, but the manifest says {info.count}.",
            "Mend: `cartq doctor --fix`.",
        )
    return trie


def load_table(index: Index) -> ItemTable | None:
    """What ranks the items; None before the first fit, and in an index of an older version.

    Raises:
        MismatchError: The file is missing, or cut short.
    """
    info = index.manifest.identifiers
    if info is None or info.items is None:
        return None
    return ItemTable.load(index.folder.path(info.items))


def encode(codec: Codec, x_ND: FloatArray, spaces: npt.NDArray[np.str_]) -> IntArray:
    """Codes (N, L) of vectors of mixed spaces; rows of a space without a quantiser are -1."""
    out = np.full((len(x_ND), codec.levels), -1, dtype=np.int32)
    for space, quantizer in codec.quantizers.items():
        rows = np.flatnonzero(spaces == space)
        for begin in range(0, len(rows), ENCODED):
            some = rows[begin : begin + ENCODED]
            out[some] = quantizer.encode(x_ND[some])
    return out


def write_identifiers(
    store: Store, field: str, ids: Sequence[str], codes_NL: IntArray, counters: Counters
) -> IntArray:
    """Store identifiers in the payload; returns them whole (N, L + 1)."""
    rows = counters.complete(codes_NL)
    for begin in range(0, len(ids), BLOCK):
        updates: list[tuple[str, Mapping[str, Any]]] = []
        for n in range(begin, min(begin + BLOCK, len(ids))):
            *codes, u = rows[n].tolist()
            identifier = Identifier(tuple(codes), u)
            updates.append((ids[n], {field: identifier.to_payload()}))
        store.set_payload(updates)
    return rows


def write_hubness(
    index: Index,
    field: str,
    bank: QueryBank,
    which: qdrant.Filter,
    tell: Callable[[str, Mapping[str, float]], None] | None = None,
) -> None:
    """Store the hubness of points beside their identifier, see `querybank`.

    Args:
        field: Payload field of the identifiers.
        which: Points that have an identifier there.
        tell: Is told each point, when it is written, and its hubness by vector.
    """
    names = [MEDIA, CAPTION]
    found = index.store.scroll(which, with_payload=["modality", field], with_vectors=names)
    for chunk in in_blocks(found):
        hubs: list[dict[str, float]] = [{} for _ in chunk]
        wanted: dict[str, list[tuple[int, str, list[float]]]] = {}
        for n, record in enumerate(chunk):
            space = index.space((record.payload or {}).get("modality", ""))
            media, caption = vector_of(record), vector_of(record, CAPTION)
            if media is not None and space is not None:
                wanted.setdefault(media_space(space), []).append((n, "media", media))
            if caption is not None:
                wanted.setdefault(CAPTION_BANK, []).append((n, "caption", caption))
        for space, rows in wanted.items():
            h_N = bank.hubness(np.asarray([x for _, _, x in rows], dtype=np.float32), space)
            for (n, name, _), h in zip(rows, h_N.tolist(), strict=True):
                if h == h:  # a space without a bank has none
                    # Few digits: the store gives those back exactly.
                    hubs[n][name] = round(h, 5)
        index.store.set_payload(
            [
                (str(record.id), {field: {**(record.payload or {})[field], "hub": hub}})
                for record, hub in zip(chunk, hubs, strict=True)
            ]
        )
        if tell is not None:
            for record, hub in zip(chunk, hubs, strict=True):
                tell(str(record.id), hub)


class _NamedItems:
    """What the payloads of points with an identifier say, in growing arrays: lists would take
    gigabytes."""

    def __init__(self, levels: int, *, bare: bool) -> None:
        self._depth, self._keeps_bare = levels + 1, bare
        self._keys, self._kinds = bytearray(), bytearray()
        self._codes, self._files = array("i"), array("Q")
        self._hubs = {"media": array("f"), "caption": array("f")}
        self.bare: dict[str, int] = {}
        """Places of points whose hubness is not stored, if asked for: it has no payload index to
        find them by."""

    @classmethod
    def read(cls, index: Index, field: str, levels: int, *, bare: bool = False) -> _NamedItems:
        """Those of a payload field."""
        items = cls(levels, bare=bare)
        wanted = ["modality", "path", field]
        for record in index.store.scroll(is_named(field), with_payload=wanted):
            payload = record.payload or {}
            cart = payload[field]
            items.add(
                str(record.id), (*cart["codes"], cart["disambiguation"]), payload, cart.get("hub")
            )
        return items

    def add(
        self,
        id: str,
        row_L: Sequence[int],
        payload: Mapping[str, Any],
        hub: Mapping[str, float] | None = None,
    ) -> None:
        """One more, with what its payload says besides."""
        if hub is None and self._keeps_bare:
            self.bare[id] = len(self._kinds)
        self._keys += key_of(id)
        self._kinds.append(kind_number(payload.get("modality")))
        self._files.append(file_number(payload.get("path", id)))
        self._codes.extend(row_L)
        for name, values in self._hubs.items():
            values.append((hub or {}).get(name, np.nan))

    def set_hub(self, id: str, hub: Mapping[str, float]) -> None:
        """The hubness of one that had none."""
        place = self.bare.pop(id)
        for name, values in self._hubs.items():
            values[place] = hub.get(name, np.nan)

    def counters(self) -> FreeCounters:
        """Next free counter of each semantic part."""
        return self._tree().counters()

    def _rows(self) -> IntArray:
        return np.asarray(self._codes, dtype=np.int32).reshape(-1, self._depth)

    def _tree(self) -> Trie:
        return Trie.build(self._rows(), self._depth, np.asarray(self._hubs["media"]))

    def finish(self) -> tuple[Trie, ItemTable]:
        """The tree of all identifiers, and what ranks their items."""
        trie = self._tree()
        table = ItemTable.build(
            np.frombuffer(self._keys, dtype="S16"), trie.nodes(self._rows()),
            np.frombuffer(self._kinds, dtype=np.uint8), np.asarray(self._files, dtype=np.uint64),
            np.asarray(self._hubs["caption"]),
        )  # fmt: skip
        return trie, table


def is_named(field: str) -> qdrant.Filter:
    """Points of ours that have an identifier in a payload field."""
    return qdrant.Filter(must_not=[_lacks(f"{field}.id"), _lacks("hash")])


def _save(index: Index, kind: str, part: Trie | ItemTable) -> Artifact:
    draft = draft_path(index.folder.work, kind)
    part.save(draft)
    digest = file_hash(draft)
    name = f"{kind}-{digest[:12]}.safetensors"
    rename_durably(draft, index.folder.root / name)
    return Artifact(name, digest)


def prepare(
    index: Index,
    vectors: Vectors,
    codec: Codec,
    bank: QueryBank | None = None,
) -> IdentifierInfo:
    """Write new identifiers under the next payload field; nothing reads them until the flip.

    Args:
        vectors: All items.
        codec: Fitted on every space that has items.
        bank: Queries by which hubness is measured; without, none is stored.

    Returns:
        What to put into the manifest, alone or with a generator, see `adopt`.
    """
    current = index.manifest.identifiers
    version = 1 if current is None else current.version + 1
    field = index.key if version == 1 else f"{index.key}_{version}"
    for name in identifier_fields(field):
        index.store.create_keyword_index(name)
    if index.attachment is not None:
        _check_free(index, field)
    codes = encode(codec, vectors.x_ND, vectors.spaces)
    write_identifiers(index.store, field, vectors.ids, codes, Counters())
    if bank is not None:
        write_hubness(index, field, bank, is_named(field))
    trie, table = _NamedItems.read(index, field, codec.levels).finish()
    index.store.flush()
    name = f"identifiers-{version}.safetensors"
    folder = index.folder
    books = Artifact(name, save_arrays(folder.root / name, codec.to_arrays(), folder.work))
    return IdentifierInfo(
        version=version,
        field=field,
        books=books,
        trie=_save(index, "trie", trie),
        items=_save(index, "items", table),
        meta=codec.to_meta(),
        levels=codec.levels,
        count=len(trie),
        unique_ratio=unique_ratio(codes),
    )


def _check_free(index: Index, field: str) -> None:
    """Refuse to write over a payload field of others.

    Raises:
        StoreError: Some points have it, and it holds no identifier.
    """
    theirs = qdrant.Filter(must=[_lacks(f"{field}.id"), is_ours()], must_not=[_lacks(field)])
    try:
        count = index.store.count(theirs)
    except StoreError:
        return  # the server takes no condition on a field without an index; `attach` has looked
    if count:
        raise StoreError(
            f"{count} points of {index.store.location} have a payload field {field!r} that holds "
            "no identifier.",
            "Attach again with another --key.",
        )


def adopt(index: Index, info: IdentifierInfo) -> None:
    """Flip to prepared identifiers. A trained generator goes: it writes the old ones.

    The old payload field stays until the next run that writes (`remove_stale`), so that a search
    which has the old manifest open still finds what it names.
    """
    old = index.manifest.identifiers
    stale = [*index.manifest.stale_fields, *([old.field] if old is not None else [])]
    index.put(replace(index.manifest, identifiers=info, generator=None, stale_fields=stale))


def remove_stale(index: Index) -> None:
    """Remove payload fields of older identifiers; a crash in between leaves it for next time."""
    if not index.manifest.stale_fields:
        return
    for field in index.manifest.stale_fields:
        index.store.delete_payload_key(field)
        for name in identifier_fields(field):
            index.store.drop_index(name)
    index.store.flush()
    index.put(replace(index.manifest, stale_fields=[]))


def refit(index: Index, config: IdentifierConfig | None = None) -> IdentifierInfo | None:
    """Fit identifiers on all items and flip to them; None when there is no item."""
    remove_stale(index)
    vectors = read_vectors(index)
    if not vectors.ids:
        return None
    info = prepare(index, vectors, fit_codec(vectors.by_space(), config))
    adopt(index, info)
    return info


def fitted_on(info: IdentifierInfo) -> int:
    """Items that the code books were fitted on."""
    return sum(int(one["fitted_on"]) for one in info.meta.values())


def summary(info: IdentifierInfo) -> dict[str, Any]:
    """What reports tell of identifiers."""
    return {
        "unique_ratio": round(info.unique_ratio, 4),
        "levels": info.levels,
        "count": info.count,
        "fitted_on": fitted_on(info),
    }


def bring_in_step(index: Index) -> int:
    """Identifiers for new points; all anew where the collection has outgrown its code books and
    nothing depends on them yet.

    Returns:
        How many items stay without an identifier.
    """
    info = index.manifest.identifiers
    if (
        info is not None
        and index.manifest.generator is None
        and index.store.count(is_ours()) > GROWN * fitted_on(info)
    ):
        refit(index)
        return 0
    return assign_new(index)


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


def assign_new(index: Index) -> int:
    """Give every point an identifier that has none, and bring the tree in step with the points.

    The tree is made anew from the payload, since a killed run may have left them apart. Items of
    a space that had none at fitting need new code books: they are fitted at once, unless a
    generator was trained, which would be lost.

    Returns:
        How many items stay without an identifier.
    """
    info = index.manifest.identifiers
    if info is None:
        refit(index)
        return 0
    codec = load_codec(index)
    assert codec is not None
    store = index.store
    missing = qdrant.Filter(must=[_lacks(f"{info.field}.id")], must_not=[_lacks("hash")])
    bank = index.query_bank()
    items = _NamedItems.read(index, info.field, info.levels, bare=bank is not None)
    counters = Counters(items.counters())
    unnamed = 0
    wanted = ["modality", "path"]
    for chunk in in_blocks(store.scroll(missing, with_payload=wanted, with_vectors=[MEDIA])):
        x = np.asarray([vector_of(r) for r in chunk], dtype=np.float32)
        spaces = np.asarray([index.space((r.payload or {})["modality"]) or "" for r in chunk])
        codes = encode(codec, x, spaces)
        known = codes[:, 0] >= 0
        # Of a kind that the embedder does not know there never are any: no reason to fit anew.
        unnamed += int((~known & (spaces != "")).sum())
        kept = [record for record, ok in zip(chunk, known, strict=True) if ok]
        ids = [str(record.id) for record in kept]
        rows = write_identifiers(store, info.field, ids, codes[known], counters)
        for id, record, row in zip(ids, kept, rows.tolist(), strict=True):
            items.add(id, row, record.payload or {})
    if unnamed and index.manifest.generator is None:
        refit(index)
        return 0
    bare = list(items.bare)
    if bank is not None:
        for begin in range(0, len(bare), BLOCK):
            some = qdrant.HasIdCondition(has_id=bare[begin : begin + BLOCK])
            which = qdrant.Filter(must=[some])
            write_hubness(index, info.field, bank, which, items.set_hub)
    store.flush()
    trie, table = items.finish()
    written = replace(
        info, trie=_save(index, "trie", trie), items=_save(index, "items", table),
        count=len(trie), unique_ratio=trie.unique_ratio,
    )  # fmt: skip
    if (written.trie, written.items) != (info.trie, info.items):
        index.put(replace(index.manifest, identifiers=written))
    return unnamed


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
    stored = index.store.count(is_named(info.field))
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
