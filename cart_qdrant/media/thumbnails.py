"""Small pictures of hits: a photo, a frame from the middle of a shot, the waveform of a sound.

Shape suffixes: T samples, P peaks.
"""

from __future__ import annotations

import io
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from cart_qdrant.config import SegmentConfig
from cart_qdrant.errors import MediaError
from cart_qdrant.records import Modality

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.stream import Stream
    from av.video.frame import VideoFrame
    from PIL import Image

FloatArray: TypeAlias = npt.NDArray[np.float32]

WIDTH, HEIGHT = 420, 280  # pixels: twice a tile's, for sharp screens
_QUALITY = 80
_MAX_FRAMES = 1_000  # decoded after a seek, before the wanted one is given up
_MAX_SOUND = 60.0  # seconds of sound drawn
_RATE = 8_000  # samples per second
_BARS = 72
_INK = (91, 141, 239, 255)  # seen on light and on dark


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """An encoded picture and its media type."""

    data: bytes
    mime: str


def thumbnail(path: Path, modality: Modality, start: float, end: float) -> Thumbnail:
    """A picture of the stretch from `start` to `end` (seconds) of a file.

    Raises:
        MediaError: The file is gone or cannot be decoded.
    """
    if not path.is_file():
        raise MediaError("missing")
    if modality is Modality.AUDIO:
        return _png(_draw(_peaks(_samples(path, start, end))))
    if modality is Modality.IMAGE:
        return _jpeg(_picture(path))
    try:
        return _jpeg(_frame(path, (start + end) / 2))
    except MediaError as error:
        try:
            return _jpeg(_picture(path))  # an animation that FFmpeg does not know
        except MediaError:
            raise error from None


def _picture(path: Path) -> Image.Image:
    from PIL import Image

    from cart_qdrant.media.image import load_image

    return Image.fromarray(load_image(path, SegmentConfig(max_side=HEIGHT), lambda _: None))


def _frame(path: Path, time: float) -> Image.Image:
    """The frame shown at `time` (seconds), or the last before it that can be decoded."""
    from PIL import Image

    from cart_qdrant.media import containers
    from cart_qdrant.media.errors import media_errors

    doing = "the video cannot be decoded"
    with containers.opened(path) as container, media_errors(doing, also=(ValueError,)):
        stream = containers.video_stream(container)
        if stream is None:
            raise MediaError("there is no picture in it.")
        zero = containers.origin(container, stream)
        _seek(container, stream, zero + time)
        best: VideoFrame | None = None
        for number, frame in enumerate(container.decode(stream)):
            if best is not None and (frame.time or 0.0) - zero > time:
                break
            best = frame
            if number == _MAX_FRAMES:
                break
        if best is None:
            raise MediaError("there is no picture at that time.")
        image = Image.fromarray(best.to_ndarray(format="rgb24"))
        return image.rotate(best.rotation, expand=True) if best.rotation else image


def _samples(path: Path, start: float, end: float) -> FloatArray:
    """Mono samples (T,) from `start` to `end` (seconds), at `_RATE`."""
    import av

    from cart_qdrant.media import containers
    from cart_qdrant.media.errors import media_errors

    end = min(end, start + _MAX_SOUND) if end > start else start + _MAX_SOUND
    parts: list[FloatArray] = []
    doing = "the sound cannot be decoded"
    with containers.opened(path) as container, media_errors(doing, also=(ValueError,)):
        stream = containers.audio_stream(container)
        if stream is None:
            raise MediaError("there is no sound in it.")
        zero = containers.origin(container, stream)
        _seek(container, stream, zero + start)
        resampler = av.AudioResampler(format="flt", layout="mono", rate=_RATE)
        for frame in container.decode(stream):
            at = (frame.time or 0.0) - zero
            if at >= end:
                break
            if frame.time is not None and at + frame.samples / frame.sample_rate <= start:
                continue
            for out in resampler.resample(frame):
                parts.append(out.to_ndarray().reshape(-1).astype(np.float32))
    if not parts:
        raise MediaError("there is no sound at that time.")
    return np.concatenate(parts)[: int((end - start) * _RATE)]


def _seek(container: InputContainer, stream: Stream, time: float) -> None:
    """Go to the last key frame before `time` (seconds); a stream that cannot, stays at 0."""
    import av

    if time <= 0 or not stream.time_base:
        return
    with suppress(av.FFmpegError):
        container.seek(int(time / stream.time_base), stream=stream)


def _peaks(samples_T: FloatArray) -> FloatArray:
    """Loudest value (P,) of each of `_BARS` stretches, 0 to 1; the loudest of all is 1."""
    parts = np.array_split(np.abs(np.nan_to_num(samples_T)), _BARS)
    peaks_P = np.array([part.max(initial=0.0) for part in parts], dtype=np.float32)
    top = float(peaks_P.max())
    return peaks_P / top if top > 0 else peaks_P


def _draw(peaks_P: FloatArray) -> Image.Image:
    """Bars on a transparent ground."""
    from PIL import Image, ImageDraw

    image = Image.new("RGBA", (WIDTH, HEIGHT), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    step = WIDTH / len(peaks_P)
    for n, peak in enumerate(peaks_P):
        half = max(1.5, float(peak) * HEIGHT * 0.36)
        left = n * step + step * 0.2
        box = (left, HEIGHT / 2 - half, left + step * 0.6, HEIGHT / 2 + half)
        draw.rounded_rectangle(box, radius=step * 0.3, fill=_INK)
    return image


def _jpeg(image: Image.Image) -> Thumbnail:
    image.thumbnail((WIDTH, HEIGHT))
    out = io.BytesIO()
    image.convert("RGB").save(out, "JPEG", quality=_QUALITY, optimize=True)
    return Thumbnail(out.getvalue(), "image/jpeg")


def _png(image: Image.Image) -> Thumbnail:
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return Thumbnail(out.getvalue(), "image/png")
