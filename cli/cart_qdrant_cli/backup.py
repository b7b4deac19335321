"""`cartq backup` and `cartq restore`: an index as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from cart_qdrant_cli.options import (
    CollectionOption,
    IndexOption,
    JsonOption,
    Target,
    UrlOption,
    VerboseOption,
    add_command,
    examples,
    resolve,
)
from cart_qdrant_cli.output import counted, plain, print_json, reporting, size, stdout

BACKUP_EXAMPLES = examples(
    "cartq backup photos.tar.gz", "cartq backup photos.tar.gz --index /data/.cartq"
)
RESTORE_EXAMPLES = examples(
    "cartq restore photos.tar.gz",
    "cartq restore photos.tar.gz --index copy/.cartq",
    "cartq restore photos.tar.gz --url http://localhost:6333 --collection photos",
)


def backup(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="File to write; replaced.", show_default=False)],
    json: JsonOption = False,
    index: IndexOption = None,
    url: UrlOption = None,
    collection: CollectionOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Write an index, points and all, into one tar.gz file. The media are not in it."""
    from cart_qdrant.index.backup import backup as write

    target = resolve(context, index=index, url=url, collection=collection, verbose=verbose)
    with target.writing() as opened, reporting("points") as reporter:
        count = write(opened, file, reporter)
    _tell(file, count, json=json)


def restore(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="File of `cartq backup`.", show_default=False)],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="Embedder that the backup may have downloaded, such as st:clip-ViT-B-32. "
            "Repeatable.",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
    index: IndexOption = None,
    url: UrlOption = None,
    collection: CollectionOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Make an index from a backup: in its folder, or with its points on a server (--url).

    The file is trusted with nothing but its data: the points come into the folder (or to --url),
    hashes are computed again, and a model of a hub is downloaded only if --model names it.

    Paths of media are relative to the folder that the index lies in: restore it beside them. If it
    is stopped while points go to the server, `cartq migrate --to URL` goes on.
    """
    from cart_qdrant.index.backup import restore as read
    from cart_qdrant.index.migrate import migrate
    from cart_qdrant.storage.store_info import StoreInfo

    target = resolve(context, index=index, url=url, collection=collection, verbose=verbose)
    with reporting("points") as reporter:
        read(file, target.index, models=model or ())
        local = Target(index=target.index)
        with local.writing() as opened:
            if target.url is not None:
                place = StoreInfo(
                    kind="server", url=target.url, collection=target.collection or "media"
                )
                migrate(opened, place, api_key=target.api_key, reporter=reporter)
            count = opened.store.count()
    _tell(target.index, count, json=json)


def _tell(made: Path, count: int, *, json: bool) -> None:
    bytes_ = made.stat().st_size if made.is_file() else 0
    if json:
        print_json({"path": str(made), "points": count, "bytes": bytes_})
        return
    how_large = f", {size(bytes_)}" if bytes_ else ""
    stdout().print(Text(f"{plain(str(made))}: {counted(count, 'point')}{how_large}"))


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    add_command(app, backup, BACKUP_EXAMPLES)
    add_command(app, restore, RESTORE_EXAMPLES)
