"""The `lite` embedder: same numbers as the networks it stands for, and pictures found by words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cart_qdrant.embedders.registry import lite_available
from cart_qdrant.errors import MediaError
from cart_qdrant.media.clip import Clip
from cart_qdrant.records import Modality

if not lite_available():
    pytest.skip('needs pip install "cart-qdrant[lite]"', allow_module_level=True)

import torch
from PIL import Image

from cart_qdrant.embedders.lite import efficientnet
from cart_qdrant.embedders.lite import embedder as module
from cart_qdrant.embedders.lite.embedder import AUDIO, DIM, VISUAL, LiteEmbedder, log_mel_image
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


def test_one_pass_gives_the_numbers_of_two(lite: LiteEmbedder, monkeypatch: Any) -> None:
    """oneDNN's convolution with ReLU6 inside equals the convolution and then ReLU6, to the bit."""
    if not efficientnet._fuses(torch.bfloat16):
        pytest.skip("oneDNN does not fuse here")
    clips = [image(gradient()), sound(media.tone(2.0)), image(media.scene(3))]
    fused = lite.features(clips)
    monkeypatch.setattr(efficientnet, "_fuses", lambda dtype: False)
    np.testing.assert_array_equal(lite.features(clips), fused)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(7, 8), (12, 9)])
def test_padding_is_tensorflows(kernel: int, stride: int, size: tuple[int, int]) -> None:
    """As many results as strides fit, the odd pixel of padding at the end."""
    conv = efficientnet._Conv(2, 3, kernel, stride, linear=True).requires_grad_(False)
    x_BCHW = torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(0))
    pads: list[int] = []
    for n in reversed(size):
        total = max((-(-n // stride) - 1) * stride + kernel - n, 0)
        pads += [total // 2, total - total // 2]
    padded = torch.nn.functional.pad(x_BCHW, pads)
    wanted = torch.nn.functional.conv2d(padded, conv.weight, conv.bias, stride)
    assert wanted.shape[2:] == tuple(-(-n // stride) for n in size)
    torch.testing.assert_close(conv(x_BCHW), wanted)


def test_prepared_clips_have_the_same_features(lite: LiteEmbedder) -> None:
    wide = np.asarray(Image.fromarray(media.scene(4)).resize((500, 300)))
    video = Clip(Modality.VIDEO, frames=(wide, media.scene(5)), key="v")
    clips = [image(wide), sound(media.tone(1.5)), video]
    ready = [lite.prepare(clip) for clip in clips]
    assert all(f.shape == (224, 224, 3) for clip in ready for f in clip.frames)
    assert [(c.modality, len(c.frames), c.samples) for c in ready] == [
        (Modality.IMAGE, 1, None),
        (Modality.AUDIO, 1, None),
        (Modality.VIDEO, 2, None),
    ]
    np.testing.assert_array_equal(lite.features(ready), lite.features(clips))
    with pytest.raises(MediaError, match="without content"):
        lite.features([lite.prepare(Clip(Modality.VIDEO, key="x"))])


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


def test_log_mel_image_has_low_pitch_at_the_bottom() -> None:
    rows = []
    for hertz in (200.0, 1000.0, 6000.0):
        picture = log_mel_image(media.tone(2.0, hertz=hertz), media.RATE)
        assert picture.shape == (224, 224, 3) and picture.dtype == np.uint8
        assert (picture[:, :, 0] == picture[:, :, 2]).all()
        rows.append(int(picture[:, 112, 0].argmax()))
    assert rows[0] > rows[1] > rows[2]
    early = np.concatenate([media.tone(1.0), media.silence(1.0)])
    picture = log_mel_image(early, media.RATE).astype(float)
    assert picture[:, :80].mean() > 2 * picture[:, 150:].mean(), "time runs to the right"
    assert log_mel_image(media.tone(0.01), media.RATE).shape == (224, 224, 3)


def test_text_does_not_reach_sound_untrained(lite: LiteEmbedder) -> None:
    assert lite.embed_text(["a bell"], AUDIO) is None


def test_words_find_the_right_picture(lite: LiteEmbedder) -> None:
    data = pytest.importorskip("skimage.data", reason="scikit-image is not installed")
    folder = Path(data.__file__).parent
    names = {"chelsea.png": "a cat", "coffee.png": "a cup of coffee", "rocket.jpg": "a rocket"}
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        pytest.skip(f"scikit-image ships no {missing}")
    x = lite.embed_media([image(np.asarray(Image.open(folder / n).convert("RGB"))) for n in names])
    q = lite.embed_text(list(names.values()), VISUAL)
    assert q is not None
    np.testing.assert_allclose(np.linalg.norm(q, axis=1), 1, atol=1e-5)
    assert (q @ x.T).argmax(axis=1).tolist() == [0, 1, 2]
