"""Random numbers of torch that neither depend on the caller's nor change them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, device: str = "cpu") -> Iterator[None]:
    """Seed torch's generators of the CPU and of a device inside the block; afterwards they are as
    they were before."""
    accelerator = None if device == "cpu" else getattr(torch, device)
    state = None if accelerator is None else accelerator.get_rng_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            if accelerator is not None:
                accelerator.manual_seed(seed)
            yield
        finally:
            if accelerator is not None:
                accelerator.set_rng_state(state)
