"""`cartq rm`: takes files out of an index."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from cart_qdrant_cli.options import (
    CollectionOption,
    IndexOption,
    JsonOption,
    UrlOption,
    VerboseOption,
    add_command,
    distinct,
    examples,
    resolve,
)
from cart_qdrant_cli.output import (
    SHOWN,
    counted,
    duration,
    print_json,
    remark,
    show_files,
    show_planned,
    stderr,
    stdout,
)

if TYPE_CHECKING:
    from cart_qdrant.index.remove import RemoveReport

EXAMPLES = examples(
    "cartq rm photos/blurred.jpg",
    "cartq rm photos/2019 videos/old --dry-run",
    "cartq rm '*.gif' --yes",
)


def rm(
    context: typer.Context,
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Files and folders, or patterns in quotes, which fit anywhere in the index.",
            metavar="PATH...",
            show_default=False,
        ),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be removed, and change nothing.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask, where this is a terminal.")
    ] = False,
    json: JsonOption = False,
    index: IndexOption = None,
    url: UrlOption = None,
    collection: CollectionOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Take files out of the index. The files themselves are left alone.

    A PATH is seen from the current folder, or as hits show it; the file need not exist any more.
    Exit code 1: a PATH fits no stored file, the others are removed.

    The next `cartq ingest` of its folder takes a file again that still exists, unless it is left
    out by --exclude or a .cartqignore file.
    """
    from cart_qdrant.index.remove import RemoveReport, choose, remove, still_there

    target = resolve(context, index=index, url=url, collection=collection, verbose=verbose)
    with target.writing() as opened:
        chosen = choose(opened, distinct(paths))
        count, segments = len(chosen.files), len(chosen.ids)
        if dry_run or not _agreed(count, segments, asked=not yes and not json):
            report = RemoveReport(sorted(chosen.files), segments, chosen.failed, dry_run=True)
        else:
            report = remove(opened, chosen)
        there = still_there(opened, report.paths)
    if json:
        print_json(report.to_json())
    else:
        _show(stdout(), report, verbose=target.verbose)
        if there and not report.dry_run:
            again = "takes it" if len(there) == 1 else "takes them"
            remark(f"{counted(len(there), 'file')} still there: the next ingest {again} again")
    if report.failed:
        raise typer.Exit(1)


def _agreed(files: int, segments: int, *, asked: bool) -> bool:
    """Whether the user agrees, who is asked at a terminal only."""
    if not files or not asked or not (sys.stdin.isatty() and stderr().is_terminal):
        return True
    what = f"{counted(files, 'file')} ({counted(segments, 'segment')})"
    return typer.confirm(f"Take {what} out of the index?", err=True)


def _show(console: Console, report: RemoveReport, *, verbose: bool) -> None:
    if report.failed:
        show_files(console, "Failed", report.failed, len(report.failed) if verbose else SHOWN)
    if report.dry_run:
        show_planned(console, "remove", report.paths, verbose=verbose)
    what = f"{counted(len(report.paths), 'file')}, {counted(report.segments, 'segment')}"
    if report.dry_run:
        console.print(Text(f"{what} to remove. Nothing was written."))
    else:
        console.print(Text(f"{what} removed · {duration(report.seconds)}"))


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add_command(app, rm, EXAMPLES)
