"""Layers of ImageBind: attention, transformer trunks, what turns inputs into tokens, heads.

Parameter names and shapes are those of the published checkpoint.
Shape legend: B batch, C channels, T time steps, L tokens, D width of a tower.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cart_qdrant.embedders.imagebind.config import (
    CONTEXT,
    IMU_CHANNELS,
    IMU_LENGTH,
    VOCABULARY,
)
from cart_qdrant.errors import ConfigError


class _Attention(nn.Module):
    """Self-attention under the parameter names of `torch.nn.MultiheadAttention`.

    With `bias_kv`, a learned key and a learned value are appended to those of the tokens.
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
    """Two linear maps with a GELU between them; the inner width is four times the outer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class _Block(nn.Module):
    """Pre-norm transformer block; in training, a branch is left out with probability `drop`."""

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


class Trunk(nn.Module):
    """The transformer of one modality: `depth` blocks, after a layer norm if `pre_norm`."""

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


class Stem(nn.Module):
    """Projects patches to tokens (B, L, D).

    With `second`, `proj` is the second of two steps, as in the published stem, whose first step
    has no parameters.
    """

    def __init__(self, proj: nn.Module, width: int, *, norm: bool, second: bool = False) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Identity(), proj) if second else proj
        self.norm_layer = nn.LayerNorm(width) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        if x.ndim > 3:
            x = x.flatten(2).transpose(1, 2)
        return x if self.norm_layer is None else self.norm_layer(x)


class _PositionEmbedding(nn.Module):
    """A learned vector for each token position."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, tokens, width) * width**-0.5)


class PatchTokens(nn.Module):
    """A class token, then the patch tokens of an image, a video clip or a spectrogram.

    Args:
        stem: Projects patches to tokens.
        name: Name of the stem in the checkpoint.
        shape: Shape of one input, without the batch.
        patches: Number of tokens that the stem makes of one input.
        width: Width D of a token.
    """

    def __init__(
        self, stem: Stem, name: str, shape: tuple[int, ...], patches: int, width: int
    ) -> None:
        super().__init__()
        self.name, self.shape = name, shape
        self.add_module(name, stem)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        self.pos_embedding_helper = _PositionEmbedding(1 + patches, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, L, D).

        Raises:
            ConfigError: The input has another size than the configuration.
        """
        if x.ndim == 4 and len(self.shape) == 4:  # an image is a video whose frames are all alike
            x = x[:, :, None].expand(-1, -1, self.shape[1], -1, -1)
        if tuple(x.shape[1:]) != self.shape:
            raise ConfigError(
                f"An input has the shape {tuple(x.shape[1:])}, but the model reads {self.shape}."
            )
        tokens = self.get_submodule(self.name)(x)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], dim=1)
        out: Tensor = tokens + self.pos_embedding_helper.pos_embed
        return out


class MotionTokens(nn.Module):
    """A class token, then the tokens of inertial measurements (B, 6, 2000)."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.imu_stem = Stem(nn.Linear(IMU_CHANNELS * kernel, width, bias=False), width, norm=True)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        self.pos_embed = nn.Parameter(torch.randn(1, IMU_LENGTH // kernel + 1, width) * 0.01)

    def forward(self, x_BCT: Tensor) -> Tensor:
        x = x_BCT.unfold(-1, self.kernel, self.kernel).transpose(1, 2).flatten(2)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), self.imu_stem(x)], dim=1)
        return tokens + self.pos_embed


class TextTokens(nn.Module):
    """Embeddings of text tokens, with their positions."""

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
        """Attention mask (L, L), added to the logits: no token attends to later ones."""
        mask = self.get_buffer("mask")[:length, :length]
        return mask.to(dtype)


class ClassToken(nn.Module):
    """State (B, D) of the class token, the first of the tokens."""

    def forward(self, x_BLD: Tensor) -> Tensor:
        return x_BLD[:, 0]


class EndOfText(nn.Module):
    """Projected state (B, E) at the end-of-text token, which has the highest token id."""

    def __init__(self, proj: nn.Sequential) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, x_BLD: Tensor, token_BL: Tensor) -> Tensor:
        end = token_BL.argmax(dim=-1)
        out: Tensor = self.proj(x_BLD[torch.arange(len(x_BLD), device=end.device), end])
        return out


class LogitScale(nn.Module):
    """Constant factor of the published outputs: stored in the checkpoint, but not applied here."""

    def __init__(self, scale: float, *, learned: bool) -> None:
        super().__init__()
        value = torch.tensor(math.log(scale))
        if learned:
            self.log_logit_scale = nn.Parameter(value)
        else:
            self.register_buffer("log_logit_scale", value)
