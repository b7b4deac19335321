"""Laws of the sound windows, and decoding of real sounds."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cart_qdrant.config import SegmentConfig
from cart_qdrant.errors import MediaError
from cart_qdrant.media.audio import audio_windows, cut_windows, loudness
from tests import media_factory as make

RATE = 8000
CONFIG = SegmentConfig(audio_rate=RATE, audio_window=2.0, min_audio=0.5)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 3 * RATE), min_size=1, max_size=8))
def test_windows_partition_the_sound(sizes: list[int]) -> None:
    whole = np.arange(sum(sizes), dtype=np.float32)
    blocks, at = [], 0
    for size in sizes:
        blocks.append((at / RATE, whole[at : at + size]))
        at += size
    windows = list(cut_windows(iter(blocks), CONFIG))
    assert np.array_equal(np.concatenate([window.samples for window in windows]), whole)
    for window in windows:
        assert window.end - window.start == pytest.approx(len(window.samples) / RATE, abs=2e-3)
        assert window.start * RATE == pytest.approx(window.samples[0], abs=RATE * 1e-3)
    assert all(len(window.samples) == 2 * RATE for window in windows[:-1])
    if len(whole) >= RATE // 2:
        assert len(windows[-1].samples) >= RATE // 2


def test_a_gap_begins_a_new_window() -> None:
    second = np.ones(RATE, np.float32)
    windows = list(cut_windows(iter([(0.0, second), (100.0, second)]), CONFIG))
    assert [(window.start, window.end) for window in windows] == [(0.0, 1.0), (100.0, 101.0)]


@given(level=st.floats(1e-4, 1.0))
def test_loudness_of_a_square_wave_is_its_level(level: float) -> None:
    samples = np.resize(np.array([level, -level], np.float32), 1000)
    assert loudness(samples) == pytest.approx(20 * np.log10(level), abs=1e-3)


def test_loudness_of_silence_is_below_any_limit() -> None:
    assert loudness(np.zeros(10, np.float32)) == -np.inf


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.wav", "pcm_s16le"), ("a.flac", "flac"), ("a.mp3", "libmp3lame"), ("a.opus", "libopus")],
)
def test_real_sound_keeps_its_length_pitch_and_level(tmp_path: Path, name: str, codec: str) -> None:
    path = make.write_audio(tmp_path / name, make.tone(4.7, hertz=440), codec=codec)
    notes: list[str] = []
    windows = list(audio_windows(path, SegmentConfig(audio_window=2.0), notes.append))
    assert notes == []
    assert [window.start for window in windows] == pytest.approx([0.0, 2.0], abs=0.1)
    assert windows[-1].end == pytest.approx(4.7, abs=0.1)
    samples = windows[0].samples
    assert samples.dtype == np.float32 and len(samples) == 32_000
    spectrum = np.abs(np.fft.rfft(samples))
    assert np.argmax(spectrum) / 2.0 == pytest.approx(440, abs=2)
    assert loudness(samples) == pytest.approx(-9.03, abs=0.5)  # a sine of half the full level


def test_silent_windows_are_left_out(tmp_path: Path) -> None:
    sound = np.concatenate([make.tone(2.0), make.silence(4.0), make.tone(2.0)])
    path = make.write_audio(tmp_path / "a.wav", sound)
    windows = list(audio_windows(path, SegmentConfig(audio_window=2.0), lambda _: None))
    assert [(window.start, window.end) for window in windows] == [(0.0, 2.0), (6.0, 8.0)]


def test_quiet_sound_obeys_the_limit(tmp_path: Path) -> None:
    path = make.write_audio(tmp_path / "a.wav", make.tone(2.0, level=0.01))  # -43 dBFS
    assert list(audio_windows(path, SegmentConfig(silence_db=-50), lambda _: None))
    with pytest.raises(MediaError, match=r"at most -43 dBFS, but the limit is -40"):
        list(audio_windows(path, SegmentConfig(silence_db=-40), lambda _: None))


def test_very_short_sound_is_one_window(tmp_path: Path) -> None:
    path = make.write_audio(tmp_path / "a.wav", make.tone(0.05))
    (window,) = audio_windows(path, SegmentConfig(), lambda _: None)
    assert len(window.samples) == 800


def test_values_that_are_not_finite_become_silence(tmp_path: Path) -> None:
    sound = make.tone(1.0)
    sound[:100] = np.nan
    sound[100:200] = 7.0
    path = make.write_audio(tmp_path / "a.wav", sound, codec="pcm_f32le")
    (window,) = audio_windows(path, SegmentConfig(), lambda _: None)
    assert np.isfinite(window.samples).all() and np.abs(window.samples).max() <= 1


@pytest.mark.parametrize("rate", [1, 4_000_000_000])
def test_incredible_rate_is_refused_before_resampling(tmp_path: Path, rate: int) -> None:
    path = make.write_audio(tmp_path / "a.wav", make.tone(1.0))
    content = bytearray(path.read_bytes())
    content[24:28] = struct.pack("<I", rate)  # where a WAV header keeps it
    path.write_bytes(content)
    with pytest.raises(MediaError):
        list(audio_windows(path, SegmentConfig(), lambda _: None))


def test_wav_header_without_sound(tmp_path: Path) -> None:
    path = make.truncate(make.write_audio(tmp_path / "a.wav", make.tone(1.0)), 0.001)
    with pytest.raises(MediaError):
        list(audio_windows(path, SegmentConfig(), lambda _: None))
