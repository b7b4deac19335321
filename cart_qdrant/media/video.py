"""Cuts videos and animated images into shots: decodes, samples by time, turns frames upright."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from PIL import Image

from cart_qdrant.arrays.types import ByteArray
from cart_qdrant.config import SegmentConfig
from cart_qdrant.errors import MediaError
from cart_qdrant.media import containers
from cart_qdrant.media.errors import DAMAGED
from cart_qdrant.media.image import fit, iter_animation
from cart_qdrant.media.shots import LOOK_SIDE, Look, Sample, Seen, Shot, cut

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream


_USUAL_RATE = 25.0  # frames per second, where a file does not tell
_SKIP_FACTOR = 4  # source frames per sampled frame from which some need not be decoded
_SHORTEST = 0.001  # seconds; no segment is shorter


@dataclass(frozen=True, slots=True)
class _Frame:
    """A decoded frame, shown from `time` to the next one, or to `until()` if it is the last."""

    time: float
    until: Callable[[], float]
    look: Callable[[], Look]
    render: Callable[[], ByteArray]


def video_shots(path: Path, config: SegmentConfig, note: Callable[[str], None]) -> Iterator[Shot]:
    """Shots of the video stream of a file, in time order.

    Raises:
        MediaError: There is no shot: nothing can be decoded, or every frame is black.
    """
    with containers.opened(path) as container:
        stream = containers.video_stream(container)
        if stream is None:
            raise MediaError("the file has no video.")
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > config.max_pixels:
            raise MediaError(
                f"the video has {width} x {height} = {width * height:,} pixels a frame, "
                f"but the limit is {config.max_pixels:,}.",
                "Scale it down, or raise max_pixels.",
            )
        yield from _shots(_frames(container, stream, config, note), config)


def animation_shots(
    path: Path, config: SegmentConfig, note: Callable[[str], None]
) -> Iterator[Shot]:
    """Shots of an animated GIF, PNG, WebP or AVIF, in time order.

    Raises:
        MediaError: There is no shot: nothing can be decoded, or every frame is black.
    """
    frames = (
        _Frame(start, lambda end=end: end, lambda rgb=rgb: _look(rgb), lambda rgb=rgb: rgb)  # type: ignore[misc]
        for start, end, rgb in iter_animation(path, config, note)
    )
    yield from _shots(frames, config)


def _shots(frames: Iterator[_Frame], config: SegmentConfig) -> Iterator[Shot]:
    seen, count = Seen(), 0
    for shot in cut(_sampled(frames, config), config, seen):
        count += 1
        yield shot
    if count:
        return
    if seen.samples == 0:
        raise MediaError("no frame of the video can be decoded: it is empty or damaged.", DAMAGED)
    raise MediaError(f"the video is black throughout ({seen.black} sampled frames).")


def _sampled(frames: Iterator[_Frame], config: SegmentConfig) -> Iterator[Sample]:
    """The frame shown at each multiple of `1 / sample_fps`, whatever the frame rate is.

    The last sample ends with the video. A frame that is shown for very long is repeated only until
    it counts as frozen and its shot is full, since further samples would change nothing.
    """
    step = 1.0 / config.sample_fps
    most = config.max_shot + config.min_shot + config.min_still
    last: Sample | None = None
    tick, end = 0, 0.0
    for frame, until in _shown(frames):
        end = until
        tick = max(tick, math.floor(frame.time / step))  # nothing is shown before the first
        stop = _ticks(min(until, frame.time + most), step)
        if tick < stop:
            look = frame.look()
            for n in range(tick, stop):
                if last is not None:
                    yield last
                last = Sample(n * step, (n + 1) * step, look, frame.render)
        tick = max(tick, _ticks(until, step))
    if last is not None:
        yield replace(last, until=max(end, last.time + _SHORTEST))


def _shown(frames: Iterator[_Frame]) -> Iterator[tuple[_Frame, float]]:
    """Each frame, and the time at which the next one replaces it."""
    held: _Frame | None = None
    for frame in frames:
        if held is not None:
            yield held, frame.time
        held = frame
    if held is not None:
        yield held, held.until()


def _ticks(time: float, step: float) -> int:
    """Number of sampling times before `time`."""
    return max(0, math.ceil(time / step - 1e-6))


def _frames(
    container: InputContainer,
    stream: VideoStream,
    config: SegmentConfig,
    note: Callable[[str], None],
) -> Iterator[_Frame]:
    rate = float(stream.average_rate or stream.guessed_rate or 0) or _USUAL_RATE
    clock = containers.Clock(containers.origin(container, stream))
    aspect = float(stream.sample_aspect_ratio or 1)
    look, render = _Renderer(config, aspect), _Renderer(config, aspect)
    if rate >= _SKIP_FACTOR * config.sample_fps and containers.has_stamps(container):
        # Frames that no other needs are not decoded: half the work in H.264, and enough remain.
        stream.codec_context.skip_frame = "NONREF"
    for frame in containers.frames(container, stream, note, clock):
        if not isinstance(frame, VideoFrame):
            continue
        own = float(frame.duration * frame.time_base) if frame.time_base else 0.0
        time = clock.span(frame, own or 1.0 / rate)
        yield _Frame(
            time,
            lambda: max(clock.end, clock.reached),
            lambda frame=frame: look.look(frame),  # type: ignore[misc]
            lambda frame=frame: render.full(frame),  # type: ignore[misc]
        )
    containers.note_early_end(container, stream, clock.end, "video", note)


class _Renderer:
    """Scales decoded frames; each use has a scaler of its own, which is set up for one size."""

    def __init__(self, config: SegmentConfig, aspect: float) -> None:
        self.max_side = config.max_side
        self.aspect = aspect  # width of a pixel over its height
        self.scaler = VideoReformatter()

    def look(self, frame: VideoFrame) -> Look:
        small = self.scaler.reformat(frame, LOOK_SIDE, LOOK_SIDE, "rgb24", interpolation="AREA")
        return Look(small.to_ndarray().astype(np.uint8, copy=False))

    def full(self, frame: VideoFrame) -> ByteArray:
        """The frame as RGB (H, W, 3), upright, with square pixels."""
        width, height = fit(round(frame.width * self.aspect), frame.height, self.max_side)
        scaled = self.scaler.reformat(frame, width, height, "rgb24", interpolation="AREA")
        turns = round(frame.rotation / 90) % 4  # quarter turns, counter-clockwise
        return np.ascontiguousarray(np.rot90(scaled.to_ndarray(), turns), np.uint8)


def _look(rgb: ByteArray) -> Look:
    small = Image.fromarray(rgb).resize((LOOK_SIDE, LOOK_SIDE), Image.Resampling.BOX)
    return Look(np.asarray(small))
