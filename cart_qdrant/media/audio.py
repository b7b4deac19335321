"""Decodes audio to windows of mono samples, in one pass with one window in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.video.frame import VideoFrame

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.config import SegmentConfig
from cart_qdrant.errors import MediaError
from cart_qdrant.media import containers
from cart_qdrant.media.errors import DAMAGED

_RATES = (1_000, 1_000_000)  # samples per second; beyond it resampling takes endless memory
_CHANNELS = 64  # at most
_FLOOR = -120.0  # dBFS shown for digital silence
_GAP = 0.5  # seconds; a longer gap between frames begins a new window


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """A stretch of audio: start and end in seconds, and mono samples (T,) in [-1, 1]."""

    start: float
    end: float
    samples: FloatArray


def audio_windows(
    path: Path, config: SegmentConfig, note: Callable[[str], None]
) -> Iterator[Window]:
    """Windows of the main audio stream of a file, in time order; silent ones are left out.

    Raises:
        MediaError: There is no window: nothing can be decoded, or all of it is silent.
    """
    with containers.opened(path) as container:
        stream = containers.audio_stream(container)
        if stream is None:
            raise MediaError("the file has no audio.")
        clock = containers.Clock(containers.origin(container, stream))
        decoded = containers.frames(container, stream, note, clock)
        count, windows, loudest = 0, 0, _FLOOR
        for window in cut_windows(_resampled(decoded, clock, config.audio_rate), config):
            windows += 1
            level = loudness(window.samples)
            loudest = max(loudest, level)
            if level > config.silence_db:
                count += 1
                yield window
        if windows == 0:
            raise MediaError("no audio can be decoded: it is empty or damaged.", DAMAGED)
        if count == 0:
            raise MediaError(
                f"the audio is silent throughout: at most {loudest:.0f} dBFS, "
                f"but the limit is {config.silence_db:.0f}.",
            )
        containers.note_early_end(container, stream, clock.end, "audio", note)


def loudness(samples: FloatArray) -> float:
    """RMS of samples (T,) in dBFS; minus infinity for silence."""
    power = float(np.dot(samples, samples)) / max(1, len(samples))
    return 10 * float(np.log10(power)) if power > 0 else -float("inf")


def cut_windows(
    blocks: Iterator[tuple[float, FloatArray]], config: SegmentConfig
) -> Iterator[Window]:
    """Cut blocks of samples, each with its start in seconds, into windows.

    Windows are `audio_window` long; a last one that is shorter than `min_audio` is joined to the
    one before it. A gap between blocks begins a new window.
    """
    rate = config.audio_rate
    full = round(config.audio_window * rate)
    spare = round(config.min_audio * rate)
    buffer = np.empty(full + spare, np.float32)
    filled, start = 0, 0.0
    for time, block in blocks:
        if abs(time - (start + filled / rate)) > _GAP or filled == 0:
            if filled:
                yield _window(buffer[:filled], start, rate)
            start, filled = time, 0
        while len(block):
            taken = min(len(block), len(buffer) - filled)
            buffer[filled : filled + taken] = block[:taken]
            filled, block = filled + taken, block[taken:]
            if filled == len(buffer):
                yield _window(buffer[:full], start, rate)
                # The spare samples begin the next window, which is therefore long enough.
                buffer[:spare] = buffer[full:].copy()
                start, filled = start + full / rate, spare
    if filled:
        yield _window(buffer[:filled], start, rate)


def _window(samples: FloatArray, start: float, rate: int) -> Window:
    return Window(round(start, 3), round(start + len(samples) / rate, 3), samples.copy())


class _Resampler:
    """Resamples audio without a gap or a change of format to mono blocks of a second."""

    def __init__(self, start: float, rate: int) -> None:
        self.start = start  # seconds
        self.rate = rate
        self.made = 0  # samples
        # Blocks of a second: some codecs have frames of a few milliseconds.
        self.resampler = AudioResampler("flt", "mono", rate, frame_size=rate)

    def blocks(self, frame: AudioFrame | None) -> Iterator[tuple[float, FloatArray]]:
        """Start (seconds) and samples (T,) of blocks that `frame` completes; None ends the run."""
        for out in self.resampler.resample(frame):
            samples = out.to_ndarray().reshape(-1).astype(np.float32, copy=False)
            start = self.start + self.made / self.rate
            self.made += len(samples)
            # Files of floating-point samples may hold any value.
            yield start, np.clip(np.nan_to_num(samples, posinf=1.0, neginf=-1.0), -1.0, 1.0)


def _resampled(
    decoded: Iterator[VideoFrame | AudioFrame], clock: containers.Clock, rate: int
) -> Iterator[tuple[float, FloatArray]]:
    """Start (seconds) and mono samples (T,) in [-1, 1], in blocks."""
    run: _Resampler | None = None
    form: tuple[str, str, int] | None = None
    for frame in decoded:
        if not isinstance(frame, AudioFrame) or frame.samples == 0:
            continue
        _check(frame)
        before = clock.end
        time = clock.span(frame, frame.samples / frame.sample_rate)
        now = (frame.format.name, frame.layout.name, frame.sample_rate)
        if run is None or now != form or time - before > _GAP:
            if run is not None:
                yield from run.blocks(None)
            run, form = _Resampler(time, rate), now
        frame.pts = None  # the run has its own count
        yield from run.blocks(frame)
    if run is not None:
        yield from run.blocks(None)


def _check(frame: AudioFrame) -> None:
    low, high = _RATES
    if not low <= frame.sample_rate <= high:
        raise MediaError(
            f"the audio claims {frame.sample_rate:,} samples a second, "
            f"but only {low:,} to {high:,} are credible.",
            DAMAGED,
        )
    if frame.layout.nb_channels > _CHANNELS:
        raise MediaError(
            f"the audio claims {frame.layout.nb_channels} channels, "
            f"but at most {_CHANNELS} are credible.",
            DAMAGED,
        )
