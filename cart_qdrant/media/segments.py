"""Cuts media files into segments and decodes them, with bounded memory.

`sniff` tells media from other files, `probe` reads the header, `decode` cuts and decodes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cart_qdrant.config import SegmentConfig
from cart_qdrant.errors import MediaError
from cart_qdrant.extras import require
from cart_qdrant.media.clip import Clip
from cart_qdrant.media.errors import DAMAGED, media_errors
from cart_qdrant.media.sniff import MEDIA_EXTENSIONS, Kind, sniff
from cart_qdrant.progress import say_nothing
from cart_qdrant.records import Modality, Segment

__all__ = ["MEDIA_EXTENSIONS", "Kind", "MediaInfo", "decode", "probe", "sniff"]

Pair = tuple[Segment, Clip]

_TAGS = ("title", "comment", "description", "artist", "synopsis", "album", "genre")


@dataclass(frozen=True, slots=True)
class MediaInfo:
    """What the header of a file says.

    Attributes:
        kind: Kind of file that `sniff` found.
        modality: Main modality of its segments; that of an animated image is video.
        duration: Seconds; 0 for an image, None where the header does not tell.
        width: Pixels; of a video as it is stored, of an image when upright; 0 for audio.
        height: Pixels, as for `width`.
        has_audio: Whether there is an audio stream.
        tags: Texts about the file: title, comment, description, artist and the like.
    """

    kind: Kind
    modality: Modality
    duration: float | None
    width: int
    height: int
    has_audio: bool
    tags: dict[str, str] = field(default_factory=dict)


def probe(path: Path, config: SegmentConfig | None = None) -> MediaInfo:
    """Read the header of a file.

    Raises:
        MediaError: The file is no known media, or its header is damaged.
        MissingExtraError: PyAV or Pillow is not installed.
    """
    kind = _known(path)
    if kind is Kind.CONTAINER:
        return _probe_container(path)
    from cart_qdrant.media.image import probe_image

    info = probe_image(path, config or SegmentConfig())
    modality, duration = (Modality.VIDEO, None) if info.animated else (Modality.IMAGE, 0.0)
    return MediaInfo(kind, modality, duration, info.width, info.height, False, info.tags)


def decode(
    path: Path,
    rel: str,
    config: SegmentConfig,
    note: Callable[[str], None] = say_nothing,
    wanted: Collection[Modality] = tuple(Modality),
) -> Iterator[Pair]:
    """Cut a file into segments and decode each, in time order.

    An image is one segment. A video has its shots as segments, and the windows of its audio stream.
    Memory does not grow with the length of the file.

    Args:
        path: The file.
        rel: Its path in the index, which becomes `Segment.path` and `Clip.key`.
        config: Lengths and thresholds of the cutting.
        note: Receives a sentence about damage that does not prevent decoding.
        wanted: Modalities to decode; segments of others are left out.

    Raises:
        MediaError: No wanted segment can be decoded; raised while iterating.
        MissingExtraError: PyAV or Pillow is not installed.
    """
    noted: set[str] = set()

    def note_once(reason: str) -> None:
        if reason not in noted:
            noted.add(reason)
            note(reason)

    kind = _known(path)
    failures: list[MediaError] = []
    count = 0
    branches = [
        _guarded(branch, failures)
        for modality, branch in _branches(path, rel, kind, config, note_once)
        if modality in wanted
    ]
    if not branches:
        raise MediaError(f"there is no {' or '.join(map(str, wanted))} in the file.")
    # Each branch reads the file for itself: however video and audio are interleaved, neither has to
    # wait for the other in memory.
    for pair in heapq.merge(*branches, key=lambda pair: pair[0].start):
        count += 1
        yield pair
    if count == 0:
        raise MediaError(" ".join(e.what for e in failures), failures[0].remedy if failures else "")
    for failure in failures:
        note_once(failure.what)


def _known(path: Path) -> Kind:
    with media_errors():
        size = path.stat().st_size
    if size == 0:
        raise MediaError("the file is empty (0 bytes).", DAMAGED)
    require("media", "av", "PIL")
    kind = sniff(path)
    if kind is None:
        extension = path.suffix.lower()
        if extension in MEDIA_EXTENSIONS:
            raise MediaError(
                f"it says {extension}, but its content is no known media.",
                "Give it its right extension, or exclude it.",
            )
        raise MediaError("its content is no known media.", "Exclude it.")
    return kind


def _guarded(branch: Iterator[Pair], failures: list[MediaError]) -> Iterator[Pair]:
    """The pairs of a branch; an error that ends it is added to `failures`."""
    try:
        with media_errors("the file cannot be decoded"):
            yield from branch
    except MediaError as error:
        failures.append(error)


def _branches(
    path: Path, rel: str, kind: Kind, config: SegmentConfig, note: Callable[[str], None]
) -> list[tuple[Modality, Iterator[Pair]]]:
    if kind is Kind.IMAGE:
        return [(Modality.IMAGE, _image(path, rel, config, note))]
    if kind is Kind.ANIMATION:
        from cart_qdrant.media.video import animation_shots

        return [(Modality.VIDEO, _video(animation_shots(path, config, note), rel))]
    from cart_qdrant.media import containers
    from cart_qdrant.media.video import video_shots

    branches: list[tuple[Modality, Iterator[Pair]]] = []
    with containers.opened(path) as container:
        has_video = containers.video_stream(container) is not None
        has_audio = containers.audio_stream(container) is not None
        if not has_video and not has_audio:
            raise containers.nothing_usable(container)
    if has_video:
        branches.append((Modality.VIDEO, _video(video_shots(path, config, note), rel)))
    if has_audio:
        branches.append((Modality.AUDIO, _audio(path, rel, config, note)))
    return branches


def _image(
    path: Path, rel: str, config: SegmentConfig, note: Callable[[str], None]
) -> Iterator[Pair]:
    from cart_qdrant.media.image import load_image

    segment = Segment(rel, Modality.IMAGE)
    frame = load_image(path, config, note)
    yield segment, Clip.of(segment, frames=(frame,))


def _video(shots: Iterator[object], rel: str) -> Iterator[Pair]:
    from cart_qdrant.media.shots import Shot

    for shot in shots:
        assert isinstance(shot, Shot)
        segment = Segment(rel, Modality.VIDEO, shot.start, shot.end)
        yield segment, Clip.of(segment, frames=shot.frames)


def _audio(
    path: Path, rel: str, config: SegmentConfig, note: Callable[[str], None]
) -> Iterator[Pair]:
    from cart_qdrant.media.audio import audio_windows

    for window in audio_windows(path, config, note):
        segment = Segment(rel, Modality.AUDIO, window.start, window.end)
        yield segment, Clip.of(segment, samples=window.samples, rate=config.audio_rate)


def _probe_container(path: Path) -> MediaInfo:
    from cart_qdrant.media import containers

    with containers.opened(path) as container:
        video = containers.video_stream(container)
        audio = containers.audio_stream(container)
        if video is None and audio is None:
            raise containers.nothing_usable(container)
        # Ogg keeps its tags with the stream.
        main = video or audio
        found = {**(main.metadata if main else {}), **container.metadata}
        texts = {key.lower(): containers.tag_text(value) for key, value in found.items()}
        return MediaInfo(
            kind=Kind.CONTAINER,
            modality=Modality.AUDIO if video is None else Modality.VIDEO,
            duration=containers.seconds(container, None) or containers.seconds(container, main),
            width=video.width if video else 0,
            height=video.height if video else 0,
            has_audio=audio is not None,
            tags={key: texts[key] for key in _TAGS if texts.get(key)},
        )
