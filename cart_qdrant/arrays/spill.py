"""Collects rows of vectors in memory, and in a temporary file where they are too many."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import IO

import numpy as np

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.errors import StoreError

IN_MEMORY = 1 << 30
"""Bytes up to which rows stay in memory."""


class SpillBuffer:
    """Collects rows; above `IN_MEMORY` they are written to a temporary file.

    The file has no name, so that the disk is free again when the last array of it is deleted or
    the process ends, also by a kill.

    Args:
        dim: Width of a row.
        folder: Folder of the file, made if it is missing; None keeps all rows in memory.
    """

    def __init__(self, dim: int, folder: Path | None = None) -> None:
        self._dim, self._folder = dim, folder
        self._count = 0
        self._blocks: list[FloatArray] = []
        self._file: IO[bytes] | None = None

    def add(self, rows_BD: FloatArray) -> None:
        """Append rows (B, D).

        Raises:
            StoreError: The file cannot be written.
        """
        self._count += len(rows_BD)
        self._blocks.append(rows_BD)
        if self._folder is not None and (self._file is not None or self._nbytes > IN_MEMORY):
            self._spill(self._folder)

    @property
    def _nbytes(self) -> int:
        return 4 * self._count * self._dim

    def _spill(self, folder: Path) -> None:
        # Written, not mapped: on a full disk a write raises, but a mapped page kills the process.
        try:
            if self._file is None:
                folder.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
            for block in self._blocks:
                self._file.write(np.ascontiguousarray(block, dtype=np.float32).data)
            self._file.flush()
        except OSError as error:
            raise StoreError(
                f"{self._nbytes / 2**30:.1f} GB of vectors do not fit into {folder}: {error}.",
                "Free space there, or make it writable.",
            ) from error
        self._blocks.clear()

    def array(self) -> FloatArray:
        """All rows (N, D); read-only where they lie in the file."""
        if self._file is None:
            empty = np.empty((0, self._dim), dtype=np.float32)
            return np.concatenate([empty, *self._blocks])
        with self._file as file:
            return np.asarray(np.memmap(file, np.float32, "r", shape=(self._count, self._dim)))
