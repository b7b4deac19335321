"""The `lite` embedder: same numbers as the networks it stands for, and pictures found by words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cart_qdrant.errors import MediaError
from cart_qdrant.index.embedders import Clip, lite_available
from cart_qdrant.records import Modality

if not lite_available():
    pytest.skip('needs pip install "cart-qdrant[lite]"', allow_module_level=True)

import torch

from cart_qdrant.index import lite as module
from cart_qdrant.index.lite import AUDIO, DIM, VISUAL, LiteEmbedder, log_mel_picture
from tests import media_factory as media


@pytest.fixture(scope="module")
def lite() -> LiteEmbedder:
    return LiteEmbedder()


def image(pixels: Any) -> Clip:
    return Clip(Modality.IMAGE, frames=(np.asarray(pixels, np.uint8),), key="x")


def sound(samples: Any) -> Clip:
    return Clip(Modality.AUDIO, samples=samples, rate=media.RATE, key="s")


def gradient() -> Any:
    y, x = np.mgrid[0:224, 0:224]
    return np.stack([x, y, (x * y) // 224], axis=2).astype(np.uint8)


def test_features_are_those_of_the_reference_network(lite: LiteEmbedder) -> None:
    """Numbers of `efficientnet_lite_pytorch` 0.1.0 on `gradient`, in float32."""
    x_BCHW = torch.from_numpy(gradient())[None].permute(0, 3, 1, 2).float().sub(127).div(128)
    with torch.inference_mode():
        found = lite._network()(x_BCHW)[0][0].numpy()
    assert found.shape == (1280,)
    largest = [1006, 897, 113, 689]
    assert np.argsort(-found)[:4].tolist() == largest
    np.testing.assert_allclose(found[largest], [3.88787, 3.79756, 3.66829, 3.24888], atol=1e-3)
    assert np.linalg.norm(found) == pytest.approx(12.92502, rel=1e-4)
    assert found.sum() == pytest.approx(101.03584, rel=1e-4)
    # In bfloat16; .961 on this flat gradient, see docs/experiments.md.
    rounded = lite.features([image(gradient())])[0, :1280]
    cosine = found @ rounded / np.linalg.norm(found) / np.linalg.norm(rounded)
    assert cosine > 0.95


def test_features_are_means_over_frames(lite: LiteEmbedder) -> None:
    a, b = media.scene(1), media.scene(2)
    both = Clip(Modality.VIDEO, frames=(a, b), key="v")
    one, two, mixed = lite.features([image(a), image(b), both])
    np.testing.assert_allclose(mixed, (one + two) / 2, atol=2e-2)
    with pytest.raises(MediaError, match="without content"):
        lite.features([Clip(Modality.IMAGE, key="x")])


def test_projection_is_the_same_in_parts(lite: LiteEmbedder) -> None:
    clips = [image(media.scene(1)), sound(media.tone(1.0)), image(media.scene(2))]
    whole = lite.embed_media(clips)
    assert whole.shape == (3, DIM) and whole.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-5)
    raw = lite.features(clips)
    np.testing.assert_allclose(lite.project(raw[[0, 2]], VISUAL), whole[[0, 2]], atol=1e-6)
    np.testing.assert_allclose(lite.project(raw[[1]], AUDIO), whole[[1]], atol=1e-6)


def test_statistics_round_trip_and_whiten(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "FIT_FROM", 600)
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(1280, 1280)) * np.linspace(2, 0.1, 1280)
    x = (rng.normal(size=(700, 1280)) @ mix).astype(np.float32)
    fitted, other = LiteEmbedder(), LiteEmbedder()
    fitted.fit({VISUAL: x})
    other.load_arrays(fitted.to_arrays())
    np.testing.assert_array_equal(fitted.project(x[:5], VISUAL), other.project(x[:5], VISUAL))
    arrays = fitted.to_arrays()
    np.testing.assert_allclose(arrays["visual.mean"], x.mean(axis=0), atol=1e-2)
    z = (x - arrays["visual.mean"]) @ arrays["visual.axes"]
    spread = np.log(z.std(axis=0))
    raw = np.log(np.linalg.svd(x - x.mean(axis=0), compute_uv=False)[:DIM] / np.sqrt(len(x)))
    slope = np.polyfit(raw, spread, 1)[0]
    assert slope == pytest.approx(1 - module.WHITENING, abs=0.05)
    # Few sounds: the classifier's directions, and a centre drawn to zero.
    assert np.linalg.norm(arrays["audio.mean"]) == 0


def test_log_mel_picture_has_low_pitch_at_the_bottom() -> None:
    rows = []
    for hertz in (200.0, 1000.0, 6000.0):
        picture = log_mel_picture(media.tone(2.0, hertz=hertz), media.RATE)
        assert picture.shape == (224, 224, 3) and picture.dtype == np.uint8
        assert (picture[:, :, 0] == picture[:, :, 2]).all()
        rows.append(int(picture[:, 112, 0].argmax()))
    assert rows[0] > rows[1] > rows[2]
    early = np.concatenate([media.tone(1.0), media.silence(1.0)])
    picture = log_mel_picture(early, media.RATE).astype(float)
    assert picture[:, :80].mean() > 2 * picture[:, 150:].mean(), "time runs to the right"
    assert log_mel_picture(media.tone(0.01), media.RATE).shape == (224, 224, 3)


def test_text_does_not_reach_sound_untrained(lite: LiteEmbedder) -> None:
    assert lite.embed_text(["a bell"], AUDIO) is None


def test_words_find_the_right_picture(lite: LiteEmbedder) -> None:
    data = pytest.importorskip("skimage.data", reason="scikit-image is not installed")
    folder = Path(data.__file__).parent
    names = {"chelsea.png": "a cat", "coffee.png": "a cup of coffee", "rocket.jpg": "a rocket"}
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        pytest.skip(f"scikit-image ships no {missing}")
    from PIL import Image

    x = lite.embed_media([image(np.asarray(Image.open(folder / n).convert("RGB"))) for n in names])
    q = lite.embed_text(list(names.values()), VISUAL)
    assert q is not None
    np.testing.assert_allclose(np.linalg.norm(q, axis=1), 1, atol=1e-5)
    assert (q @ x.T).argmax(axis=1).tolist() == [0, 1, 2]
