"""Names for types of arrays, by what the arrays hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

AnyArray = npt.NDArray[Any]
ByteArray = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.intp]
"""Positions in other arrays."""
IntArray = npt.NDArray[np.int32]
"""Codes of identifiers."""
KeyArray = npt.NDArray[np.bytes_]
"""Point ids in 16 bytes each, see `point_ids.key_of`."""
MaskArray = npt.NDArray[np.bool_]
