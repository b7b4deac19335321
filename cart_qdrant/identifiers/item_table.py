"""The item table: the item features that rank items, as columns that a search reads, not payloads.

Reading three payload fields of a point takes the store six times as long as finding and scoring the
point (docs/experiments.md). Points that are newer than the table are read from the store. The file
is memory-mapped and has 33 bytes per item. Shape legend: N items, C candidates.
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
from cart_qdrant.files import disk_errors

MODALITIES = ("image", "video", "audio")
"""Modalities in the order of their numbers in the table."""
NO_MODALITY = len(MODALITIES)


def modality_number(modality: object) -> int:
    """Position of a modality in `MODALITIES`; `NO_MODALITY` for anything else."""
    return MODALITIES.index(modality) if modality in MODALITIES else NO_MODALITY


def file_number(path: str) -> int:
    """A 64-bit hash of the path of a file, which in practice no two files share."""
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "big")


def positions_in(sorted_N: AnyArray, wanted_C: AnyArray) -> IndexArray:
    """Position (C,) of each wanted value in sorted distinct values (N,); -1 where it is missing."""
    if len(sorted_N) == 0:
        return np.full(len(wanted_C), -1, dtype=np.intp)
    position_C = sorted_N.searchsorted(wanted_C)
    position_C[position_C == len(sorted_N)] = 0
    position_C[sorted_N.take(position_C) != wanted_C] = -1
    return position_C


@dataclass(frozen=True, slots=True)
class ItemTable:
    """Columns with one row for each item, sorted by the keys of the point ids.

    Attributes:
        key_N: Keys of the point ids, as `point_ids.keys_of` makes them.
        leaf_N: Position of the item's identifier in the tree.
        modality_N: Position of the modality in `MODALITIES`, or `NO_MODALITY`.
        file_N: `file_number` of the path.
        caption_hub_N: Hubness of the caption vector; NaN where it is not known.
    """

    key_N: KeyArray
    leaf_N: npt.NDArray[np.int32]
    modality_N: npt.NDArray[np.uint8]
    file_N: npt.NDArray[np.uint64]
    caption_hub_N: FloatArray

    @classmethod
    def build(
        cls,
        key_N: KeyArray,
        leaf_N: AnyArray,
        modality_N: AnyArray,
        file_N: AnyArray,
        caption_hub_N: AnyArray,
    ) -> ItemTable:
        """Build the table of items in any order.

        A number and a UUID may have equal keys; items with equal keys are left out.
        """
        order: IndexArray = np.arange(len(key_N))
        if not (key_N[1:] > key_N[:-1]).all():  # stores usually return points in order
            order = np.argsort(key_N, kind="stable")
            twice = np.flatnonzero(key_N[order][1:] == key_N[order][:-1])
            order = np.delete(order, np.union1d(twice, twice + 1))
        return cls(
            key_N[order], leaf_N[order].astype(np.int32), modality_N[order].astype(np.uint8),
            file_N[order].astype(np.uint64), caption_hub_N[order].astype(np.float32),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.key_N)

    def rows(self, key_C: KeyArray) -> IndexArray:
        """Row (C,) of each key; -1 where the table lacks the key."""
        return positions_in(self.key_N, key_C)

    @property
    def nbytes(self) -> int:
        """Bytes of all columns."""
        return sum(array.nbytes for array in self._arrays().values())

    def _arrays(self) -> dict[str, AnyArray]:
        return {
            "key": self.key_N.view(np.uint8).reshape(-1, KEY_BYTES),
            "leaf": self.leaf_N, "modality": self.modality_N, "file": self.file_N,
            "caption_hub": self.caption_hub_N,
        }  # fmt: skip

    def save(self, path: Path) -> None:
        """Write the table to a safetensors file."""
        from safetensors.numpy import save_file

        with disk_errors(path):
            save_file(self._arrays(), path)

    @classmethod
    def load(cls, path: Path) -> ItemTable:
        """Open a table that `save` wrote, by mapping its columns without reading them.

        Raises:
            MismatchError: The file does not hold an item table, or is truncated.
        """
        arrays = map_arrays(path)
        try:
            key_N = arrays["key"].reshape(-1).view(f"S{KEY_BYTES}")
            columns = [arrays[name] for name in ("leaf", "modality", "file", "caption_hub")]
        except (KeyError, ValueError) as error:
            raise MismatchError(f"{path} is no table of items: {error}.") from error
        if any(len(column) != len(key_N) for column in columns):
            raise MismatchError(f"{path} is no table of items: its columns differ in length.")
        return cls(key_N, *columns)
