"""The `Embedder` protocol and the choice of one by name.

"Embedder" turns media and text into vectors of a collection; "encoder" is the generator's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cart_qdrant.records import Modality

FloatArray = npt.NDArray[np.float32]


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
    """

    modality: Modality
    frames: tuple[npt.NDArray[np.uint8], ...] = ()
    samples: FloatArray | None = None
    rate: int = 0
    key: str = ""
    id: str = ""
