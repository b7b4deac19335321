"""What ranks items, column by column, beside the tree: a search reads it instead of payloads.

The engine takes six times as long to read three payload fields of a point as to find and score it
(docs/experiments.md). Points that are newer than the table are asked of the store all the same.
The file is mapped, 33 bytes an item. Shape legend: N items, C candidates.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cart_qdrant.arrays.mmap import map_arrays
from cart_qdrant.arrays.point_ids import KEY_BYTES
from cart_qdrant.arrays.types import AnyArray, FloatArray, IndexArray, KeyArray
from cart_qdrant.errors import MismatchError

KINDS = ("image", "video", "audio")
"""Modalities in the order of their numbers in the table."""
NO_KIND = len(KINDS)


def kind_number(modality: object) -> int:
    """Place of a modality in `KINDS`; `NO_KIND` for anything else."""
    return KINDS.index(modality) if modality in KINDS else NO_KIND


def file_number(path: str) -> int:
    """A number that two files do not share (64 bits of a hash)."""
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "big")


def places_in(sorted_N: AnyArray, wanted_C: AnyArray) -> IndexArray:
    """Where each value (C,) is among distinct ones in order (N,); -1 where it is not."""
    if len(sorted_N) == 0:
        return np.full(len(wanted_C), -1, dtype=np.intp)
    place_C = sorted_N.searchsorted(wanted_C)
    place_C[place_C == len(sorted_N)] = 0
    place_C[sorted_N.take(place_C) != wanted_C] = -1
    return place_C


@dataclass(frozen=True, slots=True)
class ItemTable:
    """One row an item, in order of its point id.

    Attributes:
        key_N: Point ids, see `point_ids.keys_of`.
        leaf_N: Which identifier of the tree each has, in the tree's order.
        kind_N: Modality, a place in `KINDS`, or `NO_KIND`.
        file_N: `file_number` of the path.
        caption_hub_N: Hubness of the caption vector; NaN where it is not known.
    """

    key_N: KeyArray
    leaf_N: npt.NDArray[np.int32]
    kind_N: npt.NDArray[np.uint8]
    file_N: npt.NDArray[np.uint64]
    caption_hub_N: FloatArray

    @classmethod
    def build(
        cls,
        key_N: KeyArray,
        leaf_N: AnyArray,
        kind_N: AnyArray,
        file_N: AnyArray,
        caption_hub_N: AnyArray,
    ) -> ItemTable:
        """Of items in any order; those whose keys are equal (a number and a UUID) are left out."""
        order: IndexArray = np.arange(len(key_N))
        if not (key_N[1:] > key_N[:-1]).all():  # a store gives its points in order
            order = np.argsort(key_N, kind="stable")
            twice = np.flatnonzero(key_N[order][1:] == key_N[order][:-1])
            order = np.delete(order, np.union1d(twice, twice + 1))
        return cls(
            key_N[order], leaf_N[order].astype(np.int32), kind_N[order].astype(np.uint8),
            file_N[order].astype(np.uint64), caption_hub_N[order].astype(np.float32),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.key_N)

    def rows(self, key_C: KeyArray) -> IndexArray:
        """Row of each key (C,); -1 where there is none."""
        return places_in(self.key_N, key_C)

    @property
    def nbytes(self) -> int:
        """Bytes of all columns."""
        return sum(array.nbytes for array in self._arrays().values())

    def _arrays(self) -> dict[str, AnyArray]:
        return {
            "key": self.key_N.view(np.uint8).reshape(-1, KEY_BYTES),
            "leaf": self.leaf_N, "kind": self.kind_N, "file": self.file_N,
            "caption_hub": self.caption_hub_N,
        }  # fmt: skip

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        from safetensors.numpy import save_file

        save_file(self._arrays(), path)

    @classmethod
    def load(cls, path: Path) -> ItemTable:
        """Inverse of `save`, without reading the columns.

        Raises:
            MismatchError: The file is no table, or cut short.
        """
        arrays = map_arrays(path)
        try:
            key_N = arrays["key"].reshape(-1).view(f"S{KEY_BYTES}")
            columns = [arrays[name] for name in ("leaf", "kind", "file", "caption_hub")]
        except (KeyError, ValueError) as error:
            raise MismatchError(f"{path} is no table of items: {error}.") from error
        if any(len(column) != len(key_N) for column in columns):
            raise MismatchError(f"{path} is no table of items: its columns differ in length.")
        return cls(key_N, *columns)
