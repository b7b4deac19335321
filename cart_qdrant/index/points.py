"""Which points of a collection belong to the index, and their vectors.

Shape legend: N points, D vector width, W caption vector width.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cart_qdrant.arrays.spill import SpillBuffer
from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.identifiers.item_table import file_number, modality_number
from cart_qdrant.index.collection import TEXT_DIM
from cart_qdrant.index.index import Index
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.protocol import MEDIA

BLOCK = 2_000
"""Points that are read and written together."""


def is_ours() -> qdrant.Filter:
    """Points of the index; a collection may hold others."""
    return qdrant.Filter(must_not=[lacks("hash")])


def has_identifier(field: str) -> qdrant.Filter:
    """Points of the index that have an identifier in a payload field."""
    return qdrant.Filter(must_not=[lacks(f"{field}.id"), lacks("hash")])


def lacks(key: str) -> qdrant.IsEmptyCondition:
    """Points whose payload has no value under a key."""
    return qdrant.IsEmptyCondition(is_empty=qdrant.PayloadField(key=key))


def vector_of(record: qdrant.AnyRecord, name: str = MEDIA) -> list[float] | None:
    """A named dense vector of a record; None where the record lacks it."""
    vectors = record.vector
    if not isinstance(vectors, dict):
        return None
    found = vectors.get(name)
    return found if isinstance(found, list) else None  # type: ignore[return-value]


def caption_rows(found: Sequence[Sequence[float] | None]) -> FloatArray:
    """Caption vectors (N, W) of N items; zero where an item has none."""
    out_NW = np.zeros((len(found), TEXT_DIM), dtype=np.float32)
    for n, caption in enumerate(found):
        if caption is not None:
            out_NW[n] = caption
    return out_NW


def read_captions(index: Index, ids: Sequence[str], slot: str) -> FloatArray:
    """Caption vectors (N, W) of points by their ids; zero where a point has none.

    Args:
        slot: Vector that holds the captions.
    """
    out_NW = np.zeros((len(ids), TEXT_DIM), dtype=np.float32)
    for begin in range(0, len(ids), BLOCK):
        some = ids[begin : begin + BLOCK]
        found = index.store.retrieve(some, with_payload=False, with_vectors=[slot])
        by_id = {str(record.id): vector_of(record, slot) for record in found}
        out_NW[begin : begin + len(some)] = caption_rows([by_id.get(one) for one in some])
    return out_NW


def in_blocks(records: Iterable[qdrant.AnyRecord]) -> Iterator[list[qdrant.AnyRecord]]:
    """Records in lists of `BLOCK`."""
    source = iter(records)
    while chunk := list(islice(source, BLOCK)):
        yield chunk


@dataclass(frozen=True, slots=True)
class Vectors:
    """All media vectors of an index, in order of id.

    Attributes:
        ids: Point ids.
        x_ND: Unit vectors; in a memory-mapped file if they are many, see `SpillBuffer`.
        spaces: Space of each vector (N,).
        modality_N: Number of each item's modality, see `modality_number`.
        file_N: Number of each item's file, see `file_number`.
        folder: Folder of that file; None keeps the vectors of each space in memory.
    """

    ids: list[str]
    x_ND: FloatArray
    spaces: npt.NDArray[np.str_]
    modality_N: npt.NDArray[np.uint8]
    file_N: npt.NDArray[np.uint64]
    folder: Path | None = None

    def by_space(self) -> dict[str, FloatArray]:
        """Vectors of each space that has items."""
        names = [str(s) for s in np.unique(self.spaces)]
        if len(names) == 1:
            return {names[0]: self.x_ND}
        return {name: self._part(np.flatnonzero(self.spaces == name)) for name in names}

    def _part(self, numbers: npt.NDArray[np.intp]) -> FloatArray:
        rows = SpillBuffer(self.x_ND.shape[1], self.folder)
        for begin in range(0, len(numbers), BLOCK):
            rows.add(self.x_ND[numbers[begin : begin + BLOCK]])
        return rows.array()


def read_vectors(index: Index) -> Vectors:
    """Read every media vector: 4 D bytes an item, in the work folder rather than in memory if
    they are many.

    Raises:
        StoreError: The disk has no room for them.
    """
    dim = index.manifest.embedder.dim
    ids: list[str] = []
    spaces: list[str] = []
    modalities, files = bytearray(), array("Q")
    read = SpillBuffer(dim, index.folder.work)
    found = index.store.scroll(is_ours(), with_payload=["modality", "path"], with_vectors=[MEDIA])
    for chunk in in_blocks(found):
        rows: list[list[float]] = []
        for record in chunk:
            vector, payload = vector_of(record), record.payload or {}
            space = index.space(payload.get("modality", ""))
            if vector is not None and space is not None:
                ids.append(str(record.id))
                spaces.append(space)
                modalities.append(modality_number(payload.get("modality")))
                files.append(file_number(payload.get("path", str(record.id))))
                rows.append(vector)
        read.add(np.asarray(rows, dtype=np.float32).reshape(-1, dim))
    return Vectors(
        ids, read.array(), np.asarray(spaces, dtype=np.str_), np.frombuffer(modalities, np.uint8),
        np.asarray(files, np.uint64), index.folder.work,
    )  # fmt: skip
