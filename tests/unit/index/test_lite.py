"""The lite embedder against the package its weights come from, and on obvious pictures."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cart_qdrant.errors import MediaError
from cart_qdrant.index.embedders import Clip, FittedEmbedder, lite_available
from cart_qdrant.index.lite import DIM, FIT_FROM, VISUAL, LiteEmbedder, log_mel_picture
from cart_qdrant.records import Modality
from tests import media_factory as media

RATE = media.RATE


@pytest.fixture(scope="module")
def lite(text_encoder: Any) -> LiteEmbedder:
    if not lite_available():
        pytest.skip("the wheels of the lite extra are not installed")
    embedder = LiteEmbedder()
    embedder._text = text_encoder
    return embedder


def picture(rgb: Any) -> Clip:
    return Clip(Modality.IMAGE, frames=(rgb,))


def sound(samples: Any) -> Clip:
    return Clip(Modality.AUDIO, samples=samples, rate=RATE)


def test_network_is_that_of_the_reference_package(lite: LiteEmbedder) -> None:
    """`efficientnet-lite-pytorch` 0.1.0 on the same weights, in float32."""
    pictures = np.stack([media.scene(n, width=224, height=224) for n in (1, 2)])
    x_BCHW = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().sub(127).div(128)
    net = lite._network()
    with torch.inference_mode():
        top, middle = net(x_BCHW)
        logits = net._fc(top)
    assert middle.shape == (2, 192)
    assert logits.argmax(dim=1).tolist() == [111, 446]
    np.testing.assert_allclose(logits.amax(dim=1), [2.643819, 2.881888], atol=1e-4)
    np.testing.assert_allclose(
        logits[:, [0, 100, 500, 999]],
        [[0.051832, -0.692648, -0.331942, -0.173574], [-0.009602, -0.853378, -0.467032, -0.217055]],
        atol=1e-4,
    )
    np.testing.assert_allclose(top.norm(dim=1), [9.294251, 9.987883], atol=1e-3)


def test_it_is_a_fitted_embedder(lite: LiteEmbedder) -> None:
    assert isinstance(lite, FittedEmbedder)


def test_embed_media_is_project_of_features(lite: LiteEmbedder) -> None:
    clips = [picture(media.scene(n)) for n in range(3)] + [sound(media.tone(1.0))]
    x_BD = lite.embed_media(clips)
    assert x_BD.shape == (4, DIM) and x_BD.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(x_BD, axis=1), 1, atol=1e-5)
    raw = lite.features(clips)
    assert raw.shape == (4, lite.raw_dim)
    np.testing.assert_allclose(x_BD[:3], lite.project(raw[:3], VISUAL), atol=1e-2)


def test_a_video_is_the_mean_of_its_frames(lite: LiteEmbedder) -> None:
    a, b = media.scene(1), media.scene(2)
    raw = lite.features([picture(a), picture(b), Clip(Modality.VIDEO, frames=(a, b)), picture(a)])
    np.testing.assert_allclose(raw[2], (raw[0] + raw[1]) / 2, atol=2e-2)
    np.testing.assert_allclose(raw[3], raw[0], atol=2e-2)


def test_a_clip_without_content_is_refused(lite: LiteEmbedder) -> None:
    with pytest.raises(MediaError, match=r"a\.mp4"):
        lite.features([Clip(Modality.VIDEO, key="a.mp4")])


def test_statistics_round_trip(lite: LiteEmbedder) -> None:
    raw = lite.features([picture(media.scene(n)) for n in range(3)])
    other = LiteEmbedder()
    other.load_arrays(lite.to_arrays())
    np.testing.assert_array_equal(other.project(raw, VISUAL), lite.project(raw, VISUAL))


def test_many_items_are_whitened(lite: LiteEmbedder) -> None:
    """Fitted on enough items, the axes are theirs: centred, uncorrelated, spread as asked."""
    rng = np.random.default_rng(0)
    scales = np.geomspace(1, 0.05, lite.raw_dim)
    x_NR = (rng.standard_normal((FIT_FROM, lite.raw_dim)) * scales + 0.5).astype(np.float32)
    other = LiteEmbedder()
    other._net = lite._net
    other.fit({VISUAL: x_NR})
    stats = other.to_arrays()
    z_ND = (x_NR - stats["visual.mean"]) @ stats["visual.axes"]
    covariance = z_ND.T @ z_ND / len(z_ND)
    np.testing.assert_allclose(z_ND.mean(axis=0), 0, atol=1e-3)
    std = np.sqrt(np.diag(covariance))
    correlation = covariance / std[:, None] / std[None]
    assert np.abs(correlation - np.eye(DIM)).max() < 1e-2
    # Half whitened: the spread that is left is the root of what was there.
    raw_std = np.linalg.svd(x_NR - x_NR.mean(axis=0), compute_uv=False)[:DIM] / np.sqrt(FIT_FROM)
    np.testing.assert_allclose(std, np.sqrt(raw_std), rtol=1e-2)


def test_log_mel_picture_has_low_pitch_at_the_bottom() -> None:
    rows = []
    for hertz in (200.0, 1000.0, 5000.0):
        made = log_mel_picture(media.tone(2.0, hertz=hertz), RATE)
        assert made.shape == (224, 224, 3) and made.dtype == np.uint8
        rows.append(int(made[:, 112, 0].argmax()))
    assert rows == sorted(rows, reverse=True)
    assert rows[0] > 150 and rows[-1] < 75


def test_log_mel_picture_has_time_from_left_to_right() -> None:
    first = np.concatenate([media.tone(1.0), media.silence(1.0)])
    made = log_mel_picture(first, RATE)[:, :, 0].astype(int)
    assert made[:, :100].max() > 250 and made[:, 124:].max() < 10


@pytest.mark.parametrize("samples", [0, 1, 500, 1024])
def test_log_mel_picture_of_very_short_sound(samples: int) -> None:
    assert log_mel_picture(np.ones(samples, np.float32), RATE).shape == (224, 224, 3)


def test_log_mel_picture_does_not_depend_on_loudness() -> None:
    tone = media.tone(1.0)
    quiet = log_mel_picture(tone * 0.1, RATE).astype(int)
    assert np.abs(quiet - log_mel_picture(tone, RATE)).max() <= 1


def test_text_does_not_reach_sound(lite: LiteEmbedder) -> None:
    assert lite.embed_text(["a bell"], "audio") is None
    assert lite.labels(np.eye(DIM, dtype=np.float32)[:1], "audio") is None


@pytest.mark.skipif(not importlib.util.find_spec("skimage"), reason="scikit-image is not installed")
def test_text_finds_obvious_pictures(lite: LiteEmbedder) -> None:
    from skimage import data

    pictures = {
        "a cup of coffee": data.coffee(),
        "a cat": data.chelsea(),
        "a rocket on a launch pad": data.rocket(),
        "an astronaut in a space suit": data.astronaut(),
    }
    clips = [picture(np.asarray(Image.fromarray(rgb).convert("RGB"))) for rgb in pictures.values()]
    scores = lite.embed_text(list(pictures), VISUAL) @ lite.embed_media(clips).T
    assert (scores.argmax(axis=1) == np.arange(4)).sum() >= 3
    assert scores[1].argmax() == 1  # a cat is among the classes
    labels = lite.labels(lite.embed_media(clips), VISUAL)
    assert labels is not None and "cat" in labels[1]
