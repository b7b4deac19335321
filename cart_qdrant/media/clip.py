"""The decoded content of one segment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.records import Modality

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class Clip:
    """Decoded content of one segment, as an embedder receives it.

    Attributes:
        modality: What it is.
        frames: RGB uint8 arrays (H, W, 3): one for an image, a few in time order for video.
        samples: Mono float32 (T,) in [-1, 1], for audio.
        rate: Samples per second.
        key: `path` of the segment's file, for embedders that look vectors up.
        id: Id of the segment.
        start: Seconds at which the segment begins.
    """

    modality: Modality
    frames: tuple[npt.NDArray[np.uint8], ...] = ()
    samples: FloatArray | None = None
    rate: int = 0
    key: str = ""
    id: str = ""
    start: float = 0.0
