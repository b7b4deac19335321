"""The decoded content of a segment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.records import Modality, Segment


@dataclass(frozen=True, slots=True)
class Clip:
    """Decoded content of one segment, as an embedder receives it.

    Attributes:
        modality: Modality of the segment.
        frames: RGB uint8 arrays (H, W, 3): one for an image, a few in time order for video.
        samples: Mono float32 (T,) in [-1, 1], for audio.
        rate: Samples per second.
        key: Path of the segment's file in the index, for embedders that look vectors up.
        id: `Segment.id`.
        start: Seconds at which the segment begins.
        end: Seconds at which it ends; 0 for an image.
    """

    modality: Modality
    frames: tuple[npt.NDArray[np.uint8], ...] = ()
    samples: FloatArray | None = None
    rate: int = 0
    key: str = ""
    id: str = ""
    start: float = 0.0
    end: float = 0.0

    @classmethod
    def of(
        cls,
        segment: Segment,
        *,
        frames: tuple[npt.NDArray[np.uint8], ...] = (),
        samples: FloatArray | None = None,
        rate: int = 0,
    ) -> Clip:
        """The content of a segment, with the segment's path, id and times."""
        return cls(
            segment.modality,
            frames,
            samples,
            rate,
            key=segment.path,
            id=segment.id,
            start=segment.start,
            end=segment.end,
        )
