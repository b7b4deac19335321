"""One step of an optimiser, in any number format."""

from __future__ import annotations

from torch import Tensor, amp, nn, optim

from cart_qdrant.compute import Compute

LONGEST = 1.0
"""Length to which the gradient of all parameters is cut."""


class Stepper:
    """Takes an optimiser's steps.

    In float16 small gradients would vanish: the loss is scaled up for them, and a step whose
    gradients overflow is left out. In other formats nothing is scaled.

    Args:
        module: What is trained.
        optimizer: Its optimiser.
        compute: Where, and in which format, the losses are computed.
    """

    def __init__(self, module: nn.Module, optimizer: optim.Optimizer, compute: Compute) -> None:
        self._module, self._optimizer = module, optimizer
        self._scaler = amp.GradScaler(compute.device, enabled=compute.dtype == "float16")

    def step(self, loss: Tensor) -> float:
        """Follow the gradient of a loss; returns the loss."""
        self._optimizer.zero_grad()
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.unscale_(self._optimizer)
        nn.utils.clip_grad_norm_(self._module.parameters(), LONGEST)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return float(loss.detach())
