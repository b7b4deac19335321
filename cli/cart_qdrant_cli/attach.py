"""`cartq attach` and `cartq sync`: an index over a collection that others fill."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from cart_qdrant.errors import UsageError
from cart_qdrant.records import Modality
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
from cart_qdrant_cli.output import counted, duration, facts, print_json, remark, reporting, stdout

if TYPE_CHECKING:
    from cart_qdrant.index.sync import SyncReport

ATTACH_EXAMPLES = examples(
    "cartq attach --url http://localhost:6333 --collection photos",
    "cartq attach --url http://localhost:6333 --collection photos --vector image "
    "--embedder st:clip-ViT-B-32",
    "cartq attach --url https://... --collection clips --field path=meta.url "
    "--field captions=title,summary --field start=from_s",
)
SYNC_EXAMPLES = examples("cartq sync", "cartq sync --verify --json")


def attach(
    context: typer.Context,
    vector: Annotated[
        str | None,
        typer.Option(
            help="Name of the vector to use, where the collection has several.", show_default=False
        ),
    ] = None,
    modality: Annotated[
        Modality | None,
        typer.Option(
            "--modality",
            "-m",
            help="Modality of all its items; guessed from the payload if left out.",
            show_default=False,
        ),
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OURS=THEIRS",
            help="Payload field that holds path, captions, modality, start or end (seconds), such "
            "as captions=title,meta.text; captions= for none. Guessed where left out. Repeatable.",
            show_default=False,
        ),
    ] = None,
    embedder: Annotated[
        str | None,
        typer.Option(
            help="Embedder that made the vectors, if `cartq models` lists it: it answers queries "
            "before training, and training distils it.",
            show_default=False,
        ),
    ] = None,
    caption_vectors: Annotated[
        bool,
        typer.Option(
            "--caption-vectors",
            help="Add the vector cart_caption (384-d) to the collection, for captions: items "
            "with captions are found much better. A training may add cart_caption_2.",
        ),
    ] = False,
    key: Annotated[
        str, typer.Option(help="Payload field that identifiers are written to.")
    ] = "cart",
    path: Annotated[
        Path | None,
        typer.Option(help="Folder of an embedded engine, instead of --url.", show_default=False),
    ] = None,
    json: JsonOption = False,
    index: IndexOption = None,
    url: UrlOption = None,
    collection: CollectionOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Add identifiers to a Qdrant collection that you or others fill.

    Payloads and vectors that are there stay as they are: one payload field is written beside them,
    payload indexes are made, and the collection's metadata gets one key. Follow it later with
    `cartq sync`. A run may be stopped: `cartq sync` goes on.
    """
    from cart_qdrant.embedders.registry import open_embedder
    from cart_qdrant.index.attach import AttachOptions
    from cart_qdrant.index.attach import attach as make
    from cart_qdrant.index.folder import IndexFolder
    from cart_qdrant.index.sync import sync

    target = resolve(context, index=index, url=url, collection=collection, verbose=verbose)
    if (target.url is None) == (path is None):
        raise UsageError(
            "Either --url or --path must name the place of the collection.", "Give one of them."
        )
    if path is None and target.collection is None:
        raise UsageError("The collection on the server has no name.", "Add --collection NAME.")
    with reporting("points") as reporter:
        options = AttachOptions(
            vector=vector,
            modality=modality,
            fields=_fields(field or ()),
            key=key,
            embedder=None if embedder is None else open_embedder(embedder, say=reporter.say),
            caption_vectors=caption_vectors,
        )
        with (
            IndexFolder(target.index.absolute()).lock(),
            make(
                target.index, target.collection or "", url=target.url, path=path,
                api_key=target.api_key, options=options, reporter=reporter,
            ) as opened,
        ):  # fmt: skip
            report = sync(opened, reporter)
    _show(report, target, json=json)


def sync(
    context: typer.Context,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Compare every vector and caption again, to find points changed in place.",
        ),
    ] = False,
    json: JsonOption = False,
    index: IndexOption = None,
    url: UrlOption = None,
    collection: CollectionOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Bring the identifiers up to date with an attached collection.

    New points get identifiers, deleted points leave the tree. Which payload fields hold what
    is guessed anew where a guess no longer fits. Run it by a timer, or after each load; it may
    be stopped and started again.
    """
    from cart_qdrant.index.sync import sync as follow

    target = resolve(context, index=index, url=url, collection=collection, verbose=verbose)
    with target.writing() as opened, reporting("points") as reporter:
        report = follow(opened, reporter, verify=verify)
    _show(report, target, json=json)


def _fields(given: list[str] | tuple[()]) -> dict[str, str]:
    out: dict[str, str] = {}
    for one in given:
        ours, equals, theirs = one.partition("=")
        if not equals:
            raise UsageError(f"--field {one!r} has no `=`.", "Write --field captions=title.")
        out[ours.strip()] = theirs.strip()
    return out


def _show(report: SyncReport, target: Target, *, json: bool) -> None:
    if json:
        print_json(report.to_json())
    else:
        show_sync(stdout(), report, target)


def show_sync(console: Console, report: SyncReport, target: Target) -> None:
    """How the collection is read, what was done, what to do next."""
    from cart_qdrant.embedders.external import EXTERNAL

    how = report.attachment
    read = {
        "path": how.path or "(id of the point)",
        "captions": ", ".join(how.captions) or "(none)",
        "modality": how.modality_field or how.modality,
        "start, end": ", ".join(one for one in (how.start, how.end) if one) or "(none)",
    }
    changes = [
        f"{count} {name}"
        for count, name in (
            (report.new, "new"), (report.deleted, "deleted"), (report.changed, "changed"),
            (report.captions, "captions embedded"),
        )
        if count
    ]  # fmt: skip
    found = report.identifiers
    made_by = "" if report.embedder == EXTERNAL else f" by {report.embedder}"
    console.print(
        facts(
            {
                "collection": report.location,
                "vector": (how.vector or "(without a name)") + made_by,
                **read,
                "identifiers": f"field {how.key}, {found['levels']} levels, "
                f"unique-identifier ratio {found['unique_ratio']:.3f}"
                if found
                else "none yet",
                "items": f"{counted(report.items, 'item')}: {', '.join(changes) or 'no change'}, "
                f"in {duration(report.seconds)}",
            }
        )
    )
    for line in report.remarks:
        remark(line[0].upper() + line[1:] + ".")
    if found:
        console.print(
            Text.assemble(
                ("next  ", "bold"),
                (f"cartq train{target.hint}", "cyan"),
                "  then  ",
                (f'cartq search "..."{target.hint}', "cyan"),
            )
        )


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    add_command(app, attach, ATTACH_EXAMPLES)
    add_command(app, sync, SYNC_EXAMPLES)
