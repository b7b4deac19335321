"""Checkpoints of a training: module and optimiser as safetensors, the rest as JSON.

No file is a pickle: reading one of them runs no code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from cart_qdrant.files import write_atomic
from cart_qdrant.progress import Reporter


@dataclass(frozen=True, slots=True)
class Resumable:
    """Where the training of one network is saved and reported.

    Attributes:
        path: The checkpoint.
        fingerprint: A checkpoint with another one is not resumed.
        reporter: Shows progress.
        log: Takes one row an epoch.
    """

    path: Path
    fingerprint: str
    reporter: Reporter
    log: Callable[[Mapping[str, float | str]], None]

    def read(self) -> dict[str, Any] | None:
        """The JSON part of the checkpoint; None where there is none to resume."""
        meta = read_meta(self.path)
        return meta if meta is not None and meta["fingerprint"] == self.fingerprint else None


def save_checkpoint(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, meta: dict[str, Any]
) -> None:
    """Write all that a resumed run needs, in one atomic replacement.

    Args:
        path: The file to write.
        meta: JSON values for the header: epoch, best recall, fingerprint of the data.
    """
    tensors: dict[str, Tensor] = {f"module.{k}": v for k, v in module.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            tensors[f"optimizer.{number}.{key}"] = torch.as_tensor(value)
    contiguous = {k: v.detach().contiguous().clone() for k, v in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, save(contiguous, metadata={"meta": json.dumps(meta)}))


def read_meta(path: Path) -> dict[str, Any] | None:
    """The JSON part of a checkpoint; None where there is none."""
    from safetensors import safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            meta: dict[str, Any] = json.loads((file.metadata() or {})["meta"])
            return meta
    except (SafetensorError, KeyError, ValueError):
        return None  # another program wrote it; training starts again


def load_checkpoint(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restore a module and its optimiser from a file that `save_checkpoint` wrote."""
    tensors = load(path.read_bytes())
    prefix = "module."
    module.load_state_dict(
        {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
    )
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, number, name = key.split(".", 2)
            state.setdefault(int(number), {})[name] = value
    current = optimizer.state_dict()
    optimizer.load_state_dict({"state": state, "param_groups": current["param_groups"]})
