"""Opens containers of video and audio, chooses a stream, and decodes it to the end."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.codec.context import CodecContext
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard, Disposition, Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from cart_qdrant.errors import MediaError
from cart_qdrant.media.errors import DAMAGED, media_errors

# Bytes of a tag that are not UTF-8 are kept as surrogates; from 19 on the only way there is.
_OPEN_OPTIONS: Any = (
    {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "surrogateescape"}
)

FORMATS = (
    "aac,ac3,aiff,amr,ape,apng,asf,au,avi,caf,dts,dtshd,dv,eac3,flac,flv,gif,h264,hevc,ivf,m4v,"
    "matroska,mov,mp3,mpeg,mpegts,mpegvideo,mxf,ogg,rm,tta,wav,wv,yuv4mpegpipe"
)
"""Formats of FFmpeg that are opened. Each holds its media itself; a playlist (HLS, concat, DASH,
SDP) names other files, and FFmpeg knows it by its content, whatever the file is called."""

_JUMP = 1.0  # seconds that time may go back before the clock is taken to have been reset
_EARLY = 1.0  # seconds missing at the end that are worth a note
_EARLY_SHARE = 0.02  # or this share of the length, if that is more
_STILLS = Disposition.attached_pic | Disposition.timed_thumbnails
_STAMPED_FORMATS = frozenset({"mov", "mp4", "matroska", "webm"})
# Formats whose stream lengths are written down, not estimated from the bit rate.
_EXACT_FORMATS = frozenset({"mov", "mp4", "matroska", "webm", "avi", "flac", "asf", "wav"})


def tag_text(value: str) -> str:
    """A tag as text; bytes that are not UTF-8 become replacement characters."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace").strip()


@contextmanager
def opened(path: Path) -> Iterator[InputContainer]:
    """Open a file as a container and read its header; no other file is opened by that.

    Raises:
        MediaError: The file cannot be opened.
    """
    doing = "the file cannot be opened: it is truncated, damaged or of an unknown format"
    with media_errors(doing):
        # An absolute path has no protocol before it, such as `concat:a|b`.
        container = av.open(
            str(path.absolute()),
            "r",
            container_options={"protocol_whitelist": "file", "format_whitelist": FORMATS},
            **_OPEN_OPTIONS,
        )
    with container:
        yield container


def video_stream(container: InputContainer) -> VideoStream | None:
    """The main video stream that can be decoded; cover art does not count."""
    streams = [s for s in container.streams.video if _decodable(s) and not s.disposition & _STILLS]
    best = container.streams.best("video")
    if isinstance(best, VideoStream) and best in streams:
        return best
    return max(streams, key=lambda s: s.width * s.height, default=None)


def audio_stream(container: InputContainer) -> AudioStream | None:
    """The main audio stream that can be decoded."""
    best = container.streams.best("audio")
    if isinstance(best, AudioStream) and _decodable(best):
        return best
    return next((s for s in container.streams.audio if _decodable(s)), None)


def nothing_usable(container: InputContainer) -> MediaError:
    """The error that says why a container has no stream that can be decoded."""
    streams = [s.type for s in container.streams if s.type in {"video", "audio"}]
    if streams:
        what = f"there is no decoder for its {' and '.join(dict.fromkeys(streams))}."
        return MediaError(what, "Convert it, for example to mp4.")
    return MediaError("the file has neither video nor audio.", DAMAGED)


def _decodable(stream: VideoStream | AudioStream) -> bool:
    context: CodecContext | None = stream.codec_context  # None, whatever its type says
    return context is not None


def origin(container: InputContainer, stream: Stream) -> float:
    """The time stamp, in seconds, at which a player begins to count."""
    if container.start_time is not None:
        return container.start_time / av.time_base
    return float((stream.start_time or 0) * (stream.time_base or 0))


def seconds(container: InputContainer, stream: Stream | None) -> float | None:
    """Declared length in seconds of a stream, else of the file; None where it is not known."""
    if stream is not None:
        if stream.duration is not None and stream.time_base is not None:
            return float(stream.duration * stream.time_base)
        # Matroska keeps the lengths of streams as tags: 00:00:10.000000000
        hours = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))
        if hours:
            return int(hours[1]) * 3600 + int(hours[2]) * 60 + float(hours[3])
        if len(container.streams) > 1:
            return None
    return container.duration / av.time_base if container.duration is not None else None


class Clock:
    """Gives frames their times in seconds, counted from 0, whatever their time stamps are.

    Args:
        origin: Time stamp, in seconds, that is time 0.
    """

    def __init__(self, origin: float) -> None:
        self.shift = -origin
        self.end = 0.0  # of the last frame
        self.reached = 0.0  # end of the last packet, also where its frame was not wanted

    def reach(self, packet: Packet[Any]) -> None:
        """Note the end of a packet that was decoded."""
        if packet.pts is not None and packet.duration and packet.time_base:
            end = float((packet.pts + packet.duration) * packet.time_base) + self.shift
            self.reached = max(self.reached, end)

    def span(self, frame: VideoFrame | AudioFrame, length: float) -> float:
        """Start of the next frame, `length` seconds long; without a stamp it follows the last."""
        time = self.end if frame.time is None else frame.time + self.shift
        if time < self.end - _JUMP:
            # In recordings that were joined, time stamps start again.
            self.shift += self.end - time
            time = self.end
        time = max(time, 0.0)
        self.end = time + length
        return time


def has_stamps(container: InputContainer) -> bool:
    """Whether the format gives every frame a time stamp."""
    return not _STAMPED_FORMATS.isdisjoint(container.format.name.split(","))


def frames(
    container: InputContainer,
    stream: VideoStream | AudioStream,
    note: Callable[[str], None],
    clock: Clock,
) -> Iterator[VideoFrame | AudioFrame]:
    """Every frame of a stream that can be decoded, in order of presentation.

    Damaged packets are skipped and noted; where the container breaks off, the frames end.
    """
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all
    stream.codec_context.thread_type = "AUTO"
    damaged = 0
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except (av.FFmpegError, OSError) as error:
            note(f"the {stream.type} breaks off: {error.strerror or error}")
            break
        if packet is None:
            break
        try:
            decoded = packet.decode()
        except (av.FFmpegError, ValueError):
            damaged += 1
            continue
        clock.reach(packet)
        for frame in decoded:
            if isinstance(frame, (VideoFrame, AudioFrame)):
                yield frame
    if damaged:
        note(f"{damaged} damaged packets of {stream.type} were skipped")


def note_early_end(
    container: InputContainer,
    stream: VideoStream | AudioStream,
    end: float,
    what: str,
    note: Callable[[str], None],
) -> None:
    """Tell `note` if the stream ended, at `end` seconds, well before its declared length."""
    if _EXACT_FORMATS.isdisjoint(container.format.name.split(",")):
        return
    declared = seconds(container, stream)
    if declared is not None and declared - end > max(_EARLY, _EARLY_SHARE * declared):
        note(f"the {what} ends at {end:.1f} s of {declared:.1f} s: the file is truncated")
