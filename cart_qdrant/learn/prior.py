"""Prior logits of identifiers: what the code vectors alone say about a query vector.

Shape legend: B queries, V codes, D vector width.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from cart_qdrant.index.identifiers import Codec

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]


def level_sizes(codec: Codec) -> list[int]:
    """Codes per semantic level over all spaces."""
    return [codec.coarse, *([codec.codes] * (codec.levels - 1))]


def prior_logits(
    codec: Codec, queries: Mapping[str, FloatArray], space: str, scale: float
) -> list[FloatArray]:
    """Logits (B, V) of each level for decoding within one space.

    Codes of other spaces and spare codes are -inf.
    """
    quantizer = codec.quantizers[space]
    q_BD = queries[space]
    out: list[FloatArray] = []
    for level, (size, scores) in enumerate(
        zip(level_sizes(codec), quantizer.level_scores(q_BD), strict=True)
    ):
        logits = np.full((len(q_BD), size), -np.inf, dtype=np.float32)
        begin = quantizer.offset if level == 0 else 0
        logits[:, begin : begin + scores.shape[1]] = scale * scores
        out.append(logits)
    return out
