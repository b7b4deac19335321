"""`cartq demo`: the main job on real media, from files to hits."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from cart_qdrant.errors import UsageError
from cart_qdrant.records import Modality
from cart_qdrant_cli.demo_media import copy_media
from cart_qdrant_cli.ingest import run_ingest, show_ingest
from cart_qdrant_cli.options import Profile, State, Target, VerboseOption, add_command, examples
from cart_qdrant_cli.output import plain, remark, reporting, stdout
from cart_qdrant_cli.search import describe, open_retriever, show_hits, write_sheet
from cart_qdrant_cli.train import run_train, show_train

MARK = ".cartq-demo"
"""File that says a folder was made by the demo, so that it may be emptied."""
HITS = 4

EXAMPLES = examples("cartq demo", "cartq demo --folder /tmp/cartq-demo --keep")


@dataclass(frozen=True, slots=True)
class Question:
    """A search of the demo."""

    query: str
    modality: Modality | None = None
    filters: tuple[str, ...] = ()

    @property
    def options(self) -> list[str]:
        """Its options on the command line."""
        kind = [] if self.modality is None else ["--modality", str(self.modality)]
        return [*kind, *(part for one in self.filters for part in ("--filter", one))]


QUESTIONS = (
    Question("a cat with green eyes"),
    Question("an orange flower"),
    Question("waiting on a bicycle", modality=Modality.VIDEO),
    Question("stars in the night sky", filters=("subject=space",)),
)
"""By a caption, by content alone, by time in a video, with a filter."""


def demo(
    context: typer.Context,
    folder: Annotated[Path, typer.Option(help="Where the media and the index go.")] = Path(".demo"),
    keep: Annotated[
        bool, typer.Option("--keep", help="Go on with the index of the last run, if there is one.")
    ] = False,
    verbose: VerboseOption = False,
) -> None:
    """Ingest, train and search on photographs and clips that come with installed packages.

    Nothing is downloaded. The folder is kept, to try your own searches in.
    """
    state: State = context.obj
    state.verbose |= verbose
    given = {"--index": state.index, "--url": state.url, "--collection": state.collection}
    for option, value in given.items():
        if value is not None:
            raise UsageError(
                f"cartq demo makes an index of its own, but {option} is {str(value)!r}.",
                "Leave it out; --folder says where the index goes.",
            )
    _prepare(folder, keep=keep)
    media = folder / "media"
    count = copy_media(media)
    target = Target(index=folder / ".cartq", verbose=state.verbose)
    console = stdout()
    console.print(f"{count} files in {plain(str(media))}, about half of them with a caption")
    _ingest(console, target, media)
    _train(console, target)
    for number, question in enumerate(QUESTIONS, 1):
        _search(console, target, question, folder / f"hits-{number}.html")


def _prepare(folder: Path, *, keep: bool) -> None:
    """Make the folder, or empty one of an earlier run.

    Raises:
        UsageError: It holds something else.
    """
    mark = folder / MARK
    if folder.exists() and not mark.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"{folder} is not empty and was not made by the demo.", "Name another --folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()
    if not keep:
        for name in ("media", ".cartq"):
            if (folder / name).exists():
                shutil.rmtree(folder / name)


def _show_command(console: Console, *words: str, target: Target) -> None:
    line = shlex.join(["cartq", *words, "--index", str(target.index)])
    console.print()
    console.print(Text.assemble(("$ ", "dim"), (plain(line), "bold cyan")), soft_wrap=True)


def _ingest(console: Console, target: Target, media: Path) -> None:
    from cart_qdrant.index.report import IngestOptions

    _show_command(console, "ingest", str(media), target=target)
    with reporting("files") as reporter:
        done = run_ingest(target, IngestOptions(paths=[media]), reporter)
    show_ingest(console, done, target, hint=False)
    if done.report.failed:
        raise typer.Exit(1)


def _train(console: Console, target: Target) -> None:
    _show_command(console, "train", "--profile", Profile.QUICK.value, target=target)
    with reporting("steps") as reporter:
        report = run_train(target, reporter, profile=Profile.QUICK)
    show_train(console, report, target, hint=False)


def _search(console: Console, target: Target, question: Question, page: Path) -> None:
    from cart_qdrant.search.filters import parse_filter

    words = ["search", question.query, "-k", str(HITS), *question.options]
    _show_command(console, *words, "--html", str(page), target=target)
    with open_retriever(target) as retriever:
        wanted = parse_filter(question.filters, question.modality)
        result = retriever.search(question.query, k=HITS, filter=wanted)
        media = retriever.media_folder(result.hits)
    show_hits(console, result.hits)
    for line in result.remarks:
        remark(line)
    console.print(Text(describe(result), style="dim"))
    sheet = write_sheet(result, media, page).absolute()
    link = Text(plain(str(sheet)), style=f"link {sheet.as_uri()}")
    console.print(Text.assemble(("contact sheet  ", "dim"), link), soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add_command(app, demo, EXAMPLES)
