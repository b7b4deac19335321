"""Steps of an optimiser: a cut gradient in float32, a scaled one in float16."""

from __future__ import annotations

import pytest
import torch
from torch import nn, optim

from cart_qdrant.compute import Compute
from cart_qdrant.training.stepper import LONGEST, Stepper


def linear() -> nn.Linear:
    module = nn.Linear(2, 1, bias=False)
    nn.init.ones_(module.weight)
    return module


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_step_follows_the_gradient_cut_to_its_greatest_length(dtype: str) -> None:
    module = linear()
    optimizer = optim.SGD(module.parameters(), lr=1.0)
    loss = Stepper(module, optimizer, Compute("cpu", dtype)).step(
        module(torch.tensor([[300.0, 400.0]])).sum()
    )
    assert loss == 700.0
    # The gradient is (300, 400), of length 500.
    moved = 1 - module.weight.detach()
    torch.testing.assert_close(moved, LONGEST * torch.tensor([[0.6, 0.8]]))


def test_in_float16_a_step_that_overflows_is_left_out() -> None:
    module = linear()
    stepper = Stepper(module, optim.SGD(module.parameters(), lr=1.0), Compute("cpu", "float16"))
    stepper.step(module(torch.tensor([[float("inf"), 1.0]])).sum())
    torch.testing.assert_close(module.weight.detach(), torch.ones(1, 2))
    stepper.step(module(torch.tensor([[3.0, 4.0]])).sum())
    assert not torch.equal(module.weight.detach(), torch.ones(1, 2))
