"""Video files and animated pictures to shots: decoding, sampling by time, turning upright."""

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
class _Picture:
    """A decoded picture, shown from `time` until the next one, or `until` when it is the last."""

    time: float
    until: Callable[[], float]
    look: Callable[[], Look]
    render: Callable[[], ByteArray]


def video_shots(path: Path, config: SegmentConfig, note: Callable[[str], None]) -> Iterator[Shot]:
    """Shots of the video stream of a file, in time order.

    Raises:
        MediaError: No shot: nothing can be decoded, or all is black.
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
        yield from _shots(_pictures(container, stream, config, note), config)


def animation_shots(
    path: Path, config: SegmentConfig, note: Callable[[str], None]
) -> Iterator[Shot]:
    """Shots of an animated GIF, PNG, WebP or AVIF, in time order.

    Raises:
        MediaError: As for `video_shots`.
    """
    pictures = (
        _Picture(start, lambda end=end: end, lambda rgb=rgb: _look(rgb), lambda rgb=rgb: rgb)  # type: ignore[misc]
        for start, end, rgb in iter_animation(path, config, note)
    )
    yield from _shots(pictures, config)


def _shots(pictures: Iterator[_Picture], config: SegmentConfig) -> Iterator[Shot]:
    seen, count = Seen(), 0
    for shot in cut(_sampled(pictures, config), config, seen):
        count += 1
        yield shot
    if count:
        return
    if seen.samples == 0:
        raise MediaError("no frame of the video can be decoded: it is empty or damaged.", DAMAGED)
    raise MediaError(f"the video is black throughout ({seen.black} sampled frames).")


def _sampled(pictures: Iterator[_Picture], config: SegmentConfig) -> Iterator[Sample]:
    """The picture shown at each multiple of `1 / sample_fps`, however they are spaced.

    The last sample ends with the video. A picture that is shown for very long is repeated only
    until it counts as frozen and its shot is full: nothing more can come of it.
    """
    step = 1.0 / config.sample_fps
    most = config.max_shot + config.min_shot + config.min_still
    last: Sample | None = None
    tick, end = 0, 0.0
    for picture, until in _shown(pictures):
        end = until
        tick = max(tick, math.floor(picture.time / step))  # nothing is shown before the first
        stop = _ticks(min(until, picture.time + most), step)
        if tick < stop:
            look = picture.look()
            for n in range(tick, stop):
                if last is not None:
                    yield last
                last = Sample(n * step, (n + 1) * step, look, picture.render)
        tick = max(tick, _ticks(until, step))
    if last is not None:
        yield replace(last, until=max(end, last.time + _SHORTEST))


def _shown(pictures: Iterator[_Picture]) -> Iterator[tuple[_Picture, float]]:
    """Each picture, and the time at which the next one takes its place."""
    held: _Picture | None = None
    for picture in pictures:
        if held is not None:
            yield held, picture.time
        held = picture
    if held is not None:
        yield held, held.until()


def _ticks(time: float, step: float) -> int:
    """How many ticks lie before `time`."""
    return max(0, math.ceil(time / step - 1e-6))


def _pictures(
    container: InputContainer,
    stream: VideoStream,
    config: SegmentConfig,
    note: Callable[[str], None],
) -> Iterator[_Picture]:
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
        yield _Picture(
            time,
            lambda: max(clock.end, clock.reached),
            lambda frame=frame: look.look(frame),  # type: ignore[misc]
            lambda frame=frame: render.picture(frame),  # type: ignore[misc]
        )
    containers.note_early_end(container, stream, clock.end, "video", note)


class _Renderer:
    """Scales decoded frames; one scaler for each use, since it is set up for one pair of sizes."""

    def __init__(self, config: SegmentConfig, aspect: float) -> None:
        self.max_side = config.max_side
        self.aspect = aspect  # width of a pixel over its height
        self.scaler = VideoReformatter()

    def look(self, frame: VideoFrame) -> Look:
        small = self.scaler.reformat(frame, LOOK_SIDE, LOOK_SIDE, "rgb24", interpolation="AREA")
        return Look(small.to_ndarray().astype(np.uint8, copy=False))

    def picture(self, frame: VideoFrame) -> ByteArray:
        """RGB (H, W, 3), pixels square, upright."""
        width, height = fit(round(frame.width * self.aspect), frame.height, self.max_side)
        scaled = self.scaler.reformat(frame, width, height, "rgb24", interpolation="AREA")
        turns = round(frame.rotation / 90) % 4  # quarter turns, counter-clockwise
        return np.ascontiguousarray(np.rot90(scaled.to_ndarray(), turns), np.uint8)


def _look(rgb: ByteArray) -> Look:
    small = Image.fromarray(rgb).resize((LOOK_SIDE, LOOK_SIDE), Image.Resampling.BOX)
    return Look(np.asarray(small))
