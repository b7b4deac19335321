"""Configuration: frozen, keyword-only, checked where it is made.

Each field carries its unit. Defaults are the measured ones of `docs/experiments.md`.
"""

from __future__ import annotations

from dataclasses import dataclass

from cart_qdrant.errors import ConfigError


def _require(ok: bool, name: str, value: object, wanted: str) -> None:
    if not ok:
        raise ConfigError(f"{name} is {value!r}, but must be {wanted}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentConfig:
    """How files are cut into segments."""

    shot_threshold: float = 0.35
    """Change between sampled frames that starts a new shot; 0 (none) to 1 (all)."""
    min_shot: float = 1.0
    """Seconds; a shorter shot is joined to its neighbour."""
    max_shot: float = 10.0
    """Seconds; a longer shot is cut into windows of at most this length."""
    audio_window: float = 10.0
    """Seconds of audio in one segment."""
    min_still: float = 2.0
    """Seconds; a frame that stands still for longer is a frozen stretch, which is skipped."""
    still_level: int = 3
    """Levels of 255; the largest local change that still counts as standing still."""
    black_level: int = 24
    """Levels of 255; a frame whose brightest parts are below this is black, and skipped."""
    sample_fps: float = 4.0
    """Frames per second looked at in a video."""
    frames: int = 4
    """Frames kept of each video segment, evenly spaced."""
    min_audio: float = 1.0
    """Seconds; a shorter last window of audio is joined to the one before."""
    silence_db: float = -60.0
    """dBFS (RMS of a window); a quieter window is silent, and skipped."""
    audio_rate: int = 16_000
    """Samples per second after resampling."""
    max_pixels: int = 178_956_970
    """Pixels; a larger image is refused (a decompression bomb)."""
    max_side: int = 512
    """Pixels; the shorter side of a decoded image or frame is scaled down to this at most."""

    def __post_init__(self) -> None:
        _require(0 < self.shot_threshold <= 1, "shot_threshold", self.shot_threshold, "in (0, 1]")
        _require(self.min_shot > 0, "min_shot", self.min_shot, "positive")
        _require(self.max_shot >= self.min_shot, "max_shot", self.max_shot, "at least min_shot")
        _require(self.audio_window > 0, "audio_window", self.audio_window, "positive")
        _require(self.min_still > 0, "min_still", self.min_still, "positive")
        _require(0 <= self.still_level <= 255, "still_level", self.still_level, "in [0, 255]")
        _require(0 <= self.black_level <= 255, "black_level", self.black_level, "in [0, 255]")
        _require(self.min_audio > 0, "min_audio", self.min_audio, "positive")
        _require(self.silence_db <= 0, "silence_db", self.silence_db, "at most 0")
        _require(self.sample_fps > 0, "sample_fps", self.sample_fps, "positive")
        _require(self.frames >= 1, "frames", self.frames, "at least 1")
        _require(self.audio_rate >= 8000, "audio_rate", self.audio_rate, "at least 8000")
        _require(self.max_pixels >= 1, "max_pixels", self.max_pixels, "at least 1")
        _require(self.max_side >= 32, "max_side", self.max_side, "at least 32")
