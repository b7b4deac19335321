"""Makes real media files, good and bad, for tests: videos with shots, sounds, pictures.

Everything is deterministic and small. `bad_inputs` makes one file of each kind of bad input.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from cart_qdrant.arrays.types import ByteArray, FloatArray

RATE = 16_000  # samples per second of the sounds made here


# Pictures


def scene(seed: int, *, width: int = 160, height: int = 120) -> ByteArray:
    """A picture, RGB (H, W, 3), of coloured patches; other seeds look quite different."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(40, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(
        Image.fromarray(patches).resize((width, height), Image.Resampling.NEAREST), np.uint8
    )


def moving(seed: int, count: int, *, width: int = 160, height: int = 120) -> list[ByteArray]:
    """`count` frames of a scene in which a small white square moves."""
    frames = []
    side = height // 6
    for n in range(count):
        frame = scene(seed, width=width, height=height).copy()
        x, y = (side * n // 3) % (width - side), (side * n // 4) % (height - side)
        frame[y : y + side, x : x + side] = 255
        frames.append(frame)
    return frames


def black(count: int, *, width: int = 160, height: int = 120) -> list[ByteArray]:
    """`count` black frames."""
    return [np.zeros((height, width, 3), np.uint8)] * count


def write_image(path: Path, rgb: ByteArray | None = None, **options: object) -> Path:
    """Write a picture in the format of the name; `options` go to Pillow."""
    Image.fromarray(scene(1) if rgb is None else rgb).save(path, **options)
    return path


def write_animation(path: Path, frames: Sequence[ByteArray], *, milliseconds: int = 100) -> Path:
    """Write an animated GIF, PNG or WebP."""
    first, *rest = [Image.fromarray(frame) for frame in frames]
    first.save(path, save_all=True, append_images=rest, duration=milliseconds, loop=0)
    return path


def write_png_bomb(path: Path, side: int = 30_000) -> Path:
    """A valid PNG of `side` x `side` pixels of one bit, made row by row: about 100 kB."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    packer = zlib.compressobj(1)
    row = bytes(1 + (side + 7) // 8)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )
    return path


def write_corrupt_exif(path: Path) -> Path:
    """A JPEG whose picture is sound and whose EXIF block is not."""
    return write_image(path, exif=b"Exif\x00\x00MM\x00*\x00\x00\xff\xf0garbage")


# Sounds


def tone(seconds: float, *, hertz: float = 440.0, level: float = 0.5) -> FloatArray:
    """A sine, mono (T,), at `RATE`."""
    time = np.arange(round(seconds * RATE)) / RATE
    return (level * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def silence(seconds: float) -> FloatArray:
    """Zeros, mono (T,), at `RATE`."""
    return np.zeros(round(seconds * RATE), np.float32)


def write_audio(
    path: Path,
    samples: FloatArray,
    *,
    codec: str = "pcm_s16le",
    cover: ByteArray | None = None,
    tags: dict[str, str] | None = None,
) -> Path:
    """Write mono samples at `RATE`; `cover` becomes an embedded picture (m4a, mp3, flac)."""
    # The format called ipod, which FFmpeg takes for m4a, refuses covers.
    form = "mp4" if path.suffix == ".m4a" else None
    with av.open(str(path), "w", format=form) as container:
        container.metadata.update(tags or {})
        stream = container.add_stream(codec, rate=RATE, layout="mono")
        picture = None
        if cover is not None:
            height, width = cover.shape[:2]
            picture = container.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = width, height, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
            container.mux(
                picture.encode(av.VideoFrame.from_ndarray(cover).reformat(format="yuvj420p"))
            )
            container.mux(picture.encode())
        _encode_audio(container, stream, samples)
    return path


def write_long_silence(path: Path, hours: float = 3.0) -> Path:
    """A FLAC of digital silence: about 100 kB an hour."""
    rate = 8000
    with av.open(str(path), "w", format="flac") as container:
        stream = container.add_stream("flac", rate=rate, layout="mono")
        block = np.zeros((1, 16 * rate), np.int16)
        for n in range(round(hours * 3600 / 16)):
            frame = av.AudioFrame.from_ndarray(block, format="s16", layout="mono")
            frame.sample_rate, frame.pts = rate, n * block.shape[1]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


# Videos


def write_video(
    path: Path,
    frames: Iterable[ByteArray],
    *,
    fps: int = 8,
    times: Sequence[float] | None = None,
    sound: FloatArray | None = None,
    rotation: float = 0.0,
    fast_start: bool = False,
    tags: dict[str, str] | None = None,
) -> Path:
    """Write RGB frames (H, W, 3) as a video in the format of the name.

    Args:
        fps: Frames per second.
        times: Times of the frames, seconds, in place of `fps`: a variable frame rate.
        sound: Mono samples at `RATE` for a sound track.
        rotation: Degrees, counter-clockwise, that a player turns the video by.
        fast_start: Put the index of an mp4 first, so that a truncated file can be opened.
        tags: Container tags (title, comment ...).
    """
    options = {"movflags": "faststart"} if fast_start else {}
    base = Fraction(1, 1000)
    with av.open(str(path), "w", options=options) as container:
        container.metadata.update(tags or {})
        stream = None
        track = None
        for n, frame in enumerate(frames):
            if stream is None:
                height, width = frame.shape[:2]
                codec = "libvpx" if path.suffix == ".webm" else "libx264"
                stream = container.add_stream(codec, rate=fps)
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                stream.options = {"preset": "ultrafast", "crf": "18"} if codec == "libx264" else {}
                stream.codec_context.time_base = base
                if rotation:
                    stream.set_display_rotation(rotation)
                if sound is not None:
                    sound_codec = "libopus" if path.suffix == ".webm" else "aac"
                    track = container.add_stream(sound_codec, rate=48_000, layout="mono")
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts = round(1000 * (times[n] if times is not None else n / fps))
            picture.time_base = base
            container.mux(stream.encode(picture))
        if stream is None:
            raise ValueError("a video needs frames; see write_video_without_frames")
        container.mux(stream.encode())
        if track is not None and sound is not None:
            _encode_audio(container, track, sound)
    return path


def write_video_without_frames(path: Path) -> Path:
    """A file with a video stream and not one frame."""
    whole = write_video(path.with_name(path.stem + "-whole.mkv"), moving(1, 2))
    content = whole.read_bytes()
    whole.unlink()
    path.write_bytes(content[: content.index(b"\x1f\x43\xb6\x75")])  # up to the first cluster
    return path


def _encode_audio(
    container: av.container.OutputContainer, stream: av.AudioStream, samples: FloatArray
) -> None:
    context = stream.codec_context
    rate = context.sample_rate
    resampler = av.AudioResampler(context.format.name, "mono", rate)
    fifo = av.AudioFifo()
    size = 1024
    for start in range(0, len(samples), size):
        block = np.ascontiguousarray(samples[start : start + size]).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(block, format="flt", layout="mono")
        frame.sample_rate, frame.pts = RATE, start
        for out in resampler.resample(frame):
            out.pts = None
            fifo.write(out)
    for out in resampler.resample(None):
        out.pts = None
        fifo.write(out)
    written = 0
    while (out := fifo.read(context.frame_size or size, partial=True)) is not None:
        out.pts, out.time_base = written, Fraction(1, rate)
        written += out.samples
        container.mux(stream.encode(out))
    container.mux(stream.encode())


# Bad inputs


def truncate(path: Path, share: float) -> Path:
    """Keep the first `share` of a file's bytes."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def non_utf8_name(folder: Path, suffix: str = ".jpg") -> Path:
    """A path in `folder` whose name is Latin-1, not UTF-8."""
    return Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9" + suffix.encode()))


def bad_inputs(folder: Path, *, hours: float = 3.0) -> dict[str, Path]:
    """Make one of each bad input in `folder`; the keys say what it is.

    Usable in part, and so only noted: `truncated jpg`, `truncated mp4`, `corrupt exif`,
    `newline in name`. The others are failures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, Path] = {}
    for extension in ("mp4", "jpg", "wav"):
        made[f"empty {extension}"] = folder / f"empty.{extension}"
        made[f"empty {extension}"].touch()
    made["text named mp4"] = folder / "text.mp4"
    made["text named mp4"].write_text("This is not a video.\n" * 20)
    made["truncated mp4"] = truncate(
        write_video(folder / "cut.mp4", moving(3, 48) + moving(4, 48), fast_start=True), 0.6
    )
    made["mp4 without index"] = truncate(write_video(folder / "headless.mp4", moving(5, 48)), 0.5)
    made["truncated jpg"] = truncate(write_image(folder / "cut.jpg", scene(6)), 0.7)
    made["header of a jpg"] = truncate(write_image(folder / "stub.jpg", scene(6)), 0.22)
    made["decompression bomb"] = write_png_bomb(folder / "bomb.png")
    made["corrupt exif"] = write_corrupt_exif(folder / "exif.jpg")
    made["video without frames"] = write_video_without_frames(folder / "no-frames.mkv")
    made["black video"] = write_video(folder / "black.mp4", black(24))
    made["silent audio"] = write_long_silence(folder / "silent.flac", hours)
    made["newline in name"] = write_image(folder / "two\nlines.jpg")
    made["non-UTF-8 name"] = non_utf8_name(folder)
    made["non-UTF-8 name"].write_bytes(made["newline in name"].read_bytes())
    made["folder loop"] = folder / "loop"
    made["folder loop"].symlink_to(folder, target_is_directory=True)
    made["link to itself"] = folder / "self.jpg"
    made["link to itself"].symlink_to(made["link to itself"])
    made["dangling link"] = folder / "dangling.mp4"
    made["dangling link"].symlink_to(folder / "nowhere.mp4")
    return made
