"""Reads and checks files of vectors made by other programs (`.npz` and `.parquet`).

Shape suffixes: N rows, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from cart_qdrant.errors import MissingExtraError, UsageError, VectorError
from cart_qdrant.extras import install

_BLOCK = 65_536  # rows checked at once


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorFile:
    """The content of a file of vectors, which need not be normalised.

    Attributes:
        source: Path of the file, for messages.
        paths: Paths of the N media files, relative to the index base, or unique tails of them.
        vectors: Their vectors (N, D), of any float type.
        starts: Start of each vector's segment, in seconds; None where each file has one vector.
        ends: End of each vector's segment, in seconds, where it is known.
        texts: Texts whose vectors are known; may be empty.
        text_vectors: Vectors of the texts, also D wide.
        model: Name of the model that made them, where the file says it.
    """

    source: str
    paths: Sequence[str]
    vectors: npt.NDArray[Any]
    starts: npt.NDArray[np.float64] | None = None
    ends: npt.NDArray[np.float64] | None = None
    texts: Sequence[str] = ()
    text_vectors: npt.NDArray[Any] | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        _check_vectors(self.source, "vectors", self.vectors, self.paths, "paths")
        if not len(self.paths):
            raise VectorError(f"{self.source} holds no vectors.", "Write one row a segment.")
        for name, times in (("start", self.starts), ("end", self.ends)):
            self._check_times(name, times)
        if self.text_vectors is None:
            if len(self.texts):
                raise VectorError(f"{self.source} has texts, but no text_vectors.", "Write both.")
            return
        _check_vectors(self.source, "text_vectors", self.text_vectors, self.texts, "texts")
        if self.text_vectors.shape[1] != self.vectors.shape[1]:
            raise VectorError(
                f"{self.source}: text_vectors are {self.text_vectors.shape[1]} wide, but vectors "
                f"are {self.vectors.shape[1]} wide.",
                "Take both from one model with a shared space.",
            )

    def _check_times(self, name: str, times: npt.NDArray[np.float64] | None) -> None:
        if times is None:
            return
        if times.shape != (len(self.paths),):
            raise VectorError(
                f"{self.source}: {name} has shape {times.shape}, but there are "
                f"{len(self.paths)} paths.",
                f"Write one {name} (seconds) a row.",
            )
        if not np.isfinite(times).all():
            row = int(np.argmin(np.isfinite(times)))
            raise VectorError(
                f"{self.source}: {name} of row {row} ({self.paths[row]}) is {times[row]}.",
                "Write seconds.",
            )


def read_vectors(path: Path) -> VectorFile:
    """Read a file of vectors, in the format that its suffix names.

    `PrecomputedEmbedder.from_file` describes the arrays and columns.

    Raises:
        UsageError: The file cannot be read, or lacks an array or column.
        MissingExtraError: `.parquet` without pyarrow.
        VectorError: A vector is not finite, is zero, or the shapes disagree.
    """
    readers = {".npz": _read_npz, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UsageError(
            f"The file of vectors {path} ends in {path.suffix!r}, but must end in "
            f"{' or '.join(readers)}.",
            "numpy.savez writes the first, pandas the second.",
        )
    try:
        return reader(path)
    except OSError as error:
        raise UsageError(
            f"The file of vectors {path} cannot be read: {error.strerror or error}.",
            "Check the path.",
        ) from error


def _read_npz(path: Path) -> VectorFile:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            missing = [name for name in ("vectors", "paths") if name not in arrays]
            if missing:
                raise _missing(path, "array", missing, list(arrays))
            names = [*("vectors", "paths", "start", "end", "texts", "text_vectors", "model")]
            loaded = {name: arrays[name] for name in names if name in arrays}
    except (ValueError, BadZipFile, EOFError) as error:
        raise UsageError(
            f"The file of vectors {path} cannot be read: {error}.",
            "Write it with numpy.savez, paths as an array of text (dtype str, not object).",
        ) from error
    return VectorFile(
        source=str(path),
        paths=_as_texts(path, "paths", loaded["paths"]),
        vectors=loaded["vectors"],
        starts=_as_times(path, "start", loaded.get("start")),
        ends=_as_times(path, "end", loaded.get("end")),
        texts=_as_texts(path, "texts", loaded["texts"]) if "texts" in loaded else (),
        text_vectors=loaded.get("text_vectors"),
        model=_as_name(path, loaded["model"]) if "model" in loaded else None,
    )


def _read_parquet(path: Path) -> VectorFile:
    if find_spec("pyarrow") is None:
        what = f"Reading {path} needs pyarrow, which is not installed."
        raise MissingExtraError(what, install("parquet"))
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        wanted = ("path", "vector", "start", "end")
        table = pq.read_table(path, columns=[n for n in wanted if n in schema.names])
    except pa.ArrowException as error:
        raise UsageError(
            f"The file of vectors {path} cannot be read: {error}.", "Write it as Parquet."
        ) from error
    columns = table.column_names
    if missing := [name for name in ("path", "vector") if name not in columns]:
        raise _missing(path, "column", missing, schema.names)
    for name in columns:
        if nulls := table[name].null_count:
            raise VectorError(f"{path}: {nulls} rows have no {name}.", "Write all or leave it out.")
    times = {n: table[n].to_numpy() for n in ("start", "end") if n in columns}
    return VectorFile(
        source=str(path),
        paths=_as_texts(path, "path", np.asarray(table["path"].to_pylist())),
        vectors=_stack(path, table["vector"].combine_chunks()),
        starts=_as_times(path, "start", times.get("start")),
        ends=_as_times(path, "end", times.get("end")),
        model=(schema.metadata or {}).get(b"model", b"").decode("utf-8", "replace").strip() or None,
    )


def _stack(path: Path, column: Any) -> npt.NDArray[Any]:
    """Vectors (N, D) of a column of lists, made without a Python object for each number.

    Raises:
        VectorError: The lists differ in length, or hold no numbers.
    """
    import pyarrow as pa

    if not pa.types.is_nested(column.type) or not hasattr(column, "flatten"):
        raise VectorError(f"{path}: vector is {column.type}, but must be a list of floats.")
    flat = column.flatten()
    if flat.null_count:
        raise VectorError(f"{path}: {flat.null_count} values in vector are missing.")
    lengths = np.unique(column.value_lengths().to_numpy(zero_copy_only=False))
    if len(lengths) > 1:
        raise VectorError(
            f"{path}: vectors are {lengths[0]} and {lengths[-1]} wide, but must all be alike.",
            "Take all from one model.",
        )
    values: npt.NDArray[Any] = flat.to_numpy(zero_copy_only=False)
    return values.reshape(len(column), -1) if len(column) else values.reshape(0, 0)


def _missing(path: Path, kind: str, missing: list[str], found: list[str]) -> UsageError:
    return UsageError(
        f"{path} lacks the {kind} {' and '.join(missing)}; it has {', '.join(found) or 'none'}.",
        f"Write the {kind}s {'vectors and paths' if kind == 'array' else 'path and vector'}.",
    )


def _as_texts(path: Path, name: str, values_N: npt.NDArray[Any]) -> list[str]:
    if values_N.ndim != 1 or (values_N.dtype.kind != "U" and values_N.size):
        raise UsageError(
            f"{path}: {name} is {values_N.dtype} of shape {values_N.shape}, but must be a row of "
            "texts.",
            f"Write {name} as an array of str.",
        )
    texts: list[str] = values_N.tolist()
    return texts


def _as_name(path: Path, value: npt.NDArray[Any]) -> str | None:
    if value.size != 1 or value.dtype.kind != "U":
        raise UsageError(
            f"{path}: model is {value.dtype} of shape {value.shape}, but must be one text.",
            "Write the name of the model, or leave it out.",
        )
    return str(value.item()).strip() or None


def _as_times(
    path: Path, name: str, values: npt.NDArray[Any] | None
) -> npt.NDArray[np.float64] | None:
    if values is None:
        return None
    if values.dtype.kind not in "fiu":
        raise UsageError(f"{path}: {name} is {values.dtype}, but must be seconds.")
    return values.astype(np.float64)


def _check_vectors(
    source: str, name: str, x_ND: npt.NDArray[Any], keys: Sequence[str], keys_name: str
) -> None:
    """Raise `VectorError` unless `x_ND` holds a finite, non-zero float vector for each key."""
    if x_ND.shape[:-1] != (len(keys),) or x_ND.dtype.kind != "f" or x_ND.dtype.itemsize > 8:
        raise VectorError(
            f"{source}: {name} is {x_ND.dtype} of shape {x_ND.shape}, but there are {len(keys)} "
            f"{keys_name}.",
            f"Write {name} as floats, (number of {keys_name}, width).",
        )
    for first in range(0, len(x_ND), _BLOCK):
        block = x_ND[first : first + _BLOCK]
        finite = np.isfinite(block).all(axis=1)
        good = finite & block.any(axis=1)
        if not good.all():
            row = int(np.argmin(good))
            what = "all zero" if finite[row] else "not finite"
            raise VectorError(
                f"{source}: {name} of row {first + row} ({keys[first + row][:80]}) is {what}.",
                "Leave the row out or compute it again.",
            )
