"""The `precomputed` embedder: vectors that the user already has, from `.npz` or `.parquet`.

Shape suffixes: B batch, D width, R rows of one path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.arrays.vectors import unit_of_any_length
from cart_qdrant.embedders.precomputed_file import VectorFile, read_vectors
from cart_qdrant.embedders.text.folder import text_encoder_folder
from cart_qdrant.embedders.zero_shot import TextAnchors
from cart_qdrant.errors import MediaError, UsageError
from cart_qdrant.extras import require
from cart_qdrant.media.clip import Clip
from cart_qdrant.media.path_match import SuffixIndex, path_key
from cart_qdrant.records import Modality, text_key

SPACE = "media"
"""Name of the only space: all vectors of a file may be compared."""


class PrecomputedEmbedder:
    """Looks vectors up by `Clip.key` and `Clip.start` instead of computing them.

    Attributes:
        name: `precomputed`.
        version: Hash of the width; an index is bound to it.
        dim: Width D of the vectors.
        raw_dim: The same width, since nothing is projected.
        modalities: All modalities.
        spaces: `SPACE` for each modality.
        source: Path of the file.
        model: Name of the model that made the vectors; None where it is not known.

    Args:
        file: The vectors.
        model: The name of the model, where the file does not say it.

    Raises:
        UsageError: The file names another model.
    """

    name = "precomputed"

    def __init__(self, file: VectorFile, model: str | None = None) -> None:
        if model is not None and file.model not in (None, model):
            raise UsageError(
                f"{file.source} says that its vectors are of {file.model!r}, but --model is "
                f"{model!r}.",
                "Leave --model out, or take the other file.",
            )
        self._file = file
        self.source = file.source
        self.model = model or file.model
        self.dim = int(file.vectors.shape[1])
        self.raw_dim = self.dim
        self.version = hashlib.blake2b(f"{self.dim}:1".encode(), digest_size=8).hexdigest()
        self.modalities = frozenset(Modality)
        self.spaces = dict.fromkeys(Modality, SPACE)
        self._rows = _group_rows(file)
        self._suffixes = SuffixIndex(self._rows)
        self._texts = {text_key(text): row for row, text in enumerate(file.texts)}

    @classmethod
    def from_file(cls, path: Path, model: str | None = None) -> PrecomputedEmbedder:
        """Read vectors from an `.npz` or `.parquet` file.

        `.npz`: arrays `vectors` (N, D) and `paths` (N,), optional `start` and `end` (N,) in
        seconds, optional `texts` (M,) and `text_vectors` (M, D), optional `model`, the name of the
        model that made them. `.parquet`: columns `path` and `vector`, optional `start` and `end`,
        and `model` in the metadata of the schema.

        Raises:
            UsageError: The file cannot be read, or lacks an array or column.
            MissingExtraError: `.parquet` without pyarrow.
            VectorError: A vector is not finite, is zero, or the shapes disagree.
        """
        return cls(read_vectors(path), model)

    @property
    def has_text(self) -> bool:
        """Whether the file holds vectors of texts, too."""
        return bool(self._texts)

    def embed_text(self, texts: Sequence[str], space: str = SPACE) -> FloatArray | None:
        """L2-normalised vectors x_BD of texts in the file; case and white space are ignored.

        Returns:
            None where the file has no texts or `space` is another one: queries then need training.

        Raises:
            UsageError: The file has texts, but not one of these.
        """
        vectors = self._file.text_vectors
        if vectors is None or not self.has_text or space != SPACE:
            return None
        for text in texts:
            if text_key(text) not in self._texts:
                raise UsageError(
                    f"{self._file.source} has no vector of {text[:80]!r}: vectors made elsewhere "
                    "cannot embed a new query.",
                    "Train first (cartq train), or add it to texts and text_vectors of the file.",
                )
        return unit_of_any_length(vectors[[self._texts[text_key(text)] for text in texts]])

    def text_anchors(self) -> TextAnchors:
        """The file's texts and their vectors, through which other texts are embedded."""
        vectors = self._file.text_vectors
        if vectors is None or not self.has_text:
            return TextAnchors([], np.empty((0, 0), dtype=np.float32), {})
        require("train")
        from cart_qdrant.embedders.text.minilm import TextEncoder

        texts = list(self._file.texts)
        keys = TextEncoder(text_encoder_folder()).embed(texts)
        return TextAnchors(texts, keys, {SPACE: unit_of_any_length(vectors)})

    def embed_media(self, clips: Sequence[Clip]) -> FloatArray:
        """L2-normalised vectors x_BD of the clips.

        Where a file has several vectors, the one whose start is nearest to the clip's start is
        taken; of two at the same distance, the earlier one. Where the ends of vectors are known,
        only those count that share some time with the clip.

        Raises:
            MediaError: A file, or that part of it, has no vector; the message names the path.
        """
        rows = [self._find_row(clip) for clip in clips]
        return unit_of_any_length(self._file.vectors[rows])

    def holds(self, key: str) -> bool:
        """Whether the vectors file has a vector of the media file with this path."""
        try:
            self._find_path(key)
        except MediaError:
            return False
        return True

    def _find_row(self, clip: Clip) -> int:
        rows_R = self._rows[self._find_path(clip.key)]
        starts_N, ends_N = self._file.starts, self._file.ends
        if starts_N is None:
            return int(rows_R[0])
        distances_R = np.abs(starts_N[rows_R] - clip.start)
        if ends_N is None:
            return int(rows_R[np.argmin(distances_R)])
        fits_R = _overlaps(starts_N[rows_R], ends_N[rows_R], clip)
        if not fits_R.any():
            row = int(rows_R[np.argmin(distances_R)])
            raise MediaError(
                f"{clip.key}: {self._file.source} has no vector from {clip.start:g} to "
                f"{clip.end:g} s; the nearest spans {starts_N[row]:g} to {ends_N[row]:g} s.",
                "Write vectors of the whole file.",
            )
        return int(rows_R[np.argmin(np.where(fits_R, distances_R, np.inf))])

    def _find_path(self, key: str) -> str:
        wanted = path_key(key)
        if wanted in self._rows:
            return wanted
        found = self._suffixes.find(wanted)
        if len(found) == 1:
            return found[0]
        where = self._file.source
        what = f"{where} has no vector" if not found else f"{found[0]} and {found[1]} both fit it"
        raise MediaError(
            f"{key}: {what}.", f"Write its path relative to the index base into {where}."
        )


def _overlaps(
    starts_R: npt.NDArray[np.float64], ends_R: npt.NDArray[np.float64], clip: Clip
) -> npt.NDArray[np.bool_]:
    """Which rows share some time with a clip; a row that ends at its start has no known end."""
    known_R = ends_R > starts_R
    # A clip without length is an image, or a moment: it lies in the row.
    before_R = starts_R < max(clip.end, np.nextafter(clip.start, np.inf))
    fits_R: npt.NDArray[np.bool_] = ~known_R | (before_R & (ends_R > clip.start))
    return fits_R


def _group_rows(file: VectorFile) -> dict[str, npt.NDArray[np.intp]]:
    """Row numbers of each path, ordered by start.

    Raises:
        UsageError: Two rows have the same path and start.
    """
    rows: dict[str, list[int]] = {}
    for row, path in enumerate(file.paths):
        rows.setdefault(path_key(path), []).append(row)
    grouped: dict[str, npt.NDArray[np.intp]] = {}
    for path, group in rows.items():
        rows_R = np.asarray(group, dtype=np.intp)
        if len(group) > 1:
            starts_R = np.zeros(len(group)) if file.starts is None else file.starts[rows_R]
            if len(np.unique(starts_R)) < len(group):
                raise UsageError(
                    f"{file.source} has {len(group)} rows of {path}, but only "
                    f"{len(np.unique(starts_R))} different start.",
                    "Write the start (seconds) of each segment, or one row a file.",
                )
            rows_R = rows_R[np.argsort(starts_R)]
        grouped[path] = rows_R
    return grouped
