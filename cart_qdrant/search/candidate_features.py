"""What the lanes say about the candidates of one query, as arrays and as a matrix of features.

Shape legend: C candidates of a query, F features, G modality groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cart_qdrant.arrays.types import FloatArray, IndexArray, MaskArray

FLOOR = -12.0
"""Log-probability below which beams count as equally unlikely, and that of an item without one."""


@dataclass(frozen=True, slots=True)
class CandidateFeatures:
    """What the lanes say about the candidates of one query.

    Attributes:
        media_C: Cosine of query and media vector; NaN where the query does not reach the space.
        caption_C: Cosine of query and caption vector; NaN where there is no caption.
        beam_C: Log-probability of the identifier; NaN where no beam names it.
        space_C: Number of the item's media space.
        hub_C: Hubness of the media vector; NaN where it is not known (before training).
        caption_hub_C: Hubness of the caption vector; NaN likewise.
        bm25_C: BM25 score of the captions; NaN where they hold no word of the query.
        group_C: Number of the item's modality group, see `modality_prior`.
        log_prior_G: Log-probability of each modality group given the query.
        first_C: Whether the candidate is one of those among whom the probability is shared; None:
            all are. Their number is fixed, so that a hit's score and confidence do not depend on
            how many hits are asked for.
    """

    media_C: FloatArray
    caption_C: FloatArray
    beam_C: FloatArray
    space_C: IndexArray
    hub_C: FloatArray
    caption_hub_C: FloatArray
    bm25_C: FloatArray
    group_C: IndexArray
    log_prior_G: FloatArray
    first_C: MaskArray | None = None

    @property
    def first(self) -> MaskArray:
        """`first_C`, with all where it is None (C,)."""
        return np.ones(len(self.group_C), bool) if self.first_C is None else self.first_C

    @property
    def has_caption(self) -> MaskArray:
        """Whether each candidate has a caption (C,)."""
        return ~np.isnan(self.caption_C)

    @property
    def best_caption(self) -> float:
        """Greatest cosine of a caption; -1 where there is none."""
        return greatest_cosine(self.caption_C[self.first])

    @property
    def named(self) -> MaskArray:
        """Whether some beam names each candidate (C,), however unlikely the beam is."""
        return ~np.isnan(self.beam_C)

    def matrix(self, hub_means: Sequence[float]) -> FloatArray:
        """Features (C, F), in the order of `FeatureColumns`.

        For each media space: cosine, presence, and mean hubness less hubness; the same three of
        the caption; then the log-probability of the beam above `FLOOR`.

        Args:
            hub_means: Mean hubness in each media space, then of captions; an item whose hubness is
                not known counts as the mean.
        """
        columns: list[npt.NDArray[Any]] = []
        for n, mean in enumerate(hub_means[:-1]):
            here = (self.space_C == n) & ~np.isnan(self.media_C)
            columns += [np.where(here, self.media_C, 0), (self.space_C == n).astype(np.float32)]
            columns.append(np.where(here & ~np.isnan(self.hub_C), mean - self.hub_C, 0))
        known = self.has_caption
        columns += [np.where(known, self.caption_C, 0), known.astype(np.float32)]
        columns.append(np.nan_to_num(hub_means[-1] - self.caption_hub_C, nan=0.0) * known)
        columns.append(np.maximum(np.nan_to_num(self.beam_C, nan=FLOOR), FLOOR) - FLOOR)
        return np.stack(columns, axis=1).astype(np.float32)


@dataclass(frozen=True, slots=True)
class FeatureColumns:
    """Masks (F,) of the columns of `CandidateFeatures.matrix`, by what they hold."""

    media: MaskArray
    caption: MaskArray
    presence: MaskArray
    hub: MaskArray
    beam: MaskArray

    @classmethod
    def of(cls, spaces: int) -> FeatureColumns:
        """The masks for a number of media spaces."""
        n = np.arange(3 * spaces + 4)
        beam = n == len(n) - 1
        position = np.where(beam, -1, n % 3)
        media = n < 3 * spaces
        return cls(media, ~media & ~beam, position == 1, position == 2, beam)


def greatest_cosine(caption_C: FloatArray) -> float:
    """The greatest cosine of captions; -1 where there is none."""
    found = caption_C[~np.isnan(caption_C)]
    return float(found.max()) if len(found) else -1.0
