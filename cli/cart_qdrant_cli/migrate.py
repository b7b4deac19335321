"""`cartq migrate`: the points of an index to another store."""

from __future__ import annotations

from typing import Annotated

import typer

from cart_qdrant.errors import UsageError
from cart_qdrant_cli.options import (
    CollectionOption,
    IndexOption,
    JsonOption,
    UrlOption,
    VerboseOption,
    add_command,
    examples,
    resolve,
)
from cart_qdrant_cli.output import counted, duration, facts, print_json, reporting, stdout

EXAMPLES = examples(
    "cartq migrate --to http://localhost:6333",
    "cartq migrate --to https://qdrant.example.org --to-collection photos",
    "cartq migrate --embedded",
)


def migrate(
    context: typer.Context,
    to: Annotated[str | None, typer.Option(metavar="URL", help="Qdrant server to move to.")] = None,
    to_collection: Annotated[
        str, typer.Option(metavar="NAME", help="Collection on that server.")
    ] = "media",
    embedded: Annotated[
        bool, typer.Option("--embedded", help="Move into the index folder, from a server.")
    ] = False,
    json: JsonOption = False,
    index: IndexOption = None,
    url: UrlOption = None,
    collection: CollectionOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Move an index to a Qdrant server, or back into its folder.

    Points are copied, counted and compared; then the index answers from there. It may be stopped
    and started again. The points also stay where they were. The key of either server is read from
    CARTQ_API_KEY.
    """
    from cart_qdrant.index.migrate import migrate as move
    from cart_qdrant.storage.store_info import StoreInfo

    target = resolve(context, index=index, url=url, collection=collection, verbose=verbose)
    if (to is None) == (not embedded):
        raise UsageError(
            "Either --to or --embedded must name the new place of the points.", "Give one of them."
        )
    place = (
        StoreInfo() if to is None else StoreInfo(kind="server", url=to, collection=to_collection)
    )
    with target.writing() as opened, reporting("points") as reporter:
        report = move(opened, place, api_key=target.api_key, reporter=reporter)
    if json:
        print_json(report.to_json())
        return
    removed = f", {report.removed} removed that the source no longer has" if report.removed else ""
    stdout().print(
        facts(
            {
                "from": f"{report.source} (the points are still there)",
                "to": report.target,
                "points": f"{counted(report.points, 'point')}: {report.copied} copied{removed}, "
                f"{report.compared} compared one by one, in {duration(report.seconds)}",
            }
        )
    )


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add_command(app, migrate, EXAMPLES)
