"""Laws of the shot cutter, and decoding of real videos."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cart_qdrant.config import SegmentConfig
from cart_qdrant.errors import MediaError
from cart_qdrant.media.shots import LOOK_SIDE, Look, Sample, Shot, change, cut
from cart_qdrant.media.video import video_shots
from tests import media_factory as make

STEP = 0.25  # seconds between samples
CONFIG = SegmentConfig()


def _look(frame: make.ByteArray) -> Look:
    rows = np.linspace(0, frame.shape[0] - 1, LOOK_SIDE).astype(int)
    columns = np.linspace(0, frame.shape[1] - 1, LOOK_SIDE).astype(int)
    return Look(frame[np.ix_(rows, columns)])


def _cut(frames: list[make.ByteArray], config: SegmentConfig = CONFIG) -> list[Shot]:
    samples = (
        Sample(n * STEP, (n + 1) * STEP, _look(frame), lambda frame=frame: frame)
        for n, frame in enumerate(frames)
    )
    return list(cut(samples, config))


def _spans(shots: list[Shot]) -> list[tuple[float, float]]:
    return [(shot.start, shot.end) for shot in shots]


def _video(path: Path, **options: object) -> tuple[list[Shot], list[str]]:
    notes: list[str] = []
    return list(video_shots(make.write_video(path, **options), CONFIG, notes.append)), notes  # type: ignore[arg-type]


# A stretch of samples: moving scene, still scene, or black.
_STRETCH = st.tuples(st.sampled_from(["moving", "still", "black"]), st.integers(1, 60))


def _stretches(parts: list[tuple[str, int]]) -> list[make.ByteArray]:
    frames: list[make.ByteArray] = []
    for seed, (kind, count) in enumerate(parts):
        if kind == "moving":
            frames += make.moving(seed, count, width=64, height=48)
        elif kind == "still":
            # Copies: a frame is known by its identity, and each has its own time.
            frames += [make.scene(seed, width=64, height=48) for _ in range(count)]
        else:
            frames += make.black(count, width=64, height=48)
    return frames


@settings(max_examples=60, deadline=None)
@example(parts=[("moving", 1), ("moving", 1), ("moving", 2), ("moving", 2)], kept=2)
@example(parts=[("still", 38), ("moving", 3)], kept=1)
@given(parts=st.lists(_STRETCH, min_size=1, max_size=5), kept=st.integers(1, 6))
def test_shots_are_ordered_disjoint_bounded_and_hold_their_own_frames(
    parts: list[tuple[str, int]], kept: int
) -> None:
    config = SegmentConfig(frames=kept)
    frames = _stretches(parts)
    shots = _cut(frames, config)
    assert bool(shots) == any(kind != "black" for kind, _ in parts)
    for before, after in itertools.pairwise(shots):
        assert before.end <= after.start
    place = {id(frame): n * STEP for n, frame in reversed(list(enumerate(frames)))}
    for shot in shots:
        assert 0 <= shot.start < shot.end <= len(frames) * STEP
        assert shot.end - shot.start <= config.max_shot + 1e-3
        assert 1 <= len(shot.frames) <= kept
        times = [place[id(frame)] for frame in shot.frames]
        assert all(shot.start - 1e-3 <= time < shot.end for time in times)
        assert all(frame.any() for frame in shot.frames)  # never a black one


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(4, 36), min_size=2, max_size=5))
def test_every_hard_cut_is_found_where_it_is(lengths: list[int]) -> None:
    shots = _cut(_stretches([("moving", length) for length in lengths]))
    edges = list(itertools.accumulate(lengths, initial=0))
    expected = [(a * STEP, b * STEP) for a, b in itertools.pairwise(edges)]
    assert _spans(shots) == expected


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 200))
def test_one_moving_shot_is_covered_without_a_gap(count: int) -> None:
    shots = _cut(_stretches([("moving", count)]))
    assert shots[0].start == 0 and shots[-1].end == count * STEP
    assert all(a.end == b.start for a, b in itertools.pairwise(shots))
    if count * STEP >= CONFIG.min_shot:
        assert all(shot.end - shot.start >= CONFIG.min_shot - 1e-3 for shot in shots)


def test_short_shot_is_joined_to_its_neighbour() -> None:
    shots = _cut(_stretches([("moving", 2), ("moving", 12), ("moving", 12), ("moving", 2)]))
    assert _spans(shots) == [(0.0, 3.5), (3.5, 7.0)]


def test_flash_is_no_cut() -> None:
    frames = make.moving(1, 20)
    frames[10] = np.full_like(frames[10], 255)
    assert _spans(_cut(frames)) == [(0.0, 5.0)]


def test_steady_pan_is_no_cut() -> None:
    wide = make.scene(1, width=1600)
    frames = [wide[:, 8 * n : 8 * n + 160] for n in range(36)]
    assert _spans(_cut(frames)) == [(0.0, 9.0)]


@pytest.mark.parametrize("length", [1, 2])
def test_dissolve_is_one_cut(length: int) -> None:
    a, b = make.moving(1, 16), make.moving(2, 16)
    weights = np.linspace(0, 1, length + 2)[1:-1]
    between = [(a[-1] * (1 - w) + b[0] * w).astype(np.uint8) for w in weights]
    shots = _cut([*a, *between, *b])
    assert len(shots) == 2
    assert 4.0 <= shots[1].start <= 4.0 + (length + 1) * STEP


def test_black_stretch_is_left_out() -> None:
    shots = _cut(_stretches([("moving", 12), ("black", 8), ("moving", 12)]))
    assert _spans(shots) == [(0.0, 3.0), (5.0, 8.0)]


def test_frozen_end_of_a_shot_is_left_out() -> None:
    frames = make.moving(1, 12)
    shots = _cut([*frames, *[frames[-1]] * 60])
    assert len(shots) == 1
    assert shots[0].end <= 3.0 + STEP


def test_each_slide_is_stood_for_by_one_shot() -> None:
    shots = _cut(_stretches([("still", 80), ("still", 12), ("still", 20)]))
    assert _spans(shots) == [(0.0, CONFIG.max_shot), (20.0, 23.0), (23.0, 28.0)]


def test_memory_does_not_grow_with_the_length() -> None:
    """Of a shot of any length only a few pictures are alive at once."""
    alive: set[int] = set()
    most = 0

    class Tracked(np.ndarray):  # type: ignore[type-arg]
        def __del__(self) -> None:
            alive.discard(id(self))

    def render(frame: make.ByteArray) -> make.ByteArray:
        nonlocal most
        picture = frame.copy().view(Tracked)
        alive.add(id(picture))
        most = max(most, len(alive))
        return picture

    frames = make.moving(1, 40, width=64, height=48)
    samples = (
        Sample(n * STEP, (n + 1) * STEP, _look(frames[n % 40]), lambda n=n: render(frames[n % 40]))
        for n in range(4000)
    )
    count = sum(1 for _ in cut(samples, CONFIG))
    assert count == 100
    assert most <= 4 * 4 * CONFIG.frames


@given(a=st.integers(0, 50), b=st.integers(0, 50))
def test_change_is_a_symmetric_share(a: int, b: int) -> None:
    one, two = _look(make.scene(a)), _look(make.scene(b))
    assert 0 <= change(one, two) <= 1
    assert change(one, two) == pytest.approx(change(two, one))
    assert change(one, one) == pytest.approx(0, abs=1e-6)


# Real files


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.webm", "v.avi", "v.mov", "v.ts"])
def test_cuts_of_real_files(tmp_path: Path, name: str) -> None:
    frames = make.moving(1, 24) + make.moving(2, 24) + make.moving(3, 24)
    shots, notes = _video(tmp_path / name, frames=frames)
    assert [shot.start for shot in shots] == pytest.approx([0.0, 3.0, 6.0], abs=STEP)
    assert shots[-1].end == pytest.approx(9.0, abs=0.3)
    assert all(len(shot.frames) == CONFIG.frames for shot in shots)
    assert notes == []


def test_frames_show_their_scene(tmp_path: Path) -> None:
    shots, _ = _video(tmp_path / "v.mp4", frames=make.moving(1, 24) + make.moving(2, 24))
    for shot, seed in zip(shots, (1, 2), strict=True):
        for frame in shot.frames:
            far = np.abs(frame.astype(int) - make.scene(seed).astype(int)).mean()
            assert far < 25  # coding and the moving square


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_is_applied(tmp_path: Path, rotation: int) -> None:
    frame = make.scene(1)
    shots, _ = _video(tmp_path / "v.mp4", frames=[frame] * 16, rotation=rotation)
    shown = shots[0].frames[0]
    upright = np.rot90(frame, rotation // 90)
    assert shown.shape == upright.shape
    assert np.abs(shown.astype(int) - upright.astype(int)).mean() < 20


def test_variable_frame_rate_goes_by_time(tmp_path: Path) -> None:
    """A slide every five seconds, then motion at 20 frames per second."""
    times = [0.0, 5.0, *(10.0 + n / 20 for n in range(60))]
    frames = [make.scene(1), make.scene(2), *make.moving(3, 60)]
    shots, _ = _video(tmp_path / "v.mkv", frames=frames, times=times)
    assert [shot.start for shot in shots] == pytest.approx([0.0, 5.0, 10.0], abs=STEP)
    assert shots[-1].end == pytest.approx(13.0, abs=0.3)


def test_stamps_far_apart_cost_nothing(tmp_path: Path) -> None:
    """A damaged clock may put frames weeks apart: each stands for itself, quickly."""
    week = 7 * 24 * 3600.0
    frames = [make.scene(n) for n in range(4)]
    shots, _ = _video(tmp_path / "v.mkv", frames=frames, times=[n * week for n in range(4)])
    assert [shot.start for shot in shots] == pytest.approx([n * week for n in range(4)], abs=STEP)


def test_still_video_is_one_segment(tmp_path: Path) -> None:
    shots, _ = _video(tmp_path / "v.mp4", frames=[make.scene(1)] * 160)
    assert _spans(shots) == [(0.0, CONFIG.max_shot)]


def test_video_of_one_frame(tmp_path: Path) -> None:
    shots, _ = _video(tmp_path / "v.mp4", frames=[make.scene(1)])
    assert len(shots) == 1 and shots[0].end > shots[0].start


def test_raw_stream_without_stamps_or_duration(tmp_path: Path) -> None:
    shots, _ = _video(tmp_path / "v.m2v.h264", frames=make.moving(1, 64) + make.moving(2, 64))
    # Such a stream is shown at FFmpeg's usual rate.
    assert _spans(shots) == [(0.0, pytest.approx(2.56, abs=STEP)), (2.75, pytest.approx(5.12))]


def test_large_frames_are_scaled_down(tmp_path: Path) -> None:
    frames = make.moving(1, 8, width=1280, height=720)
    shots = list(
        video_shots(
            make.write_video(tmp_path / "v.mp4", frames), SegmentConfig(max_side=64), lambda _: None
        )
    )
    assert shots[0].frames[0].shape == (64, 114, 3)


def test_too_many_pixels_a_frame_are_refused(tmp_path: Path) -> None:
    path = make.write_video(tmp_path / "v.mp4", make.moving(1, 8))
    with pytest.raises(MediaError, match=r"160 x 120 = 19,200 pixels.*limit is 1,000"):
        list(video_shots(path, SegmentConfig(max_pixels=1000), lambda _: None))
