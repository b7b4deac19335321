"""The ImageBind architecture (Girdhar et al., arXiv 2305.05665), written from the paper.

One transformer a modality, each ending in the same space. Parameter names and shapes are those of
the published checkpoint, `imagebind_huge.pth`, so that its state dict loads strictly and small
configurations can be compared with other implementations. Differences: outputs are unit vectors,
where the published model multiplies each modality by a constant (a positive scale, which a cosine
does not see); inputs have the size of the configuration.
Shape legend: B batch, S clips of one item, C channels, T frames, H height, W width, F mel bands,
L tokens, D width of a tower, E width of the shared space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cart_qdrant.errors import ConfigError

CONTEXT = 77
"""Tokens of a text, padded with 0."""
VOCABULARY = 49_408
SIDE = 224
"""Height and width of pictures."""
IMU_CHANNELS, IMU_LENGTH = 6, 2_000

MODALITIES = ("vision", "text", "audio", "depth", "thermal", "imu")
"""In the order of the published model."""

SCALES = {"text": 1 / 0.07, "audio": 20.0, "depth": 5.0, "thermal": 10.0, "imu": 5.0}
"""Constants that the published outputs are multiplied by; of `text` it is where training began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageBindConfig:
    """Sizes, under the names of the published model's constructor; defaults are ImageBind-huge.

    `*_drop_path` is the probability of stochastic depth in the last block of a tower; it acts in
    training mode alone.
    """

    video_frames: int = 2
    kernel_size: tuple[int, int, int] = (2, 14, 14)
    """Frames, height and width of a patch (a tubelet) of `vision`."""
    out_embed_dim: int = 1024
    vision_embed_dim: int = 1280
    vision_num_blocks: int = 32
    vision_num_heads: int = 16
    text_embed_dim: int = 1024
    text_num_blocks: int = 24
    text_num_heads: int = 16
    audio_embed_dim: int = 768
    audio_num_blocks: int = 12
    audio_num_heads: int = 12
    audio_kernel_size: int = 16
    audio_stride: int = 10
    audio_num_mel_bins: int = 128
    audio_target_len: int = 204
    """Frames of 10 ms in one clip of sound."""
    audio_drop_path: float = 0.1
    depth_embed_dim: int = 384
    depth_kernel_size: int = 16
    depth_num_blocks: int = 12
    depth_num_heads: int = 8
    depth_drop_path: float = 0.0
    thermal_embed_dim: int = 768
    thermal_kernel_size: int = 16
    thermal_num_blocks: int = 12
    thermal_num_heads: int = 12
    thermal_drop_path: float = 0.0
    imu_embed_dim: int = 512
    imu_kernel_size: int = 8
    imu_num_blocks: int = 6
    imu_num_heads: int = 8
    imu_drop_path: float = 0.7

    def __post_init__(self) -> None:
        for modality in MODALITIES:
            width, heads = self.of(modality, "embed_dim"), self.of(modality, "num_heads")
            if width % heads:
                raise ConfigError(
                    f"{modality}_embed_dim is {width}, but must be a multiple of "
                    f"{modality}_num_heads, {heads}."
                )

    def of(self, modality: str, name: str) -> Any:
        """A field of one modality, such as `of("text", "num_heads")`."""
        return getattr(self, f"{modality}_{name}")


class _Attention(nn.Module):
    """Self-attention under the parameter names of `torch.nn.MultiheadAttention`.

    With `bias_kv` a learned key and value stand after those of the tokens.
    """

    def __init__(self, width: int, heads: int, *, bias_kv: bool) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        self.bias_k = nn.Parameter(torch.empty(1, 1, width)) if bias_kv else None
        self.bias_v = nn.Parameter(torch.empty(1, 1, width)) if bias_kv else None
        nn.init.xavier_uniform_(self.in_proj_weight)
        for bias in (self.bias_k, self.bias_v):
            if bias is not None:
                nn.init.xavier_normal_(bias)

    def forward(self, x_BLD: Tensor, mask_LL: Tensor | None) -> Tensor:
        b, _, d = x_BLD.shape
        q, k, v = F.linear(x_BLD, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(b, 1, d)], dim=1)
            v = torch.cat([v, self.bias_v.expand(b, 1, d)], dim=1)
        q, k, v = (x.view(b, -1, self.heads, d // self.heads).transpose(1, 2) for x in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_LL)
        out: Tensor = self.out_proj(y.transpose(1, 2).reshape(x_BLD.shape))
        return out


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class _Block(nn.Module):
    """Pre-norm transformer block; a branch is left out with probability `drop` in training."""

    def __init__(self, width: int, heads: int, *, bias_kv: bool, drop: float) -> None:
        super().__init__()
        self.drop = drop
        self.norm_1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, heads, bias_kv=bias_kv)
        self.norm_2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _Mlp(width)

    def _kept(self, y_BLD: Tensor) -> Tensor:
        if not self.training or not self.drop:
            return y_BLD
        kept = torch.rand(len(y_BLD), 1, 1, device=y_BLD.device) >= self.drop
        return y_BLD * kept / (1 - self.drop)

    def forward(self, x_BLD: Tensor, mask_LL: Tensor | None) -> Tensor:
        x_BLD = x_BLD + self._kept(self.attn(self.norm_1(x_BLD), mask_LL))
        return x_BLD + self._kept(self.mlp(self.norm_2(x_BLD)))


class _Trunk(nn.Module):
    def __init__(
        self, width: int, heads: int, depth: int, *, pre_norm: bool, bias_kv: bool, drop: float
    ) -> None:
        super().__init__()
        first = nn.LayerNorm(width, eps=1e-6) if pre_norm else nn.Identity()
        self.pre_transformer_layer = nn.Sequential(first)
        drops = torch.linspace(0, drop, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            _Block(width, heads, bias_kv=bias_kv, drop=rate) for rate in drops
        )

    def forward(self, x_BLD: Tensor, mask_LL: Tensor | None) -> Tensor:
        x_BLD = self.pre_transformer_layer(x_BLD)
        for block in self.blocks:
            x_BLD = block(x_BLD, mask_LL)
        return x_BLD


class _Stem(nn.Module):
    """Patches to tokens; `proj` is in a list of its own where the published stem has a first step
    without parameters."""

    def __init__(self, proj: nn.Module, width: int, *, norm: bool, second: bool = False) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Identity(), proj) if second else proj
        self.norm_layer = nn.LayerNorm(width) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        if x.ndim > 3:
            x = x.flatten(2).transpose(1, 2)
        return x if self.norm_layer is None else self.norm_layer(x)


class _Places(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, tokens, width) * width**-0.5)


class _Patches(nn.Module):
    """Tokens of a picture, a film, or a spectrogram, after one class token.

    Args:
        stem: Of the modality.
        name: Under which the stem stands in the checkpoint.
        shape: Of one input without the batch.
        patches: Tokens that the stem makes of it.
    """

    def __init__(
        self, stem: _Stem, name: str, shape: tuple[int, ...], patches: int, width: int
    ) -> None:
        super().__init__()
        self.name, self.shape = name, shape
        self.add_module(name, stem)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        self.pos_embedding_helper = _Places(1 + patches, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, L, D).

        Raises:
            ConfigError: The input has another size than the configuration.
        """
        if x.ndim == 4 and len(self.shape) == 4:  # a picture is a film that stands still
            x = x[:, :, None].expand(-1, -1, self.shape[1], -1, -1)
        if tuple(x.shape[1:]) != self.shape:
            raise ConfigError(
                f"An input has the shape {tuple(x.shape[1:])}, but the model reads {self.shape}."
            )
        tokens = self.get_submodule(self.name)(x)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], dim=1)
        out: Tensor = tokens + self.pos_embedding_helper.pos_embed
        return out


class _Motion(nn.Module):
    """Tokens of inertial measurements (B, 6, 2000)."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.imu_stem = _Stem(nn.Linear(IMU_CHANNELS * kernel, width, bias=False), width, norm=True)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        self.pos_embed = nn.Parameter(torch.randn(1, IMU_LENGTH // kernel + 1, width) * 0.01)

    def forward(self, x_BCT: Tensor) -> Tensor:
        x = x_BCT.unfold(-1, self.kernel, self.kernel).transpose(1, 2).flatten(2)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), self.imu_stem(x)], dim=1)
        return tokens + self.pos_embed


class _Words(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(VOCABULARY, width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, CONTEXT, width) * 0.01)
        self.register_buffer("mask", torch.full((CONTEXT, CONTEXT), -torch.inf).triu(1))

    def forward(self, token_BL: Tensor) -> Tensor:
        out: Tensor = self.token_embedding(token_BL) + self.pos_embed[:, : token_BL.shape[1]]
        return out

    def causal(self, length: int, dtype: torch.dtype) -> Tensor:
        """What is added to attention logits (L, L), so that no token sees later ones."""
        mask = self.get_buffer("mask")[:length, :length]
        return mask.to(dtype)


class _First(nn.Module):
    def forward(self, x_BLD: Tensor) -> Tensor:
        return x_BLD[:, 0]


class _LastWord(nn.Module):
    """State at the end of the text, the token of the highest number, projected."""

    def __init__(self, proj: nn.Sequential) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, x_BLD: Tensor, token_BL: Tensor) -> Tensor:
        end = token_BL.argmax(dim=-1)
        out: Tensor = self.proj(x_BLD[torch.arange(len(x_BLD), device=end.device), end])
        return out


class _Scale(nn.Module):
    """Constant of the published outputs: in the checkpoint, but not applied."""

    def __init__(self, scale: float, *, learned: bool) -> None:
        super().__init__()
        value = torch.tensor(math.log(scale))
        if learned:
            self.log_logit_scale = nn.Parameter(value)
        else:
            self.register_buffer("log_logit_scale", value)


def _patches(config: ImageBindConfig, modality: str) -> _Patches:
    """What makes tokens of a modality that has patches."""
    width = config.of(modality, "embed_dim")
    if modality == "vision":
        frames, height, breadth = config.kernel_size
        conv: nn.Module = nn.Conv3d(
            3, width, config.kernel_size, stride=config.kernel_size, bias=False
        )
        shape: tuple[int, ...] = (3, config.video_frames, SIDE, SIDE)
        count = (config.video_frames // frames) * (SIDE // height) * (SIDE // breadth)
        return _Patches(
            _Stem(conv, width, norm=False, second=True), "rgbt_stem", shape, count, width
        )
    kernel = config.of(modality, "kernel_size")
    stride = config.audio_stride if modality == "audio" else kernel
    conv = nn.Conv2d(1, width, kernel, stride=stride, bias=False)
    shape = (1, SIDE, SIDE)
    if modality == "audio":
        shape = (1, config.audio_num_mel_bins, config.audio_target_len)
    count = math.prod((side - kernel) // stride + 1 for side in shape[1:])
    name = "depth_stem" if modality == "depth" else "rgbt_stem"
    return _Patches(_Stem(conv, width, norm=True), name, shape, count, width)


def _preprocessor(config: ImageBindConfig, modality: str) -> nn.Module:
    if modality == "text":
        return _Words(config.text_embed_dim)
    if modality == "imu":
        return _Motion(config.imu_embed_dim, config.imu_kernel_size)
    return _patches(config, modality)


def _head(config: ImageBindConfig, modality: str) -> nn.Module:
    width = config.of(modality, "embed_dim")
    norm = nn.LayerNorm(width, eps=1e-6)
    proj = nn.Linear(width, config.out_embed_dim, bias=False)
    if modality == "text":
        return _LastWord(nn.Sequential(norm, proj))
    if modality == "imu":
        return nn.Sequential(norm, _First(), nn.Dropout(0.5), proj)
    return nn.Sequential(norm, _First(), proj)


class ImageBind(nn.Module):
    """See the module's docstring.

    Args:
        config: Sizes.
        modalities: Towers to build; the others cost nothing.
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
                m: _Trunk(
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
                m: nn.Sequential(nn.Identity(), _Scale(SCALES[m], learned=m == "text"))
                if m in SCALES
                else nn.Identity()
                for m in chosen
            }
        )

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Unit vectors (B, E) of each modality that is given.

        Args:
            inputs: `text`: tokens (B, L), L at most 77; `vision`: pictures (B, 3, H, W), or clips
                of one item, (B, S, 3, T, H, W) or (B, S, 3, H, W); `audio`: log-mel clips
                (B, S, 1, F, T); `depth`, `thermal` likewise; `imu`: (B, 6, 2000). Clips of one item
                are averaged.

        Raises:
            ConfigError: An input has another size than the configuration, or there is no tower
                for it.
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
        words = self.modality_preprocessors[modality]
        tokens = words(x)
        mask = None
        if isinstance(words, _Words):
            mask = words.causal(x.shape[1], tokens.dtype)
        states = self.modality_trunks[modality](tokens, mask)
        head = self.modality_heads[modality]
        vectors = head(states, x) if isinstance(head, _LastWord) else head(states)
        return F.normalize(vectors.float(), dim=-1)
