"""Turns images, videos, audio and text into the tensors that ImageBind was trained on.

Image: the shorter side is scaled to 224 pixels (bicubic), and the middle is cut out. Video: pairs
of frames in time order, scaled (bilinear), with three crops along the longer side. Audio: three
clips of two seconds, spread evenly over the segment, as log-mel spectrograms by Kaldi's recipe
(arXiv 2305.05665, appendix B; AST, arXiv 2104.01778). Text: CLIP's byte pairs.
Shape legend: B batch, S clips of one item, T frames of a clip, H height, W width, F mel bands,
L tokens.
"""

from __future__ import annotations

import html
import math
import warnings
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.embedders.imagebind.config import SIDE
from cart_qdrant.embedders.imagebind.tokenizer import clip_tokenizer
from cart_qdrant.extras import require

Frame = npt.NDArray[np.uint8]

_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]

CLIP_SECONDS = 2.0
CLIPS = 3
"""Clips taken of the audio of one item."""
RATE = 16_000
_AUDIO_MEAN, _AUDIO_STD = -4.268, 9.138
_WINDOW, _HOP, _FFT = 400, 160, 512


def image_tensor(frame: Frame) -> Tensor:
    """Normalised pixels (3, 224, 224) of an RGB image (H, W, 3)."""
    height, width = frame.shape[:2]
    short = min(height, width)
    size = (SIDE * width // short, SIDE * height // short)
    small = Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)
    left, top = (round((side - SIDE) / 2) for side in size)
    cut = np.asarray(small.crop((left, top, left + SIDE, top + SIDE)))
    return (torch.from_numpy(cut.copy()).permute(2, 0, 1) / 255 - _MEAN) / _STD


def video_clips(frames: Sequence[Frame], length: int = 2, crops: int = 3) -> Tensor:
    """Clips (S, 3, T, 224, 224) of a video's frames, which are in time order.

    Args:
        frames: RGB (H, W, 3), all of one size.
        length: Frames T of a clip; the last clip repeats the last frame where frames are missing.
        crops: Crops of each clip: 3, at both ends and in the middle of the longer side; or 1, in
            the middle.
    """
    kept = list(frames)
    kept += [kept[-1]] * (-len(kept) % length)
    x = torch.from_numpy(np.stack(kept)).permute(0, 3, 1, 2).float() / 255
    height, width = x.shape[-2:]
    if width < height:
        size = (math.floor(height / width * SIDE), SIDE)
    else:
        size = (SIDE, math.floor(width / height * SIDE))
    x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
    x = (x - _MEAN) / _STD
    spare = max(size) - SIDE
    starts = [0, math.ceil(spare / 2), spare] if crops == 3 else [math.ceil(spare / 2)]
    along = 2 if size[0] > size[1] else 3
    clips = x.view(-1, length, *x.shape[1:]).transpose(1, 2)  # (clips, 3, T, H, W)
    cut = [clips.narrow(along + 1, start, SIDE) for start in starts]
    return torch.stack(cut, dim=1).flatten(0, 1)


def spectrograms(samples: FloatArray, bands: int = 128, length: int = 204) -> Tensor:
    """Log-mel clips (S, 1, F, T) of mono audio at 16 kHz.

    Args:
        samples: Samples of the whole segment, in [-1, 1].
        bands: Mel bands F.
        length: Frames T; a shorter clip is padded with zeros before it is normalised.
    """
    seconds = len(samples) / RATE
    starts = [n * max(seconds - CLIP_SECONDS, 0) / (CLIPS - 1) for n in range(CLIPS)]
    out = []
    for start in starts:
        clip = samples[int(start * RATE) : int((start + CLIP_SECONDS) * RATE)]
        mel = _log_mel(clip, bands)[:, :length]
        mel = np.pad(mel, ((0, 0), (0, length - mel.shape[1])))
        out.append(torch.from_numpy((mel - _AUDIO_MEAN) / _AUDIO_STD))
    return torch.stack(out)[:, None].float()


@cache
def _mel_filters(bands: int) -> FloatArray:
    from transformers.audio_utils import mel_filter_bank

    with warnings.catch_warnings():
        # The lowest bands are narrower than a bin of the transform, as in the published recipe.
        warnings.simplefilter("ignore", UserWarning)
        filters = mel_filter_bank(
            num_frequency_bins=_FFT // 2 + 1, num_mel_filters=bands, min_frequency=20.0,
            max_frequency=RATE / 2, sampling_rate=RATE, norm=None, mel_scale="kaldi",
            triangularize_in_mel_space=True,
        )  # fmt: skip
    return np.asarray(filters)


def _log_mel(clip: FloatArray, bands: int) -> FloatArray:
    """Kaldi's log-mel energies (F, T): a Hann window of 25 ms every 10 ms, pre-emphasis 0.97."""
    require("imagebind", "transformers")
    from transformers.audio_utils import spectrogram, window_function

    if len(clip) < _WINDOW:
        clip = np.pad(clip, (0, _WINDOW - len(clip)))
    mel = spectrogram(
        clip - clip.mean(), window_function(_WINDOW, "hann", periodic=False),
        frame_length=_WINDOW, hop_length=_HOP, fft_length=_FFT, power=2.0, center=False,
        preemphasis=0.97, mel_filters=_mel_filters(bands), log_mel="log",
        mel_floor=1.192092955078125e-07, remove_dc_offset=True,
    )  # fmt: skip
    return np.asarray(mel, dtype=np.float32)


def tokens(texts: Sequence[str]) -> Tensor:
    """Tokens (B, 77): start, byte pairs of the lower-cased text, end, then zeros.

    Longer texts are cut. A text that contains the name of a special token is read as plain words.

    Raises:
        MissingExtraError: The extra `imagebind` is not installed.
        IndexMissingError: CLIP's vocabulary is not here, see `tokenizer`.
    """
    require("imagebind", "ftfy")
    import ftfy

    clean = [html.unescape(html.unescape(ftfy.fix_text(text))).strip() for text in texts]
    return torch.from_numpy(clip_tokenizer()(clean))
