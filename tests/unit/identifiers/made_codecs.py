"""Codebooks of media vectors and of media and captions together, for tests."""

from __future__ import annotations

from dataclasses import replace

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.identifiers.codec import IdentifierConfig, fit_codec
from cart_qdrant.identifiers.parts import MEDIA_ALONE, Parts, captioned
from cart_qdrant.identifiers.quantizer import Codec

BOTH = Parts(caption=0.9, media=0.6)


def joint_codec(x_ND: FloatArray, caption_NW: FloatArray) -> Codec:
    """Identifiers of one media space, for items with captions and for those without."""
    parts = {"visual": MEDIA_ALONE, captioned("visual"): BOTH}
    vectors = {name: one.of_items(x_ND, caption_NW) for name, one in parts.items()}
    codec = fit_codec(vectors, IdentifierConfig(method="rkmeans"))
    return Codec({name: replace(q, parts=parts[name]) for name, q in codec.quantizers.items()})
