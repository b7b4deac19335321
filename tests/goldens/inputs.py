"""Weights and inputs of the goldens: the same numbers wherever they are made."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

TINY: dict[str, Any] = {
    "out_embed_dim": 16,
    "vision_embed_dim": 32, "vision_num_blocks": 2, "vision_num_heads": 4,
    "text_embed_dim": 32, "text_num_blocks": 2, "text_num_heads": 4,
    "audio_embed_dim": 24, "audio_num_blocks": 2, "audio_num_heads": 3,
    "depth_embed_dim": 16, "depth_num_blocks": 1, "depth_num_heads": 2,
    "thermal_embed_dim": 16, "thermal_num_blocks": 1, "thermal_num_heads": 2,
    "imu_embed_dim": 16, "imu_num_blocks": 1, "imu_num_heads": 2,
}  # fmt: skip
"""Sizes of the model that is compared."""

TEXTS = (
    "a dog surfing",
    "A  Dog's   \n day!!",
    "don't we'll I'd they've",
    "café naïve — “quotes”",
    "12345 3.14 mp4",
    "日本語 テキスト",
    "emoji 😀👍🏽",
    "Tom &amp;amp; Jerry &lt;3",
    "über STRASSE ÉCOLE",
    "",
    "½ ² ① ﬁ",
    "İstanbul",
    "word " * 100,
)


def uniform(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Numbers in [-1, 1) that depend on the name alone."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return (2 * rng.random(shape) - 1).astype(np.float32)


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, npt.NDArray[np.float32]]:
    """A state dict of a model with these tensors, but the text mask and the constants."""
    return {
        name: 0.2 * uniform(name, shape) + ("norm" in name and name.endswith("weight"))
        for name, shape in shapes.items()
        if not name.endswith((".mask", "log_logit_scale"))
    }


def tower_inputs() -> dict[str, npt.NDArray[Any]]:
    """Inputs of every tower; texts of different lengths."""
    tokens = np.zeros((3, 77), dtype=np.int64)
    for row, length in enumerate((1, 6, 75)):
        words = (uniform(f"words {row}", (length,)) + 1) * 24_000
        tokens[row, : length + 2] = [49_406, *words.astype(int), 49_407]
    return {
        "text": tokens,
        "vision": uniform("pictures", (2, 3, 224, 224)),
        "film": uniform("film", (1, 3, 3, 2, 224, 224)),
        "audio": uniform("sound", (2, 3, 1, 128, 204)),
        "depth": uniform("depth", (2, 1, 224, 224)),
        "thermal": uniform("thermal", (2, 1, 224, 224)),
        "imu": uniform("imu", (2, 6, 2_000)),
    }


def frame(name: str, height: int, width: int) -> npt.NDArray[np.uint8]:
    """A picture with slopes, edges and noise."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / (7 + n) + y / 31) + np.cos(y / (11 + n)) for n in range(3)], -1)
    noise = uniform(name, (height, width, 3))
    return np.clip(127 + 50 * waves + 30 * noise, 0, 255).astype(np.uint8)


def sound(seconds: float) -> npt.NDArray[np.float32]:
    """A rising tone in noise, mono, 16 kHz."""
    t = np.arange(int(seconds * 16_000)) / 16_000
    tone = np.sin(2 * np.pi * (200 + 400 * t) * t)
    return (0.4 * tone + 0.1 * uniform("noise", t.shape) + 0.02).astype(np.float32)
