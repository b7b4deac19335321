"""`sniff`, `probe` and `decode` on real files, good and bad."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cart_qdrant.config import SegmentConfig
from cart_qdrant.errors import MediaError, MissingExtraError
from cart_qdrant.media.clip import Clip
from cart_qdrant.media.segments import MEDIA_EXTENSIONS, Kind, decode, probe, sniff
from cart_qdrant.records import Modality, Segment
from tests import media_factory as make

CONFIG = SegmentConfig()
MEMORY = 600 << 20  # bytes; far under the 2 GB that a run may use


def _decode(
    path: Path, config: SegmentConfig = CONFIG
) -> tuple[list[tuple[Segment, Clip]], list[str]]:
    notes: list[str] = []
    return list(decode(path, path.name, config, notes.append)), notes


def _spans(pairs: list[tuple[Segment, Clip]], modality: Modality) -> list[tuple[float, float]]:
    return [(s.start, s.end) for s, _ in pairs if s.modality is modality]


@pytest.mark.parametrize(
    ("name", "writer", "kind"),
    [
        ("a.jpg", make.write_image, Kind.IMAGE),
        ("a.png", make.write_image, Kind.IMAGE),
        ("a.webp", make.write_image, Kind.IMAGE),
        ("a.bmp", make.write_image, Kind.IMAGE),
        ("a.tiff", make.write_image, Kind.IMAGE),
        ("a.ppm", make.write_image, Kind.IMAGE),
        ("a.gif", make.write_image, Kind.IMAGE),
        ("m.gif", lambda p: make.write_animation(p, make.moving(1, 3)), Kind.ANIMATION),
        ("m.png", lambda p: make.write_animation(p, make.moving(1, 3)), Kind.ANIMATION),
        ("m.webp", lambda p: make.write_animation(p, make.moving(1, 3)), Kind.ANIMATION),
        ("a.mp4", lambda p: make.write_video(p, make.moving(1, 3)), Kind.CONTAINER),
        ("a.mkv", lambda p: make.write_video(p, make.moving(1, 3)), Kind.CONTAINER),
        ("a.avi", lambda p: make.write_video(p, make.moving(1, 3)), Kind.CONTAINER),
        ("a.ts", lambda p: make.write_video(p, make.moving(1, 9)), Kind.CONTAINER),
        ("a.wav", lambda p: make.write_audio(p, make.tone(0.2)), Kind.CONTAINER),
        ("a.flac", lambda p: make.write_audio(p, make.tone(0.2), codec="flac"), Kind.CONTAINER),
        (
            "a.mp3",
            lambda p: make.write_audio(p, make.tone(0.2), codec="libmp3lame"),
            Kind.CONTAINER,
        ),
        ("a.aac", lambda p: make.write_audio(p, make.tone(0.2), codec="aac"), Kind.CONTAINER),
        ("a.opus", lambda p: make.write_audio(p, make.tone(0.2), codec="libopus"), Kind.CONTAINER),
    ],
)
def test_sniff_goes_by_content(
    tmp_path: Path, name: str, writer: Callable[[Path], Path], kind: Kind
) -> None:
    path = writer(tmp_path / name)
    assert sniff(path) is kind
    assert sniff(path.rename(tmp_path / "disguised.txt")) is kind


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"file_name": "a.mp4"}',
        b"1\n00:00:01,000 --> 00:00:02,000\nhello\n",
        b"WEBVTT\n\n00:01.000 --> 00:02.000\nhi\n",
        b"#EXTM3U\nhttp://localhost/a.ts\n",
        b"BM is how this text begins, and it is long enough to hold a header of a bitmap",
        b"P6 is a name",
        "a text in UTF-16".encode("utf-16"),
        b"PK\x03\x04" + bytes(60),
        b"\x7fELF" + bytes(60),
    ],
)
def test_other_files_are_no_media(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    assert sniff(tmp_path / "a.mp4") is None


@given(text=st.text(st.characters(codec="ascii", exclude_categories=("Cc",)), min_size=1))
def test_prose_is_no_media(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "prose"
    path.write_text("the " + text)
    assert sniff(path) is None


def test_extensions_are_lower_case_and_hold_no_companions() -> None:
    assert all(e == e.lower() and e.startswith(".") for e in MEDIA_EXTENSIONS)
    assert MEDIA_EXTENSIONS.isdisjoint({".srt", ".vtt", ".json", ".jsonl", ".csv", ".txt", ".ts"})


def test_video_with_sound_gives_both_in_time_order(tmp_path: Path) -> None:
    frames = make.moving(1, 24) + make.moving(2, 24)
    path = make.write_video(tmp_path / "v.mp4", frames, sound=make.tone(6.0))
    pairs, notes = _decode(path, SegmentConfig(audio_window=2.0))
    assert notes == []
    starts = [segment.start for segment, _ in pairs]
    assert starts == sorted(starts)
    assert _spans(pairs, Modality.VIDEO) == [(0.0, 3.0), (3.0, pytest.approx(6.0, abs=0.01))]
    assert [s for s, _ in _spans(pairs, Modality.AUDIO)] == pytest.approx([0.0, 2.0, 4.0])
    for segment, clip in pairs:
        assert (clip.key, clip.id, clip.modality) == ("v.mp4", segment.id, segment.modality)
        assert (clip.samples is None) == (segment.modality is Modality.VIDEO)


def test_silent_sound_track_is_only_noted(tmp_path: Path) -> None:
    path = make.write_video(tmp_path / "v.mp4", make.moving(1, 16), sound=make.silence(2.0))
    pairs, notes = _decode(path)
    assert {segment.modality for segment, _ in pairs} == {Modality.VIDEO}
    assert len(notes) == 1 and "silent throughout" in notes[0]


def test_black_picture_with_sound_gives_the_sound(tmp_path: Path) -> None:
    path = make.write_video(tmp_path / "v.mkv", make.black(16), sound=make.tone(2.0))
    pairs, notes = _decode(path)
    assert {segment.modality for segment, _ in pairs} == {Modality.AUDIO}
    assert len(notes) == 1 and "black throughout" in notes[0]


def test_black_and_silent_names_both(tmp_path: Path) -> None:
    path = make.write_video(tmp_path / "v.mp4", make.black(16), sound=make.silence(2.0))
    with pytest.raises(MediaError, match=r"black throughout.*silent throughout"):
        _decode(path)


def test_image_is_one_segment(tmp_path: Path) -> None:
    path = make.write_image(tmp_path / "a.png", make.scene(3))
    ((segment, clip),), notes = _decode(path)
    assert (segment.path, segment.start, segment.end, notes) == ("a.png", 0.0, 0.0, [])
    assert np.array_equal(clip.frames[0], make.scene(3))


@pytest.mark.parametrize("name", ["m.gif", "m.png", "m.webp"])
def test_animation_is_a_video_with_its_durations(tmp_path: Path, name: str) -> None:
    frames = make.moving(1, 10) + make.moving(2, 10)
    pairs, _ = _decode(make.write_animation(tmp_path / name, frames, milliseconds=200))
    assert _spans(pairs, Modality.VIDEO) == [(0.0, 2.0), (2.0, 4.0)]


def test_single_frame_animation_is_an_image(tmp_path: Path) -> None:
    pairs, _ = _decode(make.write_animation(tmp_path / "one.gif", make.moving(1, 1)))
    assert [segment.modality for segment, _ in pairs] == [Modality.IMAGE]


def test_decoding_twice_gives_the_same(tmp_path: Path) -> None:
    frames = make.moving(1, 24) + make.moving(2, 24)
    path = make.write_video(tmp_path / "v.mp4", frames, sound=make.tone(6.0))
    (one, _), (two, _) = _decode(path), _decode(path)
    assert [segment.id for segment, _ in one] == [segment.id for segment, _ in two]
    for (_, a), (_, b) in zip(one, two, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a.frames, b.frames, strict=True))
        assert a.samples is None or np.array_equal(a.samples, b.samples)


def test_probe_reads_header_and_tags(tmp_path: Path) -> None:
    tags = {"title": "A dog surfing", "comment": "in June"}
    video = probe(
        make.write_video(tmp_path / "v.mp4", make.moving(1, 16), sound=make.tone(2.0), tags=tags)
    )
    assert (video.modality, video.width, video.height, video.has_audio) == ("video", 160, 120, True)
    assert video.duration == pytest.approx(2.0, abs=0.1) and video.tags == tags
    sound = probe(
        make.write_audio(tmp_path / "a.flac", make.tone(1.5), codec="flac", tags={"artist": "Sea"})
    )
    assert (sound.modality, sound.width, sound.has_audio) == ("audio", 0, True)
    assert sound.duration == pytest.approx(1.5) and sound.tags["artist"] == "Sea"


def test_probe_of_ogg_finds_tags_of_the_stream(tmp_path: Path) -> None:
    path = make.write_audio(
        tmp_path / "a.opus", make.tone(1.0), codec="libopus", tags={"title": "Rain"}
    )
    assert probe(path).tags["title"] == "Rain"


@pytest.mark.parametrize(("name", "codec"), [("a.m4a", "aac"), ("a.mp3", "libmp3lame")])
def test_cover_art_is_no_video(tmp_path: Path, name: str, codec: str) -> None:
    path = make.write_audio(tmp_path / name, make.tone(2.0), codec=codec, cover=make.scene(1))
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1  # the cover is there
    assert probe(path).modality is Modality.AUDIO
    pairs, _ = _decode(path)
    assert {segment.modality for segment, _ in pairs} == {Modality.AUDIO}


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make.bad_inputs(tmp_path_factory.mktemp("bad"), hours=0.1)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("empty mp4", "0 bytes"),
        ("empty jpg", "0 bytes"),
        ("empty wav", "0 bytes"),
        ("text named mp4", r"says \.mp4, but its content is no known media"),
        ("mp4 without index", "truncated"),
        ("header of a jpg", "truncated|cannot be decoded"),
        ("decompression bomb", r"900,000,000 pixels, but the limit is 178,956,970"),
        ("video without frames", "truncated|no frame"),
        ("black video", "black throughout"),
        ("silent audio", "silent throughout"),
    ],
)
def test_useless_files_fail_with_a_reason(bad: dict[str, Path], name: str, reason: str) -> None:
    with pytest.raises(MediaError, match=reason):
        _decode(bad[name])


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("truncated mp4", "truncated"),
        ("truncated jpg", "truncated"),
        ("corrupt exif", "corrupt EXIF"),
        ("newline in name", None),
    ],
)
def test_damaged_files_give_what_there_is(
    bad: dict[str, Path], name: str, note: str | None
) -> None:
    pairs, notes = _decode(bad[name])
    assert pairs
    assert (len(notes) == 1 and note in notes[0]) if note else notes == []


@pytest.mark.parametrize("package", ["av", "PIL"])
def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    path = make.write_image(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package} is not .*cart-qdrant\[media\]"):
        probe(path)


def test_a_vanished_file_is_a_media_error(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="gone"):
        _decode(tmp_path / "gone.mp4")


def test_a_bug_in_the_consumer_is_not_disguised(tmp_path: Path) -> None:
    path = make.write_image(tmp_path / "a.png")

    def broken(reason: str) -> None:
        raise ZeroDivisionError(reason)

    with pytest.raises(ZeroDivisionError):
        list(decode(make.write_corrupt_exif(tmp_path / "e.jpg"), "e", CONFIG, broken))
    assert _decode(path)[0]


_SAMPLE: dict[str, bytes] = {}


def _sample(name: str, folder: Path) -> bytes:
    if name not in _SAMPLE:
        path = folder / name
        if name.endswith(("mp4", "mkv")):
            make.write_video(path, make.moving(1, 12), sound=make.tone(1.5), fast_start=True)
        elif name.endswith(("wav", "flac")):
            make.write_audio(path, make.tone(1.0), codec="flac" if "flac" in name else "pcm_s16le")
        elif name == "m.gif":
            make.write_animation(path, make.moving(1, 4))
        else:
            make.write_image(path)
        _SAMPLE[name] = path.read_bytes()
    return _SAMPLE[name]


@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from(
        ["a.mp4", "a.mkv", "a.wav", "a.flac", "a.jpg", "a.png", "m.gif", "a.webp"]
    ),
    damage=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=4),
    share=st.floats(0.02, 1),
)
def test_damaged_content_yields_sound_clips_or_a_media_error(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    damage: list[tuple[float, bytes]],
    share: float,
) -> None:
    folder = tmp_path_factory.getbasetemp()
    content = bytearray(_sample(name, folder))
    for place, data in damage:
        at = int(place * (len(content) - len(data)))
        content[at : at + len(data)] = data
    path = folder / f"damaged-{name}"
    path.write_bytes(bytes(content[: max(1, int(share * len(content)))]))
    try:
        pairs, _ = _decode(path)
    except MediaError as error:
        assert error.what
        return
    assert pairs
    for segment, clip in pairs:
        assert segment.end >= segment.start >= 0
        assert all(f.dtype == np.uint8 and f.ndim == 3 and f.shape[2] == 3 for f in clip.frames)
        if clip.samples is not None:
            assert np.isfinite(clip.samples).all() and np.abs(clip.samples).max() <= 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_is_bounded_whatever_the_input(bad: dict[str, Path]) -> None:
    """The worst inputs, decoded in a process of their own whose memory is measured."""
    code = (
        "import sys; from pathlib import Path\n"
        "from cart_qdrant.config import SegmentConfig\n"
        "from cart_qdrant.errors import MediaError\n"
        "from cart_qdrant.media.segments import decode\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n"
        "        for pair in decode(Path(name), name, SegmentConfig(), lambda reason: None): pass\n"
        "    except MediaError: pass\n"
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
    )
    worst = [str(bad[name]) for name in ("decompression bomb", "silent audio", "truncated mp4")]
    done = subprocess.run([sys.executable, "-c", code, *worst], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Not ru_maxrss: a child inherits that from the test process across fork and exec.
    assert int(done.stdout) * 1024 < MEMORY
