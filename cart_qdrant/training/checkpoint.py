"""Checkpoints of training: module and optimiser as safetensors, the rest as JSON. No pickles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from cart_qdrant.files import write_atomic


def save_checkpoint(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, meta: dict[str, Any]
) -> None:
    """Write everything that a resumed run needs, in one atomic replacement.

    Args:
        path: Target file; its JSON goes into the safetensors header.
        meta: JSON values: epoch, best recall, fingerprint of the data.
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
        return None  # of another program; training starts anew


def load_checkpoint(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restore a module and its optimiser."""
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
