"""Sizes of the ImageBind architecture (Girdhar et al., arXiv 2305.05665)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cart_qdrant.errors import ConfigError

CONTEXT = 77
"""Tokens of a text, padded with 0."""
VOCABULARY = 49_408
SIDE = 224
"""Pixels; height and width of an image or video frame."""
IMU_CHANNELS, IMU_LENGTH = 6, 2_000

MODALITIES = ("vision", "text", "audio", "depth", "thermal", "imu")
"""In the order of the published model."""

SCALES = {"text": 1 / 0.07, "audio": 20.0, "depth": 5.0, "thermal": 10.0, "imu": 5.0}
"""Constants that the published model multiplies its outputs by; that of `text` is only where its
training began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageBindConfig:
    """Sizes, under the names of the published model's constructor; defaults are ImageBind-huge.

    `*_drop_path` is the probability of stochastic depth in the last block of a tower; it is used
    in training mode only.
    """

    video_frames: int = 2
    kernel_size: tuple[int, int, int] = (2, 14, 14)
    """Frames, height and width of a patch (a tubelet) of `vision`."""
    out_embed_dim: int = 1024
    vision_embed_dim: int = 1280
    vision_num_blocks: int = 32
    vision_num_heads: int = 16
    text_embed_dim: int = 1024
    text_num_blocks: int = 24
    text_num_heads: int = 16
    audio_embed_dim: int = 768
    audio_num_blocks: int = 12
    audio_num_heads: int = 12
    audio_kernel_size: int = 16
    audio_stride: int = 10
    audio_num_mel_bins: int = 128
    audio_target_len: int = 204
    """Spectrogram frames, of 10 ms, in one clip of audio."""
    audio_drop_path: float = 0.1
    depth_embed_dim: int = 384
    depth_kernel_size: int = 16
    depth_num_blocks: int = 12
    depth_num_heads: int = 8
    depth_drop_path: float = 0.0
    thermal_embed_dim: int = 768
    thermal_kernel_size: int = 16
    thermal_num_blocks: int = 12
    thermal_num_heads: int = 12
    thermal_drop_path: float = 0.0
    imu_embed_dim: int = 512
    imu_kernel_size: int = 8
    imu_num_blocks: int = 6
    imu_num_heads: int = 8
    imu_drop_path: float = 0.7

    def __post_init__(self) -> None:
        for modality in MODALITIES:
            width, heads = self.of(modality, "embed_dim"), self.of(modality, "num_heads")
            if width % heads:
                raise ConfigError(
                    f"{modality}_embed_dim is {width}, but must be a multiple of "
                    f"{modality}_num_heads, {heads}."
                )

    def of(self, modality: str, name: str) -> Any:
        """The value of one modality's field: `of("text", "num_heads")` is `text_num_heads`."""
        return getattr(self, f"{modality}_{name}")
