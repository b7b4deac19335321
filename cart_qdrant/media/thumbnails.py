"""Makes thumbnails of hits: an image, a frame from the middle of a shot, a waveform of audio.

Shape suffixes: T samples, P peaks.
"""

from __future__ import annotations

import io
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.config import SegmentConfig
from cart_qdrant.errors import MediaError
from cart_qdrant.extras import require
from cart_qdrant.media.sniff import sniff
from cart_qdrant.records import Modality

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.stream import Stream
    from av.video.frame import VideoFrame
    from PIL import Image

WIDTH, HEIGHT = 420, 280  # pixels: twice a tile's, for sharp screens
_QUALITY = 80
_MAX_FRAMES = 1_000  # decoded after a seek, before the wanted one is given up
_MAX_AUDIO = 60.0  # seconds of audio drawn
_RATE = 8_000  # samples per second
_BARS = 72
_INK = (91, 141, 239, 255)  # seen on light and on dark


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """An encoded image and its media type, such as `image/jpeg`."""

    data: bytes
    mime: str


def thumbnail(path: Path, modality: Modality, start: float, end: float) -> Thumbnail:
    """An image of the stretch from `start` to `end` (seconds) of a file.

    Raises:
        MediaError: The file is missing, no known media, or cannot be decoded.
        MissingExtraError: PyAV or Pillow is not installed.
    """
    if not path.is_file():
        raise MediaError("missing")
    require("media", "av", "PIL")
    if sniff(path) is None:
        raise MediaError("its content is no known media.")
    if modality is Modality.AUDIO:
        return _png(_draw(_peaks(_samples(path, start, end))))
    if modality is Modality.IMAGE:
        return _jpeg(_image(path))
    try:
        return _jpeg(_frame(path, (start + end) / 2))
    except MediaError as error:
        try:
            return _jpeg(_image(path))  # an animation that FFmpeg does not know
        except MediaError:
            raise error from None


def _image(path: Path) -> Image.Image:
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
            raise MediaError("there is no video in the file.")
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
            raise MediaError("there is no frame at that time.")
        image = Image.fromarray(best.to_ndarray(format="rgb24"))
        return image.rotate(best.rotation, expand=True) if best.rotation else image


def _samples(path: Path, start: float, end: float) -> FloatArray:
    """Mono samples (T,) from `start` to `end` (seconds), at `_RATE`."""
    import av

    from cart_qdrant.media import containers
    from cart_qdrant.media.errors import media_errors

    end = min(end, start + _MAX_AUDIO) if end > start else start + _MAX_AUDIO
    parts: list[FloatArray] = []
    doing = "the audio cannot be decoded"
    with containers.opened(path) as container, media_errors(doing, also=(ValueError,)):
        stream = containers.audio_stream(container)
        if stream is None:
            raise MediaError("there is no audio in the file.")
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
        raise MediaError("there is no audio at that time.")
    return np.concatenate(parts)[: int((end - start) * _RATE)]


def _seek(container: InputContainer, stream: Stream, time: float) -> None:
    """Go to the last key frame before `time` (seconds); a stream that cannot seek stays at 0."""
    import av

    if time <= 0 or not stream.time_base:
        return
    with suppress(av.FFmpegError):
        container.seek(int(time / stream.time_base), stream=stream)


def _peaks(samples_T: FloatArray) -> FloatArray:
    """Peak (P,) of each of `_BARS` stretches, scaled so that the highest is 1."""
    parts = np.array_split(np.abs(np.nan_to_num(samples_T)), _BARS)
    peaks_P = np.array([part.max(initial=0.0) for part in parts], dtype=np.float32)
    top = float(peaks_P.max())
    return peaks_P / top if top > 0 else peaks_P


def _draw(peaks_P: FloatArray) -> Image.Image:
    """A waveform of bars on a transparent background."""
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
