"""`cartq ingest`: files to points with identifiers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from cart_qdrant.compute import ComputeOptions, described
from cart_qdrant.errors import UsageError
from cart_qdrant_cli.health import known_json, known_line, show_notes
from cart_qdrant_cli.ingest_progress import ingesting
from cart_qdrant_cli.options import (
    CollectionOption,
    DeviceOption,
    DtypeOption,
    IndexOption,
    JsonOption,
    Target,
    UrlOption,
    VerboseOption,
    add_command,
    compute_options,
    distinct,
    examples,
    resolve,
)
from cart_qdrant_cli.output import (
    SHOWN,
    Reporter,
    duration,
    print_json,
    remark,
    show_files,
    show_planned,
    stdout,
)

if TYPE_CHECKING:
    from cart_qdrant.config import SegmentConfig
    from cart_qdrant.index.health import KnownHealth
    from cart_qdrant.index.index import Index
    from cart_qdrant.index.report import IngestOptions, IngestReport

PRECOMPUTED = "precomputed"

CUTTING: dict[str, Any] = {"show_default": False, "rich_help_panel": "Segments"}

EXAMPLES = examples(
    "cartq ingest photos videos",
    "cartq ingest media --captions captions.csv --exclude 'draft-*'",
    "cartq ingest media --prune --dry-run",
    "cartq ingest media --embedder precomputed --vectors vectors.npz --model clip-b32",
    "cartq ingest talks --max-shot 5 --audio-window 5 --index talks/.cartq",
)


@dataclass(frozen=True, slots=True)
class Ingested:
    """A run's report and what is known of the identifiers after it."""

    report: IngestReport
    health: KnownHealth | None

    def to_json(self) -> dict[str, Any]:
        """The contract's object; the identifiers' state replaces what the report says of them."""
        out = self.report.to_json()
        if self.health is not None:
            out["identifiers"] = known_json(self.health)
        return out


def ingest(
    context: typer.Context,
    paths: Annotated[
        list[Path], typer.Argument(help="Files and folders.", metavar="PATH...", show_default=False)
    ],
    embedder: Annotated[
        str, typer.Option(help="auto, lite or precomputed; `cartq models` lists them.")
    ] = "auto",
    vectors: Annotated[
        Path | None,
        typer.Option(
            help="Vectors for --embedder precomputed (.npz or .parquet).", show_default=False
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Model that made the --vectors, where their file does not say it.",
            show_default=False,
        ),
    ] = None,
    captions: Annotated[
        Path | None,
        typer.Option(
            help="Captions by file name (.csv, .jsonl or .json), besides those beside the media.",
            show_default=False,
        ),
    ] = None,
    no_captions: Annotated[
        bool,
        typer.Option(
            "--no-captions", help="Read no captions, neither tables nor files beside the media."
        ),
    ] = False,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Skip files that match, besides those of .cartqignore files. Repeatable.",
            show_default=False,
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Follow links that lead out of the given folders.")
    ] = False,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune", help="Remove items whose files under PATH were deleted, or are excluded."
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Let --prune remove everything of an empty folder, or most of a given one.",
        ),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Hash all files, also those whose size, times and inode are as stored."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be done, and change nothing.")
    ] = False,
    max_shot: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Longest shot of a video.", **CUTTING),
    ] = None,
    min_shot: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="Shortest shot; shorter ones join a neighbour.", **CUTTING
        ),
    ] = None,
    shot_threshold: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE", help="Change between frames that begins a shot, to 1.", **CUTTING
        ),
    ] = None,
    audio_window: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Length of a window of audio.", **CUTTING),
    ] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    json: JsonOption = False,
    index: IndexOption = None,
    url: UrlOption = None,
    collection: CollectionOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Index folders of images, videos and audio files; bring an index up to date with them.

    The first run makes the index. Unchanged files are skipped, so a run may be stopped and
    started again at any time. Exit code 1: some inputs failed, the rest is stored.

    --prune keeps what it finds doubtful, and says so with exit code 1: items of a given folder that
    is empty now, or of which more than half are gone, as where a disk is not mounted.

    The first run decides how files are cut into segments; later ones cut them alike.
    """
    from cart_qdrant.index.report import IngestOptions

    target = resolve(context, index=index, url=url, collection=collection, verbose=verbose)
    if no_captions and captions is not None:
        raise UsageError("--no-captions and --captions exclude each other.", "Give one of them.")
    if force and not prune:
        raise UsageError("--force is for --prune, which was not given.", "Add --prune.")
    options = IngestOptions(
        paths=paths,
        captions=captions,
        use_captions=not no_captions,
        exclude=distinct(exclude or ()),
        follow=follow,
        prune=prune,
        force=force,
        verify=verify,
        dry_run=dry_run,
    )
    given = {
        "max_shot": max_shot,
        "min_shot": min_shot,
        "shot_threshold": shot_threshold,
        "audio_window": audio_window,
    }
    cut = {name: value for name, value in given.items() if value is not None}
    with ingesting() as reporter:
        done = run_ingest(
            target, options, reporter, embedder=embedder, vectors=vectors, model=model, cut=cut,
            compute=compute_options(device, dtype),
        )  # fmt: skip
    if json:
        print_json(done.to_json())
    else:
        show_ingest(stdout(), done, target)
    if done.report.failed or done.report.held_back:
        raise typer.Exit(1)


def run_ingest(
    target: Target,
    options: IngestOptions,
    reporter: Reporter,
    *,
    embedder: str = "auto",
    vectors: Path | None = None,
    model: str | None = None,
    cut: Mapping[str, float] | None = None,
    compute: ComputeOptions | None = None,
) -> Ingested:
    """Ingest into the index of `target`, which is made if there is none.

    Args:
        vectors: File for the embedder precomputed.
        model: Name of the model that made them.
        cut: Fields of `SegmentConfig` that differ from those of the index.
        compute: Device and number format of the embedder.

    Raises:
        UsageError: A path does not exist, or the embedder and `vectors` do not fit; or this machine
            does not have the device, or the device not the number format.
        MismatchError: The index is bound to another embedder.
    """
    from cart_qdrant.index.health import known_health
    from cart_qdrant.index.ingest import Ingest

    _require_paths(options)
    if model is not None and vectors is None:
        raise UsageError("--model names what made --vectors, which are not given.", "Add them.")
    if cut:
        options = replace(options, segments=_cut_otherwise(target, cut))
    compute = compute or ComputeOptions()
    with _open(target, reporter, options.dry_run, embedder, vectors, model, compute) as index:
        report = Ingest(index, options, reporter).run()
        health = None if options.dry_run else known_health(index)
    return Ingested(report, health)


def _require_paths(options: IngestOptions) -> None:
    """Refuse a wrong path before an index is made for nothing."""
    for path in (*options.paths, *([] if options.captions is None else [options.captions])):
        if not path.exists():
            raise UsageError(f"{path} does not exist.", "Check the path.")


def _cut_otherwise(target: Target, cut: Mapping[str, float]) -> SegmentConfig:
    """The way in which the index cuts files, or a new index would, with some values changed."""
    from cart_qdrant.config import SegmentConfig
    from cart_qdrant.index.folder import IndexFolder

    folder = IndexFolder(target.index.absolute())
    usual = folder.read().segments if folder.exists() else SegmentConfig()
    values: dict[str, Any] = dict(cut)
    return replace(usual, **values)


@contextmanager
def _open(
    target: Target,
    reporter: Reporter,
    dry_run: bool,
    embedder: str,
    vectors: Path | None,
    model: str | None,
    compute: ComputeOptions,
) -> Iterator[Index]:
    """The index, opened or made, and locked unless the run is dry."""
    from cart_qdrant.embedders.registry import open_embedder
    from cart_qdrant.index.folder import IndexFolder
    from cart_qdrant.index.index import Index

    folder = IndexFolder(target.index.absolute())
    place: dict[str, Any] = {
        "url": target.url, "api_key": target.api_key, "collection": target.collection,
    }  # fmt: skip
    with ExitStack() as stack:
        if folder.exists():
            bound = folder.read().embedder.name
            if vectors is not None and bound != PRECOMPUTED:
                raise UsageError(
                    f"--vectors is for the embedder precomputed, but {target.index} has {bound!r}.",
                    "Leave it out, or use another --index.",
                )
            if not dry_run:
                stack.enter_context(folder.lock())
            index = stack.enter_context(Index.open(folder.root, embedder=embedder, **place))
            index.vectors_file = vectors
            if vectors is not None:
                index.set_embedder(open_embedder(PRECOMPUTED, vectors=vectors, model=model))
        else:
            if vectors is not None and embedder != PRECOMPUTED:
                raise UsageError(
                    f"--vectors is for --embedder precomputed, not for {embedder!r}.",
                    "Add --embedder precomputed.",
                )
            made = open_embedder(
                embedder, vectors=vectors, model=model, say=reporter.say, compute=compute
            )
            if dry_run:
                scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                index = stack.enter_context(Index.create(scratch / target.index.name, made))
                index.folder = folder  # paths are relative to where the index would be
            else:
                stack.enter_context(folder.lock())
                index = stack.enter_context(Index.create(folder.root, made, **place))
        index.compute = compute
        yield index


def show_ingest(console: Console, done: Ingested, target: Target, *, hint: bool = True) -> None:
    """Failures, the sums, the state of the identifiers, and what to do next if `hint`."""
    report, verbose = done.report, target.verbose
    if report.warnings:
        show_files(console, "Remarks", report.warnings, SHOWN if verbose else 0)
    if report.failed:
        shown = len(report.failed) if verbose else SHOWN
        show_files(console, "Failed", report.failed, shown)
    if report.held_back:
        show_files(console, "Not removed", report.held_back, len(report.held_back))
    if report.dry_run:
        _show_plan(console, report, verbose=verbose)
        return
    console.print(Text(_sums(report)))
    if report.compute is not None:
        console.print(Text(f"Embedded on {described(report.compute.to_json())}."))
    if done.health is None:
        remark("The index is empty.")
        return
    console.print(Text(known_line(done.health)))
    show_notes(console, done.health)
    if not hint:
        return
    console.print(
        Text.assemble(
            ("next  ", "bold"),
            (f'cartq search "..."{target.hint}', "cyan"),
            "  or first  ",
            (f"cartq train{target.hint}", "cyan"),
            "  to search better",
        )
    )


def _sums(report: IngestReport) -> str:
    worked = report.files - report.unchanged - report.recaptioned
    rate = f", {worked / report.seconds:.1f} files/s" if worked > 0 and report.seconds else ""
    if rate and report.media_seconds:
        rate += f", {report.media_seconds / report.seconds:.1f} s of media/s"
    parts = [f"{report.files} files", f"{report.segments} new segments"]
    for count, name in (
        (report.unchanged, "unchanged"),
        (report.renamed, "renamed"),
        (report.recaptioned, "with new captions"),
        (report.removed, "removed"),
        (report.ignored, "ignored"),
        (len(report.failed), "failed"),
    ):
        parts += [f"{count} {name}"] if count else []
    return " · ".join([*parts, f"{duration(report.seconds)}{rate}"])


def _show_plan(console: Console, report: IngestReport, *, verbose: bool) -> None:
    for verb, paths in (("ingest", report.would_ingest), ("remove", report.would_remove)):
        show_planned(console, verb, paths, verbose=verbose)
    console.print(
        f"{len(report.would_ingest)} to ingest · {len(report.would_remove)} to remove · "
        f"{report.unchanged} unchanged. Nothing was written."
    )


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add_command(app, ingest, EXAMPLES)
