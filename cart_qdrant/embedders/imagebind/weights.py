"""ImageBind's weights: the published checkpoint is converted once to one safetensors file a tower.

A search or an ingestion then reads only the towers that it needs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError  # what `torch.load` raises; nothing is unpickled by us
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cart_qdrant.embedders.hub import MODELS_VARIABLE, file_sha256
from cart_qdrant.embedders.imagebind.config import ImageBindConfig
from cart_qdrant.embedders.imagebind.download import PULL, TOWERS, VOCABULARY_FILE
from cart_qdrant.embedders.imagebind.model import ImageBind
from cart_qdrant.errors import (
    CartError,
    MismatchError,
    MissingExtraError,
    UsageError,
    first_line,
)
from cart_qdrant.files import rename_durably

REFETCH = f"Get them again: `{PULL}`."


def convert(
    checkpoint: Path,
    folder: Path,
    *,
    config: ImageBindConfig | None = None,
    say: Callable[[str], None] | None = None,
) -> None:
    """Check a checkpoint against the architecture, tensor by tensor, and write its towers.

    Args:
        checkpoint: State dict as `torch.save` writes it; it is read without running code from it.
        folder: Folder of the converted weights; an older one is replaced when all is written.
        config: Sizes that the checkpoint must have; those of ImageBind-huge by default.
        say: Receives one line for each tower.

    Raises:
        MismatchError: The file is no state dict, or one of another architecture; the first tensor
            that differs is named with both shapes.
        UsageError: `folder` holds other files than converted weights.
    """
    config = config or ImageBindConfig()
    _require_ours(folder)
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, UnpicklingError) as error:
        raise MismatchError(
            f"{checkpoint} is no checkpoint that can be read safely: {first_line(error)}.",
            f"Get the published one: `{PULL}`.",
        ) from error
    _require_same(state, config, checkpoint)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for tower in TOWERS:
        if say is not None:
            say(f"converting the {tower} tower")
        tensors = {name: state[name].contiguous() for name in state if _tower(name) == tower}
        save_file(tensors, part / f"{tower}.safetensors")
    facts = {"sizes": asdict(config), "checkpoint": file_sha256(checkpoint)}
    (part / "config.json").write_text(json.dumps(facts, indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    rename_durably(part, folder)


def _require_ours(folder: Path) -> None:
    """Refuse to replace a folder that holds anything but converted weights."""
    ours = {"config.json", VOCABULARY_FILE, *(f"{tower}.safetensors" for tower in TOWERS)}
    if folder.exists() and not {entry.name for entry in folder.iterdir()} <= ours:
        raise UsageError(
            f"{folder} holds other files than converted weights.",
            f"Move it away, or name another folder with {MODELS_VARIABLE}.",
        )


def _tower(name: str) -> str:
    return name.split(".")[1]


def _require_same(state: object, config: ImageBindConfig, checkpoint: Path) -> None:
    with torch.device("meta"):
        wanted = {name: tuple(x.shape) for name, x in ImageBind(config).state_dict().items()}
    if not isinstance(state, dict) or not all(isinstance(x, Tensor) for x in state.values()):
        raise MismatchError(
            f"{checkpoint} holds no state dict.", f"Get the published one: `{PULL}`."
        )
    found = {name: tuple(x.shape) for name, x in state.items()}
    if found == wanted:
        return
    name = next(iter(sorted(wanted.items() ^ found.items())))[0]
    here, there = (str(x[name]) if name in x else "no such tensor" for x in (found, wanted))
    raise MismatchError(
        f"{checkpoint} has other parts than ImageBind ({len(found):,} tensors, not "
        f"{len(wanted):,}); {name}: {here}, not {there}.",
        f"Get the published one: `{PULL}`.",
    )


def _facts(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / "config.json").read_text())
        return {"sizes": dict(found["sizes"]), "checkpoint": str(found["checkpoint"])}
    except OSError as error:
        raise MissingExtraError(f"The weights of ImageBind are not in {folder}.", PULL) from error
    except (ValueError, KeyError, TypeError) as error:
        raise MismatchError(
            f"{folder / 'config.json'} cannot be read: {error}.", REFETCH
        ) from error


def read_config(folder: Path) -> ImageBindConfig:
    """Sizes of the weights in a folder.

    Raises:
        MissingExtraError: The folder holds no weights; the remedy is the command that fetches them.
        MismatchError: `config.json` is damaged.
    """
    sizes = _facts(folder)["sizes"]
    try:
        return ImageBindConfig(**{**sizes, "kernel_size": tuple(sizes["kernel_size"])})
    except (KeyError, TypeError) as error:
        raise MismatchError(f"{folder / 'config.json'} is of another version.", REFETCH) from error


def read_version(folder: Path) -> str:
    """Start of the SHA-256 of the checkpoint that was converted: an index is bound to it."""
    return str(_facts(folder)["checkpoint"])[:12]


def loadable(folder: Path) -> bool:
    """Whether the weights can be loaded, judged by the names and shapes in the files' headers."""
    try:
        with torch.device("meta"):
            wanted = ImageBind(read_config(folder), TOWERS).state_dict()
        found: dict[str, tuple[int, ...]] = {}
        for tower in TOWERS:
            with safe_open(folder / f"{tower}.safetensors", framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - it is no mapping
                    found[name] = tuple(file.get_slice(name).get_shape())
    except (CartError, OSError, SafetensorError):
        return False
    return found == {name: tuple(x.shape) for name, x in wanted.items()}


def load_towers(
    folder: Path,
    towers: Sequence[str],
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> ImageBind:
    """A model with some of its towers, in evaluation mode.

    Tensors are read and converted one by one, so that memory never holds them in two types.

    Raises:
        MissingExtraError: The folder holds no weights.
        MismatchError: A file is damaged, or belongs to another architecture.
    """
    config = read_config(folder)
    with torch.device("meta"):
        model = ImageBind(config, towers)
    state: dict[str, Tensor] = {}
    for tower in towers:
        path = folder / f"{tower}.safetensors"
        try:
            with safe_open(path, framework="pt", device=device) as file:
                for name in file.keys():  # noqa: SIM118 - it is no mapping
                    state[name] = file.get_tensor(name).to(dtype)
        except (OSError, SafetensorError) as error:
            raise MismatchError(f"{path} cannot be read: {error}.", REFETCH) from error
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise MismatchError(
            f"The weights in {folder} are not those of their config.json: {reason}.",
            REFETCH,
        ) from error
    model.eval().requires_grad_(False)
    return model
