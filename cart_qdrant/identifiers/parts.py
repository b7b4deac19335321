"""What identifiers are made of: media vectors, caption vectors, or both side by side.

Each media space has identifiers of media vectors alone, for items without a caption. Where a
training made others for items with captions, these are an identifier space of their own: codes of
`z = [m ; x]`, the item's caption vector beside its media vector. A query is scored by
`u = [a q ; b h]`, so that `u . z = a q . m + b h . x`, the score that the query encoder was trained
by.
Shape legend: N items, B queries, D media vector width, W caption vector width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cart_qdrant.arrays.types import FloatArray

MadeOf = Literal["media", "captions", "both"]
"""What the identifiers of items with captions are made of."""
MADE_OF: tuple[MadeOf, ...] = ("media", "captions", "both")
IN_WORDS: Mapping[MadeOf, str] = {
    "media": "their media alone, as those of all others",
    "captions": "their captions alone",
    "both": "their media and captions together",
}
_CAPTIONED = "+captions"


def captioned(space: str) -> str:
    """Name of the identifier space of a media space's items with captions."""
    return space + _CAPTIONED


def uncaptioned(name: str) -> str:
    """The media space of an identifier space."""
    return name.removesuffix(_CAPTIONED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Which vectors an identifier space is made of, and what each counts for in a query.

    Attributes:
        caption: Factor of the caption vectors' cosine, in units of the prior's scale; 0 where
            identifiers are not made of captions.
        media: Factor of the media vectors' cosine, likewise.
    """

    caption: float = 0.0
    media: float = 1.0

    @property
    def made_of(self) -> MadeOf:
        """The vectors in a word."""
        if not self.caption:
            return "media"
        return "both" if self.media else "captions"

    def of_items(self, x_ND: FloatArray, caption_NW: FloatArray) -> FloatArray:
        """What identifiers of items are made of: the caption vector, then the media vector."""
        if not self.caption:
            return x_ND
        return np.concatenate([caption_NW, x_ND], axis=1) if self.media else caption_NW

    def of_queries(
        self, q_BD: FloatArray, caption_BW: FloatArray | None, width: int
    ) -> FloatArray | None:
        """Queries to be multiplied with what `of_items` gives.

        Args:
            q_BD: Query vectors in the media space.
            caption_BW: Query vectors in the caption space, zero where a query is no text; None
                where none is.
            width: Width of what `of_items` gives.

        Returns:
            None where no query has the only part that counts.
        """
        if not self.caption:
            return q_BD
        asks = caption_BW is not None and bool(caption_BW.any())
        if not self.media:
            return (
                np.float32(self.caption) * caption_BW if caption_BW is not None and asks else None
            )
        if caption_BW is None or not asks:
            caption_BW = np.zeros((len(q_BD), width - q_BD.shape[1]), np.float32)
        parts = [np.float32(self.caption) * caption_BW, np.float32(self.media) * q_BD]
        return np.concatenate(parts, axis=1)


MEDIA_ALONE = Parts()
"""Identifiers that are made of media vectors."""
