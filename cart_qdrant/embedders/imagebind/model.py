"""The ImageBind architecture (Girdhar et al., arXiv 2305.05665), written from the paper.

Each modality has a transformer (a "tower") of its own, and all towers end in one shared space.
Parameter names and shapes are those of the published checkpoint, `imagebind_huge.pth`, so that its
state dict loads strictly and small configurations can be compared with other implementations. Two
things differ from the published model: outputs are unit vectors, where that model multiplies each
modality by a positive constant, which a cosine does not see; and each input must have the size that
the configuration names.
Shape legend: B batch, S clips of one item, T frames, H height, W width, F mel bands, L tokens,
E width of the shared space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from cart_qdrant.embedders.imagebind.config import MODALITIES, SCALES, SIDE, ImageBindConfig
from cart_qdrant.embedders.imagebind.layers import (
    ClassToken,
    EndOfText,
    LogitScale,
    MotionTokens,
    PatchTokens,
    Stem,
    TextTokens,
    Trunk,
)
from cart_qdrant.errors import ConfigError


def _patches(config: ImageBindConfig, modality: str) -> PatchTokens:
    """The layer that turns images, video clips or spectrograms into tokens."""
    width = config.of(modality, "embed_dim")
    if modality == "vision":
        frames, height, width_of_patch = config.kernel_size
        conv: nn.Module = nn.Conv3d(
            3, width, config.kernel_size, stride=config.kernel_size, bias=False
        )
        shape: tuple[int, ...] = (3, config.video_frames, SIDE, SIDE)
        count = (config.video_frames // frames) * (SIDE // height) * (SIDE // width_of_patch)
        return PatchTokens(
            Stem(conv, width, norm=False, second=True), "rgbt_stem", shape, count, width
        )
    kernel = config.of(modality, "kernel_size")
    stride = config.audio_stride if modality == "audio" else kernel
    conv = nn.Conv2d(1, width, kernel, stride=stride, bias=False)
    shape = (1, SIDE, SIDE)
    if modality == "audio":
        shape = (1, config.audio_num_mel_bins, config.audio_target_len)
    count = math.prod((side - kernel) // stride + 1 for side in shape[1:])
    name = "depth_stem" if modality == "depth" else "rgbt_stem"
    return PatchTokens(Stem(conv, width, norm=True), name, shape, count, width)


def _preprocessor(config: ImageBindConfig, modality: str) -> nn.Module:
    """The layer that turns inputs of a modality into tokens."""
    if modality == "text":
        return TextTokens(config.text_embed_dim)
    if modality == "imu":
        return MotionTokens(config.imu_embed_dim, config.imu_kernel_size)
    return _patches(config, modality)


def _head(config: ImageBindConfig, modality: str) -> nn.Module:
    """The layer that turns states of a modality into a vector of the shared space."""
    width = config.of(modality, "embed_dim")
    norm = nn.LayerNorm(width, eps=1e-6)
    proj = nn.Linear(width, config.out_embed_dim, bias=False)
    if modality == "text":
        return EndOfText(nn.Sequential(norm, proj))
    if modality == "imu":
        return nn.Sequential(norm, ClassToken(), nn.Dropout(0.5), proj)
    return nn.Sequential(norm, ClassToken(), proj)


class ImageBind(nn.Module):
    """The towers of some modalities, or of all.

    Args:
        config: Sizes; those of ImageBind-huge by default.
        modalities: Towers to build; the others cost nothing.

    Raises:
        ConfigError: There is no tower of that name.
    """

    def __init__(
        self, config: ImageBindConfig | None = None, modalities: Sequence[str] = MODALITIES
    ) -> None:
        super().__init__()
        self.config = config = config or ImageBindConfig()
        if unknown := set(modalities) - set(MODALITIES):
            raise ConfigError(
                f"There is no tower for {', '.join(sorted(unknown))}, but for "
                f"{', '.join(MODALITIES)}."
            )
        chosen = [one for one in MODALITIES if one in modalities]
        self.modality_preprocessors = nn.ModuleDict({m: _preprocessor(config, m) for m in chosen})
        self.modality_trunks = nn.ModuleDict(
            {
                m: Trunk(
                    config.of(m, "embed_dim"),
                    config.of(m, "num_heads"),
                    config.of(m, "num_blocks"),
                    pre_norm=m == "vision",
                    bias_kv=m not in ("vision", "text"),
                    drop=getattr(config, f"{m}_drop_path", 0.0),
                )
                for m in chosen
            }
        )
        self.modality_heads = nn.ModuleDict({m: _head(config, m) for m in chosen})
        self.modality_postprocessors = nn.ModuleDict(
            {
                m: nn.Sequential(nn.Identity(), LogitScale(SCALES[m], learned=m == "text"))
                if m in SCALES
                else nn.Identity()
                for m in chosen
            }
        )

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Unit vectors (B, E) of the inputs of each modality.

        Args:
            inputs: `text`: tokens (B, L), L at most 77; `vision`: images (B, 3, H, W), or the clips
                of each item, (B, S, 3, T, H, W) or (B, S, 3, H, W); `audio`: log-mel clips
                (B, S, 1, F, T); `depth` and `thermal` likewise; `imu`: (B, 6, 2000). The vectors of
                an item's clips are averaged.

        Raises:
            ConfigError: An input has another size than the configuration, or its tower was not
                built.
        """
        out: dict[str, Tensor] = {}
        for modality, x in inputs.items():
            if modality not in self.modality_trunks:
                raise ConfigError(
                    f"The {modality} tower is not loaded, but "
                    f"{', '.join(self.modality_trunks) or 'none'}."
                )
            clips = x.ndim >= 5
            b, s = x.shape[:2]
            vectors = self._vectors(modality, x.flatten(0, 1) if clips else x)
            if clips:
                vectors = vectors.view(b, s, -1).mean(dim=1)
            out[modality] = F.normalize(vectors, dim=-1)
        return out

    def _vectors(self, modality: str, x: Tensor) -> Tensor:
        preprocessor = self.modality_preprocessors[modality]
        tokens = preprocessor(x)
        mask = None
        if isinstance(preprocessor, TextTokens):
            mask = preprocessor.causal(x.shape[1], tokens.dtype)
        states = self.modality_trunks[modality](tokens, mask)
        head = self.modality_heads[modality]
        vectors = head(states, x) if isinstance(head, EndOfText) else head(states)
        return F.normalize(vectors.float(), dim=-1)
