"""Seeded random numbers of torch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
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


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_the_generator_of_a_gpu_is_seeded_and_put_back(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = ["the caller's"]
    fake = SimpleNamespace(
        get_rng_state=lambda: state[0],
        set_rng_state=lambda was: state.__setitem__(0, was),
        manual_seed=lambda seed: state.__setitem__(0, f"seed {seed}"),
    )
    monkeypatch.setattr(torch, device, fake)
    with pytest.raises(KeyError), seeded(3, device):
        assert state == ["seed 3"]
        raise KeyError
    assert state == ["the caller's"]
