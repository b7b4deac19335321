"""Decodes images of any mode to upright RGB, scaled down; very large ones are refused first."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cart_qdrant.arrays.types import ByteArray
from cart_qdrant.config import SegmentConfig
from cart_qdrant.errors import MediaError
from cart_qdrant.media.errors import DAMAGED, PILLOW_ERRORS, media_errors
from cart_qdrant.media.exif import Exif, read_exif

ANIMATED_FORMATS = frozenset({"GIF", "PNG", "WEBP", "AVIF"})
MAX_ASPECT = 4  # a longer side is at most this many times max_side
_SHORTEST_FRAME = 0.02  # seconds; browsers show frames that claim less for 0.1 s
_DEFAULT_FRAME = 0.1  # seconds
_MIN_PART = 0.25  # share of the rows that a truncated image must have
_END_OF_JPEG = b"\xff\xd9"
_REDUCING_GAP = 2  # an image is averaged down to this many times its size, then resampled
_STRIP = 1 << 22  # pixels handled at once when a large image is averaged down
_OPEN_LOCK = threading.Lock()

_TRANSPOSED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What an image's header says; width and height, in pixels, are of the upright image."""

    width: int
    height: int
    animated: bool
    tags: dict[str, str]


def fit(width: int, height: int, max_side: int) -> tuple[int, int]:
    """The size (width, height) at which an image is decoded.

    The shorter side is at most `max_side`, the longer side at most `MAX_ASPECT` times that; an
    image is never enlarged.
    """
    scale = min(1.0, max_side / min(width, height), MAX_ASPECT * max_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def load_image(path: Path, config: SegmentConfig, note: Callable[[str], None]) -> ByteArray:
    """Decode an image.

    Args:
        path: The file.
        config: Limits of size.
        note: Receives a sentence about damage that does not prevent decoding.

    Returns:
        RGB (H, W, 3), upright, transparency on white.

    Raises:
        MediaError: The image is too large, truncated beyond use, or in no known format.
    """
    with (
        media_errors("the image cannot be decoded", also=PILLOW_ERRORS),
        _opened(path, config) as image,
    ):
        exif = _exif(image, note)
        size = fit(*image.size, config.max_side)
        image.draft("RGB", size)  # a JPEG is decoded at about this size: several times faster
        try:
            image.load()
        except OSError as error:
            whole = _salvage(path, image, error, note)
        else:
            whole = image
        rgb = to_rgb(whole, fit(*whole.size, config.max_side))
        if exif.orientation in _TRANSPOSED:
            rgb = rgb.transpose(_TRANSPOSED[exif.orientation])
        return np.asarray(rgb)


def iter_animation(
    path: Path, config: SegmentConfig, note: Callable[[str], None]
) -> Iterator[tuple[float, float, ByteArray]]:
    """Decode the frames of an animated image.

    Yields:
        Start and end of the frame in seconds, and the frame, RGB (H, W, 3).

    Raises:
        MediaError: No frame can be decoded.
    """
    with (
        media_errors("the animation cannot be decoded", also=PILLOW_ERRORS),
        _opened(path, config) as image,
    ):
        frames = int(getattr(image, "n_frames", 1))
        size = fit(*image.size, config.max_side)
        start = 0.0
        for index in range(frames):
            try:
                image.seek(index)
                image.load()  # WebP tells the duration of a frame only then
                rgb = to_rgb(image, size)
            except PILLOW_ERRORS as error:
                if index == 0:
                    raise
                note(f"only {index} of {frames} frames can be decoded ({error})")
                return
            end = start + _frame_seconds(image)
            yield start, end, np.asarray(rgb)
            start = end


def is_animated(path: Path) -> bool:
    """Whether an image has several frames that follow each other in time."""
    try:
        with _open(path) as image:
            return _moves(image)
    except PILLOW_ERRORS:
        return False  # decoding it will say what is wrong


def probe_image(path: Path, config: SegmentConfig) -> ImageInfo:
    """Read the header and the texts of an image.

    Raises:
        MediaError: The image is too large or in no known format.
    """
    with (
        media_errors("the image cannot be read", also=PILLOW_ERRORS),
        _opened(path, config) as image,
    ):
        exif = _exif(image, lambda _: None)
        width, height = image.size
        if exif.orientation >= 5:  # these exchange rows and columns
            width, height = height, width
        tags = {
            key.lower(): value.strip()
            for key, value in image.info.items()
            if isinstance(key, str) and isinstance(value, str) and value.strip()
        }
        comment = image.info.get("comment")
        if isinstance(comment, bytes) and comment.strip():
            tags["comment"] = comment.decode("utf-8", "replace").strip("\0 \n\t")
        if exif.description:
            tags["description"] = exif.description
        return ImageInfo(width, height, _moves(image), tags)


def to_rgb(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The current frame in RGB at `size` (width, height), transparency on white."""
    scale = _full_scale(image)
    factor = min(image.width // size[0], image.height // size[1]) // _REDUCING_GAP
    image = _reduced(image, factor, scale) if factor > 1 else _plain(image, scale)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    if image.mode == "RGBA":
        ground = Image.new("RGBA", image.size, "white")
        ground.alpha_composite(image)
        image = ground.convert("RGB")
    return image


def _reduced(image: Image.Image, factor: int, scale: float | None) -> Image.Image:
    """`image` scaled down by `factor`, in strips, so that a large image is never held twice."""
    height = factor * max(1, _STRIP // (image.width * factor))
    strips = []
    for top in range(0, image.height, height):
        box = (0, top, image.width, min(top + height, image.height))
        strips.append(_plain(image.crop(box), scale).reduce(factor))
    whole = Image.new(strips[0].mode, (strips[0].width, sum(strip.height for strip in strips)))
    for n, strip in enumerate(strips):
        whole.paste(strip, (0, n * (height // factor)))
    return whole


def _plain(image: Image.Image, scale: float | None) -> Image.Image:
    """`image` in RGB, or in RGBA where it has transparency."""
    if scale is not None:
        levels = np.clip(np.asarray(image, np.float32) * (255 / scale), 0, 255)
        return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        return image.convert("RGBA")  # a palette or colour key too
    return image if image.mode == "RGB" else image.convert("RGB")


def _full_scale(image: Image.Image) -> float | None:
    """The value of white in a grey image of more than 8 bits, which Pillow would clip at 255."""
    if image.mode.startswith("I;"):
        return 65_535.0
    if image.mode not in {"I", "F"}:
        return None
    top = float(np.max(image.getextrema()))
    if not np.isfinite(top):
        raise MediaError("the image has values that are not finite.", DAMAGED)
    usual = (1.0, 255.0, 65_535.0) if image.mode == "F" else (255.0, 65_535.0)
    return next((full for full in usual if top <= full), top)


@contextmanager
def _opened(path: Path, config: SegmentConfig) -> Iterator[Image.Image]:
    """Open an image by reading only its header; a decompression bomb is refused."""
    try:
        image = _open(path)
    except UnidentifiedImageError as error:
        raise MediaError(
            "the image's format is not supported, or its header is damaged.",
            "Convert it to JPEG or PNG.",
        ) from error
    with image:
        width, height = image.size
        if width * height > config.max_pixels:
            raise MediaError(
                f"the image has {width} x {height} = {width * height:,} pixels, "
                f"but the limit is {config.max_pixels:,}.",
                "Scale it down, or raise max_pixels.",
            )
        yield image


def _open(path: Path) -> Image.Image:
    # Our limit replaces Pillow's own, which cannot be set per call.
    with _OPEN_LOCK:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _moves(image: Image.Image) -> bool:
    return image.format in ANIMATED_FORMATS and getattr(image, "n_frames", 1) > 1


def _exif(image: Image.Image, note: Callable[[str], None]) -> Exif:
    block = image.info.get("exif")
    # Pillow turns TIFF upright itself.
    if not isinstance(block, bytes) or not block or image.format == "TIFF":
        return Exif()
    try:
        return read_exif(block)
    except ValueError as error:
        note(f"corrupt EXIF ignored ({error})")
        return Exif()


def _salvage(
    path: Path, image: Image.Image, error: OSError, note: Callable[[str], None]
) -> Image.Image:
    """The decodable part of a truncated JPEG."""
    if image.format not in {"JPEG", "MPO"}:
        raise error
    # With an end mark the decoder takes what there is and fills the rest with one colour.
    whole = Image.open(io.BytesIO(path.read_bytes() + _END_OF_JPEG))
    whole.draft("RGB", image.size)
    whole.load()
    pixels_HWC = np.asarray(ImageOps.grayscale(whole))
    filled = (pixels_HWC == pixels_HWC[-1, -1]).all(axis=1)
    rows = int(len(filled) - np.argmin(filled[::-1])) if not filled.all() else 0
    part = rows / len(filled)
    if part < _MIN_PART:
        raise MediaError(
            f"the image is truncated: only {part:.0%} of it can be decoded, "
            f"but at least {_MIN_PART:.0%} is needed.",
            DAMAGED,
        ) from error
    note(f"the image is truncated: the upper {part:.0%} is used")
    return whole.crop((0, 0, whole.width, rows))


def _frame_seconds(image: Image.Image) -> float:
    seconds = float(image.info.get("duration") or 0) / 1000
    return seconds if seconds >= _SHORTEST_FRAME else _DEFAULT_FRAME
