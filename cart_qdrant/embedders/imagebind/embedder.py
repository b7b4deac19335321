"""The `imagebind` embedder: images, videos, audio and text in one space.

A tower is loaded when its first input comes, so a text query never loads the vision tower.
Shape legend: B batch, S clips of one item, D vector width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.compute import Compute, ComputeOptions, Work, choose
from cart_qdrant.embedders.imagebind import download
from cart_qdrant.embedders.imagebind.model import ImageBind
from cart_qdrant.embedders.imagebind.preprocess import (
    image_tensor,
    spectrograms,
    tokens,
    video_clips,
)
from cart_qdrant.embedders.imagebind.weights import load_towers, read_config, read_version
from cart_qdrant.errors import MediaError
from cart_qdrant.extras import require
from cart_qdrant.media.clip import Clip
from cart_qdrant.records import Modality

SPACE = "shared"
_TOGETHER = 16
"""Clips that go through a tower in one batch; more gain nothing on a CPU and cost memory."""


class ImageBindEmbedder:
    """Embeds media and text with ImageBind, whose weights are under CC-BY-NC 4.0.

    Args:
        folder: Folder of the converted weights; by default where `cartq models pull imagebind`
            puts them.
        options: Where it computes, and in which number format weights and activations are. It is
            not part of `version`: vectors computed in bfloat16 and in float32 agree to about a
            hundredth.

    Attributes:
        compute: Where it computes, and in which format; None before the first input.

    Raises:
        MissingExtraError: The weights are not there, or a package of the extra `imagebind`.
    """

    name = "imagebind"
    spaces: Mapping[Modality, str] = dict.fromkeys(Modality, SPACE)

    def __init__(
        self,
        folder: Path | None = None,
        *,
        options: ComputeOptions | None = None,
    ) -> None:
        require("imagebind", *download.PACKAGES)
        self._folder = folder or download.weights_folder()
        self._config = read_config(self._folder)
        self.version = read_version(self._folder)
        self._options = options or ComputeOptions()
        self.compute: Compute | None = None
        self._towers: dict[str, ImageBind] = {}

    @property
    def dim(self) -> int:
        """Vector width D."""
        return self._config.out_embed_dim

    def embed_media(self, clips: Sequence[Clip]) -> FloatArray:
        """L2-normalised vectors x_BD of images, videos and audio.

        Raises:
            MediaError: A clip holds neither frames nor samples.
        """
        groups: dict[tuple[str, int], list[tuple[int, Tensor]]] = defaultdict(list)
        for n, clip in enumerate(clips):
            if clip.samples is None and not clip.frames:
                raise MediaError(f"{clip.key!r} has a segment without content.")
            tower, x = self._input(clip)
            groups[tower, x.ndim].append((n, x))
        total = torch.zeros(len(clips), self.dim)
        for (tower, _), found in groups.items():
            owner = torch.tensor([n for n, x in found for _ in range(len(x))])
            total.index_add_(0, owner, self._run(tower, torch.cat([x for _, x in found])))
        return np.asarray(F.normalize(total, dim=-1).numpy(), dtype=np.float32)

    def _input(self, clip: Clip) -> tuple[str, Tensor]:
        """The tower of a segment's modality, and the segment's clips (S, ...)."""
        if clip.modality is Modality.AUDIO and clip.samples is not None:
            config = self._config
            return "audio", spectrograms(
                clip.samples, config.audio_num_mel_bins, config.audio_target_len
            )
        if clip.modality is Modality.VIDEO:
            return "vision", video_clips(clip.frames, self._config.video_frames)
        return "vision", image_tensor(clip.frames[0])[None]

    def embed_text(self, texts: Sequence[str], space: str = SPACE) -> FloatArray:  # noqa: ARG002
        """L2-normalised vectors x_BD of texts; `space` is not read, since there is only one."""
        token_BL = tokens(texts)
        # Tokens after the end of a text change nothing, so the longest text sets the length.
        longest = int(token_BL.argmax(dim=1).max()) + 1 if len(token_BL) else 0
        return np.asarray(self._run("text", token_BL[:, :longest]).numpy(), dtype=np.float32)

    @torch.inference_mode()
    def _run(self, tower: str, x: Tensor) -> Tensor:
        """Unit vectors (S, D) of clips (S, ...) or tokens."""
        self.compute = compute = choose(self._options, Work.TRANSFORMER)
        if tower not in self._towers:
            self._towers[tower] = load_towers(
                self._folder, [tower], dtype=compute.format, device=compute.device
            )
        out = [torch.empty(0, self.dim)]
        for begin in range(0, len(x), _TOGETHER):
            part = x[begin : begin + _TOGETHER].to(compute.device)
            # The model takes a batch of items with clips: here each clip is an item of its own.
            part = part if tower == "text" else part.to(compute.format)[:, None]
            out.append(self._towers[tower]({tower: part})[tower].float().cpu())
        return torch.cat(out)
