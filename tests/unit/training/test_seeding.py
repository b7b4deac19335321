"""Seeded random numbers of torch."""

from __future__ import annotations

import torch

from cart_qdrant.training.seeding import seeded


def test_a_seed_gives_the_same_numbers_and_leaves_the_callers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with seeded(1):
        first = torch.rand(3)
    with seeded(1):
        second = torch.rand(3)
    assert torch.equal(first, second) and not torch.equal(first, expected)
    assert torch.equal(torch.rand(3), expected)
