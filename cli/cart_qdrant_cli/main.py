"""The program `cartq`: its commands, and how its errors are shown."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from typing import Annotated

import typer
from rich.text import Text

from cart_qdrant.errors import CartError
from cart_qdrant_cli import (
    attach,
    backup,
    caption,
    demo,
    doctor,
    evaluate,
    info,
    ingest,
    mcp,
    migrate,
    models,
    rm,
    search,
    train,
)
from cart_qdrant_cli.options import (
    CollectionOption,
    IndexOption,
    State,
    UrlOption,
    VerboseOption,
    examples,
    prose,
)
from cart_qdrant_cli.output import plain, stderr

INTERRUPTED = 130
"""Exit code of a run that the user stopped."""

app = typer.Typer(
    name="cartq",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "cartq ingest photos videos",
        'cartq search "a dog surfing" --modality video',
        "cartq train",
        "cartq demo",
    ),
)
for module in (
    ingest, rm, attach, caption, train, search, mcp, evaluate, doctor, info, migrate,
    backup, models, demo,
):  # fmt: skip
    module.register(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        typer.echo(f"cartq {metadata.version('cart-qdrant')}")
        raise typer.Exit


def cartq(
    context: typer.Context,
    index: IndexOption = None,
    url: UrlOption = None,
    collection: CollectionOption = None,
    verbose: VerboseOption = False,
    _version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_print_version),
    ] = False,
) -> None:
    """Find moments of video and audio, and images, by text.

    Exit codes: 0 done; 1 some inputs failed, the rest is stored; 2 wrong usage; 3 no index, or a
    mismatch.
    """
    state: State = context.obj
    state.index, state.url, state.collection = index, url, collection
    state.verbose = verbose


app.callback(help=prose(cartq.__doc__ or ""))(cartq)


def _show(error: Exception, what: str, remedy: str, *, verbose: bool) -> None:
    if verbose:
        traceback.print_exception(error)
    line = Text.assemble(("cartq: ", "bold red"), plain(what))
    if remedy:
        line.append(" " + plain(remedy), style="bold")
    stderr().print(line, soft_wrap=True)


def _flush() -> None:
    """Hand over what is printed; a closed pipe is no error."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """Run the program and end the process with its exit code."""
    for name in ("PIL", "libav"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Pillow warns about damaged metadata; what matters of it is in the report of an ingestion.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    state = State()
    code: int | str | None
    try:
        app(prog_name="cartq", obj=state)
        code = 0
    except CartError as error:
        _show(error, error.what, error.remedy, verbose=state.verbose)
        code = error.exit_code
    except OSError as error:
        named = f": {error.filename}" if error.filename else ""
        _show(error, f"{error.strerror or error}{named}.", "", verbose=state.verbose)
        code = 3
    except SystemExit as stop:
        code = stop.code
        if code == INTERRUPTED:
            stderr().print("cartq: stopped. Run the same command again to go on from here.")
    _flush()
    sys.exit(code)


if __name__ == "__main__":
    main()
