"""faster-whisper on its real loading path, with a tiny model of random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from cart_qdrant.captions.models import Transcriber, open_captioner
from cart_qdrant.errors import UsageError
from tests.whisper_factory import write_whisper

pytest.importorskip("faster_whisper", reason="faster-whisper is not installed")

RATE = 16_000


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Transcriber:
    # Random weights make it unsure, and what is unsure is sampled: by chance of nothing.
    import ctranslate2

    ctranslate2.set_random_seed(0)
    folder = write_whisper(tmp_path_factory.mktemp("whisper"))
    found = open_captioner(f"whisper:{folder}")
    assert isinstance(found, Transcriber)
    return found


def voice(seconds: int) -> npt.NDArray[np.float32]:
    """A pulse train through three formants of an open vowel, in syllables: speech to a detector."""
    from scipy.signal import lfilter

    t = np.arange(seconds * RATE) / RATE
    y = np.sign(np.sin(2 * np.pi * (110 + 20 * np.sin(4 * np.pi * t)) * t))
    for formant, width in ((700, 80), (1200, 90), (2600, 120)):
        r = np.exp(-np.pi * width / RATE)
        y = lfilter([1 - r], [1, -2 * r * np.cos(2 * np.pi * formant / RATE), r * r], y)
    y = 0.5 * y / np.abs(y).max() * (np.sin(6 * np.pi * t) > -0.3)
    return y.astype(np.float32)


def test_what_is_said_lies_within_the_sound(whisper: Transcriber) -> None:
    """Whisper pads sound to 30 seconds and may tell of seconds that are not there."""
    said = whisper.transcribe(voice(3), RATE)
    assert said
    for one in said:
        assert one.text.strip() and 0 <= one.start < one.end <= 3


def test_nothing_is_heard_in_silence(whisper: Transcriber) -> None:
    assert whisper.transcribe(np.zeros(2 * RATE, np.float32), RATE) == []


def test_bad_input_is_told(whisper: Transcriber, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="48000 samples a second"):
        whisper.transcribe(np.zeros(10, np.float32), 48_000)
    with pytest.raises(UsageError, match="cannot be loaded"):
        open_captioner(f"whisper:{tmp_path}")
