"""Where torch computes, and in which number format: one choice for training, ingestion, captions.

`auto` takes the device that is there, and the format that a short measurement of the same work
finds quickest. What a processor lists says little: bfloat16 is 3 times quicker than float32 on one
that has it, and up to 15 times slower on another that has it, too.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from cart_qdrant.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import Tensor

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICE_VARIABLE = "CARTQ_DEVICE"
"""Environment variable that names the device where no option does."""
DTYPE_VARIABLE = "CARTQ_DTYPE"
"""Environment variable that names the number format where no option does."""
GAIN = 0.9
"""A shorter format is taken where its time is at most this share of the longer one's: rounding must
pay."""
FORMATS = {
    "cpu": ("float32", "bfloat16"),
    "mps": ("float32", "float16"),
    "cuda": ("float32", "bfloat16", "float16"),
}
"""Formats that are measured on each device; CPUs emulate float16, Apple's GPUs bfloat16."""
_REPEATS = 3
_TEXTS, _TOKENS = 32, 16
"""Size of the batch that is measured."""
_SECONDS = 0.5
"""A format that has taken so long is not measured again."""


class Work(StrEnum):
    """What is computed; each sort of work has a measurement of its own."""

    TRAINING = "training"
    """Passes through a transformer layer of the query encoder, forward and back."""
    TEXT = "text"
    """Its forward pass."""
    IMAGES = "images"
    """Convolutions of a small network for images."""
    TRANSFORMER = "transformer"
    """The forward pass of a large transformer layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeOptions:
    """Where to compute and in which number format, as a user wants it.

    Attributes:
        device: One of `DEVICES`; by default what `CARTQ_DEVICE` names, else `auto`.
        dtype: One of `DTYPES`; by default what `CARTQ_DTYPE` names, else `auto`.

    Raises:
        UsageError: There is no such device or format.
    """

    device: str = field(default_factory=lambda: os.environ.get(DEVICE_VARIABLE) or "auto")
    dtype: str = field(default_factory=lambda: os.environ.get(DTYPE_VARIABLE) or "auto")

    def __post_init__(self) -> None:
        for name, value, known in (
            ("device", self.device, DEVICES),
            ("dtype", self.dtype, DTYPES),
        ):
            if value not in known:
                raise UsageError(
                    f"--{name} is {value!r}, but must be one of {', '.join(known)}.",
                    f"Give one of them, also where CARTQ_{name.upper()} names it.",
                )

    def place(self) -> str:
        """The device, `auto` resolved.

        Raises:
            UsageError: This machine, or its torch, does not have the device.
        """
        import torch

        there = ["cpu"]
        if torch.backends.mps.is_available():
            there.insert(0, "mps")
        if torch.cuda.is_available():
            there.insert(0, "cuda")
        if self.device == "auto":
            return there[0]
        if self.device not in there:
            raise UsageError(
                f"--device is {self.device!r}, but torch {torch.__version__} finds "
                f"{', '.join(there)} here.",
                "Leave it out, or install a torch for that device: https://pytorch.org",
            )
        return self.device


@dataclass(frozen=True, slots=True)
class Compute:
    """A device and a number format.

    Attributes:
        device: `cpu`, `cuda` or `mps`.
        dtype: `float32`, `bfloat16` or `float16`.
        measured: Milliseconds that the measured work took in each format; empty where the format
            was given.
    """

    device: str = "cpu"
    dtype: str = "float32"
    measured: Mapping[str, float] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        return f"{self.device}, {self.dtype}"

    @property
    def format(self) -> torch.dtype:
        """The number format, as torch names it."""
        import torch

        found: torch.dtype = getattr(torch, self.dtype)
        return found

    def autocast(self) -> torch.autocast:
        """A block in which matrix products are computed in the format, whatever the weights are."""
        import torch

        shorter = self.dtype != "float32"
        return torch.autocast(self.device, self.format if shorter else None, enabled=shorter)

    def tensor(self, values: npt.NDArray[np.generic]) -> Tensor:
        """An array as a tensor on the device; on a CPU they share their memory."""
        import torch

        return torch.from_numpy(values).to(self.device)

    def to_json(self) -> dict[str, Any]:
        """One object, for reports and manifests."""
        return {
            "device": self.device,
            "dtype": self.dtype,
            "measured_ms": {name: round(ms, 1) for name, ms in self.measured.items()},
        }


@runtime_checkable
class Computing(Protocol):
    """A model that computes on this machine: some embedders, captioners and transcribers."""

    @property
    def compute(self) -> Compute | None:
        """Device and number format; None before the first input, which they are measured for."""


def compute_of(model: object) -> Compute | None:
    """Device and number format of a model; None where it has none, or has had no input yet."""
    return model.compute if isinstance(model, Computing) else None


def described(compute: Mapping[str, Any]) -> str:
    """What `Compute.to_json` gave, in words: `cpu, bfloat16 (measured: float32 140 ms, ...)`."""
    times = ", ".join(f"{name} {ms:.0f} ms" for name, ms in compute["measured_ms"].items())
    return f"{compute['device']}, {compute['dtype']}" + (f" (measured: {times})" if times else "")


def attend(q_BHSW: Tensor, k_BHSW: Tensor, v_BHSW: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of queries (B, heads, S, W / heads) to keys with values, where `mask` is True.

    On a CPU it is computed in float32, also in a block of `Compute.autocast`: torch's way back
    through it takes 17 times as long in bfloat16 (docs/experiments.md).
    """
    import torch
    import torch.nn.functional as F

    device = q_BHSW.device.type
    if device != "cpu":
        return F.scaled_dot_product_attention(q_BHSW, k_BHSW, v_BHSW, attn_mask=mask)
    with torch.autocast(device, enabled=False):
        return F.scaled_dot_product_attention(
            q_BHSW.float(), k_BHSW.float(), v_BHSW.float(), attn_mask=mask
        )


_chosen: dict[tuple[ComputeOptions, Work], Compute] = {}
_choosing = threading.Lock()


def choose(options: ComputeOptions, work: Work) -> Compute:
    """Device and number format of some work, measured once a process.

    Neither random numbers nor any setting of torch are changed.

    Raises:
        UsageError: The device is not there, or does not compute in the format.
    """
    with _choosing:
        if (options, work) not in _chosen:
            _chosen[options, work] = _choose(options, work)
        return _chosen[options, work]


def _choose(options: ComputeOptions, work: Work) -> Compute:
    device = options.place()
    if options.dtype != "auto":
        if (device, options.dtype) == ("cpu", "float16"):
            raise UsageError(
                "--dtype is float16, but the device is a cpu, which computes a hundred times "
                "slower in it than in bfloat16.",
                "Take --dtype auto, bfloat16 or float32.",
            )
        return Compute(device, options.dtype)
    measured = measure(work, device)
    best = "float32"
    for name, ms in measured.items():
        if ms < GAIN * measured[best]:
            best = name
    return Compute(device, best, measured)


def layer_token_seconds(compute: Compute) -> float:
    """Seconds that one token takes through one layer of the query encoder, forward and back; by the
    measurement that the format was chosen by, else by one of its own."""
    ms = compute.measured.get(compute.dtype)
    if ms is None:
        ms = measure(Work.TRAINING, compute.device, (compute.dtype,))[compute.dtype]
    return ms / 1e3 / (_TEXTS * _TOKENS)


def measure(work: Work, device: str, formats: Sequence[str] = ()) -> dict[str, float]:
    """Milliseconds that some work takes on a device in some number formats; by default in each that
    `auto` may choose there."""
    import torch

    formats = formats or FORMATS[device]
    back = work is Work.TRAINING
    with torch.inference_mode(not back), torch.set_grad_enabled(back):
        steps = {name: _step(work, Compute(device, name)) for name in formats}
        return _milliseconds(steps, device)


def _milliseconds(steps: Mapping[str, Callable[[], None]], device: str) -> dict[str, float]:
    """Least time of each step, after one that is not counted; in turn, so that other work on the
    machine is shared by all."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for n in range(1 + _REPEATS):
        for name, step in steps.items():
            if n > 1 and sum(times[name]) > 1e3 * _SECONDS:
                continue
            start = time.perf_counter()
            step()
            _synchronise(device)
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: min(found[1:]) for name, found in times.items()}


def _synchronise(device: str) -> None:
    """Wait for a device that computes while the program goes on."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def _step(work: Work, compute: Compute) -> Callable[[], None]:
    """What is measured: one step of some work."""
    if work is Work.IMAGES:
        return _convolutions(compute)
    if work is Work.TRANSFORMER:
        return _transformer_layer(compute, width=1024, heads=16, batch=1, tokens=128)
    return _transformer_layer(
        compute, width=384, heads=12, batch=_TEXTS, tokens=_TOKENS, back=work is Work.TRAINING
    )


def _values(*shape: int) -> Tensor:
    """Small numbers, without the random numbers of torch."""
    import torch

    count = torch.Size(shape).numel()
    return torch.linspace(0, 1000, count).sin_().mul_(0.05).reshape(shape)


def _transformer_layer(
    compute: Compute, *, width: int, heads: int, batch: int, tokens: int, back: bool = False
) -> Callable[[], None]:
    """Passes through one post-norm transformer layer, as the encoders have them."""
    import torch
    import torch.nn.functional as F

    shapes = ((3 * width, width), (width, width), (4 * width, width), (width, 4 * width))
    weights = [_values(*shape).to(compute.device).requires_grad_(back) for shape in shapes]
    x_BSW = _values(batch, tokens, width).to(compute.device)
    mask = torch.ones(batch, 1, 1, tokens, dtype=torch.bool, device=compute.device)

    def step() -> None:
        qkv_w, out_w, up_w, down_w = weights
        with compute.autocast():
            qkv = F.linear(x_BSW, qkv_w).view(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
            y = attend(qkv[0], qkv[1], qkv[2], mask)
            x = x_BSW + F.linear(y.transpose(1, 2).reshape(batch, tokens, width), out_w)
            x = F.layer_norm(x, (width,))
            x = F.layer_norm(x + F.linear(F.gelu(F.linear(x, up_w)), down_w), (width,))
        if back:
            torch.autograd.grad(x.float().square().mean(), weights)

    return step


def _convolutions(compute: Compute) -> Callable[[], None]:
    """Inverted residual blocks as in EfficientNet, on four images: wide at first, deep at last."""
    import torch
    import torch.nn.functional as F

    blocks = []
    for side, narrow, kernel in ((56, 24, 3), (28, 40, 5), (14, 112, 5), (7, 192, 5)):
        wide = 6 * narrow
        shapes = ((wide, narrow, 1, 1), (wide, 1, kernel, kernel), (narrow, wide, 1, 1))
        blocks.append([_values(4, narrow, side, side), *(_values(*shape) for shape in shapes)])
    blocks = [
        [
            x.to(compute.device, compute.format, memory_format=torch.channels_last)
            for x in tensors
        ]
        for tensors in blocks
    ]  # fmt: skip

    def step() -> None:
        for x, expand, depthwise, project in blocks:
            y = F.relu6(F.conv2d(x, expand))
            y = F.relu6(F.conv2d(y, depthwise, padding="same", groups=len(depthwise)))
            F.conv2d(y, project)

    return step
