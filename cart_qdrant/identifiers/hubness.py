"""Measures hubness: how similar an item is to all queries, by a bank of training queries.

A few items are similar to every query and outrank the relevant ones. An item's hubness is its
soft maximum similarity to a bank of training queries, `h(x) = log mean_b exp(T b . x) / T`.
Subtracting a share of it from `q . x` is the inverted softmax (Smith et al., arXiv 1702.03859; for
cross-modal retrieval: Bogolin et al., QB-Norm, arXiv 2112.12777). It is one number per item, which
is stored with the identifier and in the prefix tree, where the decoder reads it.
An item's own captions are left out of the mean: a query that is meant for an item says nothing of
how near it is to other queries, and items that training saw would seem greater hubs than the rest.
Shape legend: N items, Q queries of a bank, D vector width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.files import load_arrays, save_arrays

BANK = 4_096
"""Number of queries kept for each space; 28,000 were not better (docs/experiments.md)."""
CAPTION = "caption"
"""Name of the caption space in a bank; `media_space` gives the names of the media spaces."""
_BLOCK = 2_048
FileArray = npt.NDArray[np.uint64]
"""Numbers of files, as `item_table.file_number` gives them."""


def media_space(space: str) -> str:
    """Name of a media space in a bank."""
    return f"media.{space}"


@dataclass(frozen=True, slots=True)
class QueryBank:
    """A bank of query vectors by which hubness is measured.

    Attributes:
        banks: Query vectors (Q, D) by the name of the space (`media_space` or `CAPTION`).
        sharpness: The inverse temperature T of each space.
        owners: Number of the file (Q,) that each query is a caption of, by space: the segments of a
            file share its captions.
    """

    banks: Mapping[str, FloatArray]
    sharpness: Mapping[str, float]
    owners: Mapping[str, FileArray]

    @classmethod
    def sample(
        cls,
        banks: Mapping[str, FloatArray],
        sharpness: Mapping[str, float],
        owners: Mapping[str, FileArray],
        seed: int = 0,
    ) -> QueryBank:
        """Sample a bank of at most `BANK` queries of each space that has queries.

        The queries are rounded to float16, as in the file, so that a loaded bank gives the same
        hubness.
        """
        rng = np.random.default_rng(seed)
        kept: dict[str, FloatArray] = {}
        files: dict[str, FileArray] = {}
        for space, q_QD in banks.items():
            if len(q_QD):
                rows = np.sort(rng.permutation(len(q_QD))[:BANK])
                kept[space] = q_QD[rows].astype(np.float16).astype(np.float32)
                files[space] = owners[space][rows]
        return cls(kept, {space: sharpness[space] for space in kept}, files)

    def hubness(self, x_ND: FloatArray, space: str, file_N: FileArray) -> FloatArray:
        """Hubness (N,) of unit vectors, by the queries that are no captions of their own files
        `file_N`; NaN if the bank has no such queries of the space."""
        bank_QD = self.banks.get(space)
        if bank_QD is None:
            return np.full(len(x_ND), np.nan, dtype=np.float32)
        t = self.sharpness[space]
        out = np.empty(len(x_ND), dtype=np.float32)
        for begin in range(0, len(x_ND), _BLOCK):
            here = slice(begin, begin + _BLOCK)
            logits = t * (x_ND[here] @ bank_QD.T)
            own = file_N[here, None] == self.owners[space]
            logits[own] = -np.inf
            others = len(bank_QD) - own.sum(axis=1)
            top = logits.max(axis=1)
            with np.errstate(invalid="ignore", divide="ignore"):  # of an item that owns the bank
                total = np.exp(logits - top[:, None]).sum(axis=1)
                out[here] = (top + np.log(total / others)) / t
        return out

    def save(self, path: Path) -> None:
        """Write the bank to a safetensors file."""
        arrays: dict[str, npt.NDArray[np.float16] | FloatArray | FileArray] = {}
        for space, bank in self.banks.items():
            arrays[f"bank.{space}"] = bank.astype(np.float16)
            arrays[f"sharpness.{space}"] = np.asarray([self.sharpness[space]], dtype=np.float32)
            arrays[f"owner.{space}"] = self.owners[space]
        save_arrays(path, arrays)

    @classmethod
    def load(cls, path: Path) -> QueryBank:
        """Read a bank that `save` wrote."""
        arrays = load_arrays(path)
        spaces = [name.removeprefix("bank.") for name in arrays if name.startswith("bank.")]
        return cls(
            {s: arrays[f"bank.{s}"].astype(np.float32) for s in spaces},
            {s: float(arrays[f"sharpness.{s}"][0]) for s in spaces},
            {s: arrays[f"owner.{s}"] for s in spaces},
        )
