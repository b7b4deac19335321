"""`cartq caption`: models put the items of an index into words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from cart_qdrant.compute import described
from cart_qdrant_cli.options import (
    CollectionOption,
    DeviceOption,
    DtypeOption,
    IndexOption,
    JsonOption,
    UrlOption,
    VerboseOption,
    add_command,
    compute_options,
    examples,
    resolve,
)
from cart_qdrant_cli.output import (
    counted,
    duration,
    facts,
    grid,
    plain,
    print_json,
    reporting,
    show_files,
    stdout,
)

if TYPE_CHECKING:
    from cart_qdrant.index.annotate import CaptionReport

EXAMPLES = examples(
    "cartq caption",
    "cartq caption --captioner hf:Salesforce/blip-image-captioning-base",
    "cartq caption --captioner whisper:small",
    "cartq caption --captioner http://localhost:8000/v1 --model qwen2.5-vl --limit 100",
)
SHOWN = 20
"""Rows of each kind that are shown; --json has all."""


def caption(
    context: typer.Context,
    captioner: Annotated[
        str,
        typer.Option(
            help="labels (what the embedder knows, weak), hf:MODEL (a captioning model of the hub, "
            "or a folder), whisper or whisper:MODEL (speech), or the URL of an OpenAI-compatible "
            "endpoint, whose key is read from CARTQ_CAPTION_KEY.",
        ),
    ] = "labels",
    model: Annotated[
        str | None, typer.Option(help="Model of the endpoint.", show_default=False)
    ] = None,
    every: Annotated[
        bool, typer.Option("--every", help="Describe what people have described, too.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Items looked at, at most.", show_default=False)
    ] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    json: JsonOption = False,
    index: IndexOption = None,
    url: UrlOption = None,
    collection: CollectionOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Describe items by a model, or write down what is said in them.

    A run may be stopped and started again: what a model has looked at is not looked at again.
    Captions that fit their item badly count less in training, and are listed. Exit code 1: some
    files failed.
    """
    from cart_qdrant.captions.models import open_captioner
    from cart_qdrant.index.annotate import LABELS, caption_index

    target = resolve(context, index=index, url=url, collection=collection, verbose=verbose)
    compute = compute_options(device, dtype)
    chosen = None
    if captioner != LABELS:
        chosen = open_captioner(captioner, model=model, compute=compute)
    with target.writing() as opened, reporting("items") as reporter:
        opened.compute = compute
        report = caption_index(opened, chosen, reporter, every=every, limit=limit)
    if json:
        print_json(report.to_json())
    else:
        show_report(stdout(), report)
    if report.failed:
        raise typer.Exit(1)


def show_report(console: Console, report: CaptionReport) -> None:
    """What deserves a look, then counts."""
    if report.failed:
        show_files(console, "Failed", report.failed, SHOWN)
    if report.low_confidence:
        table = grid("fits", "path", "caption", title="Captions that fit badly", right=("fits",))
        for doubt in sorted(report.low_confidence, key=lambda one: one.confidence)[:SHOWN]:
            share = f"{100 * doubt.confidence:.0f} %"
            table.add_row(share, Text(plain(doubt.path)), Text(plain(doubt.text)))
        console.print(table)
        if (more := len(report.low_confidence) - SHOWN) > 0:
            console.print(Text(f"and {more} more; --json lists them all", style="dim"))
        console.print()
    console.print(
        facts(
            {
                "captioner": report.captioner,
                "looked at": f"{counted(report.items, 'item')} in {duration(report.seconds)}",
                "captions": str(report.captions),
                "skipped": f"{report.skipped} (described, or looked at before)",
            }
            | ({} if report.compute is None else {"on": described(report.compute.to_json())})
        )
    )


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add_command(app, caption, EXAMPLES)
