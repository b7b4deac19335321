"""Media files to segments: one streaming pass a stream, bounded memory, errors in words.

`sniff` tells media from other files, `probe` reads the header, `decode` cuts and decodes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cart_qdrant.config import SegmentConfig
from cart_qdrant.errors import MediaError
from cart_qdrant.media.clip import Clip
from cart_qdrant.media.errors import DAMAGED, media_errors
from cart_qdrant.media.sniff import MEDIA_EXTENSIONS, Kind, sniff
from cart_qdrant.records import Modality, Segment

__all__ = ["MEDIA_EXTENSIONS", "Kind", "MediaInfo", "decode", "probe", "sniff"]

Pair = tuple[Segment, Clip]

_TAGS = ("title", "comment", "description", "artist", "synopsis", "album", "genre")


@dataclass(frozen=True, slots=True)
class MediaInfo:
    """What the header of a file says.

    Attributes:
        kind: As `sniff` tells it.
        modality: What its segments are mainly made of; an animated picture is a video.
        duration: Seconds; 0 for a picture, None where the header does not tell.
        width: Pixels; of video as it is stored, of pictures upright; 0 without picture.
        height: Likewise.
        has_audio: Whether there is a sound track.
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
        MediaError: It is no known media, or its header is damaged.
    """
    kind = _known(path)
    if kind is Kind.CONTAINER:
        return _probe_container(path)
    from cart_qdrant.media.image import probe_image

    info = probe_image(path, config or SegmentConfig())
    modality, duration = (Modality.VIDEO, None) if info.animated else (Modality.IMAGE, 0.0)
    return MediaInfo(kind, modality, duration, info.width, info.height, False, info.tags)


def _say_nothing(_remark: str) -> None:
    return


def decode(
    path: Path,
    rel: str,
    config: SegmentConfig,
    note: Callable[[str], None] = _say_nothing,
    wanted: Collection[Modality] = tuple(Modality),
) -> Iterator[Pair]:
    """Cut a file into segments and decode each, in time order.

    A picture is one segment. A video has its shots, and the windows of its sound track as segments
    of their own. Memory does not grow with the length of the file.

    Args:
        path: The file.
        rel: Its name in the index: `Segment.path` and `Clip.key`.
        config: How to cut.
        note: Told, in words, what is odd about a file that can be used.
        wanted: Kinds of segments; others are not decoded.

    Raises:
        MediaError: Nothing that is wanted can be used; raised while iterating.
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
        raise MediaError(f"there is no {' or '.join(map(str, wanted))} in it.")
    # Each branch reads the file for itself: however picture and sound are interleaved, neither
    # has to wait for the other in memory.
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
    """The pairs of a branch; what ends it early is kept for when the others are done."""
    try:
        with media_errors("it cannot be decoded"):
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
    yield segment, Clip(Modality.IMAGE, frames=(frame,), key=rel, id=segment.id)


def _video(shots: Iterator[object], rel: str) -> Iterator[Pair]:
    from cart_qdrant.media.shots import Shot

    for shot in shots:
        assert isinstance(shot, Shot)
        segment = Segment(rel, Modality.VIDEO, shot.start, shot.end)
        yield segment, Clip(Modality.VIDEO, frames=shot.frames, key=rel, id=segment.id)


def _audio(
    path: Path, rel: str, config: SegmentConfig, note: Callable[[str], None]
) -> Iterator[Pair]:
    from cart_qdrant.media.audio import audio_windows

    for window in audio_windows(path, config, note):
        segment = Segment(rel, Modality.AUDIO, window.start, window.end)
        clip = Clip(
            Modality.AUDIO,
            samples=window.samples,
            rate=config.audio_rate,
            key=rel,
            id=segment.id,
        )
        yield segment, clip


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
