"""`cartq train`: learn to search from the captions of an index."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from cart_qdrant.compute import ComputeOptions
from cart_qdrant_cli.options import (
    CollectionOption,
    DeviceOption,
    DtypeOption,
    IndexOption,
    JsonOption,
    MadeOf,
    Profile,
    Target,
    UrlOption,
    VerboseOption,
    add_command,
    compute_options,
    examples,
    resolve,
)
from cart_qdrant_cli.output import Reporter, plain, print_json, reporting, stdout

if TYPE_CHECKING:
    from cart_qdrant.training.report import TrainReport

EXAMPLES = examples(
    "cartq train",
    "cartq train --profile quick",
    "cartq train --profile thorough",
    "cartq train --identifiers-from media",
    "cartq train --device cpu --dtype float32",
)


MEASURED: Mapping[str, tuple[str, str]] = {
    "quick": ("2 minutes", "9 minutes"),
    "default": ("5 minutes", "not measured"),
    "thorough": ("not run", "not run"),
}
"""What each profile took on two cores: for 60 photos with 300 captions, and for 8,000 photos with
39,000 (docs/benchmarks.md, "What a training costs")."""


def profile_costs() -> str:
    """What the profiles cost, in a sentence."""
    each = [f"{name}: {few}, {many}" for name, (few, many) in MEASURED.items()]
    return f"On two cores, for 60 photos and for 8,000: {'; '.join(each)}."


def train(
    context: typer.Context,
    profile: Annotated[
        Profile,
        typer.Option(
            help=f"{profile_costs()} The run says at its start what it takes here.",
        ),
    ] = Profile.DEFAULT,
    seed: Annotated[int, typer.Option(help="Seed of the random numbers.")] = 0,
    no_resume: Annotated[
        bool,
        typer.Option(
            "--no-resume", help="Start from the beginning, even where a stopped run could go on."
        ),
    ] = False,
    identifiers_from: Annotated[
        MadeOf,
        typer.Option(
            help="What identifiers of items with captions are made of: media: their vectors alone; "
            "captions: their captions; both: the two together. Those of other items are made of "
            "their vectors."
        ),
    ] = MadeOf.BOTH,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    json: JsonOption = False,
    index: IndexOption = None,
    url: UrlOption = None,
    collection: CollectionOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Train the query encoder and the generator on the captions of the index.

    Search works before and during training; the new model takes over when it is complete.
    A stopped run goes on where it was.
    """
    target = resolve(context, index=index, url=url, collection=collection, verbose=verbose)
    with reporting("steps") as reporter:
        report = run_train(
            target, reporter, profile=profile, seed=seed, resume=not no_resume,
            compute=compute_options(device, dtype), identifiers_from=identifiers_from,
        )  # fmt: skip
    if json:
        print_json(report.to_json())
    else:
        show_train(stdout(), report, target)


def run_train(
    target: Target,
    reporter: Reporter,
    *,
    profile: Profile = Profile.DEFAULT,
    seed: int = 0,
    resume: bool = True,
    compute: ComputeOptions | None = None,
    identifiers_from: MadeOf = MadeOf.BOTH,
) -> TrainReport:
    """Train on the index of `target`.

    Raises:
        IndexMissingError: There is no index, or it is empty.
        UsageError: This machine does not have the device, or the device not the number format.
    """
    from cart_qdrant.training.options import TrainOptions
    from cart_qdrant.training.train import train

    with target.writing() as index:
        options = TrainOptions(
            profile=profile.value, seed=seed, resume=resume, compute=compute or ComputeOptions(),
            identifiers_from=identifiers_from.value,
        )  # fmt: skip
        return train(index, options, reporter)


def show_train(console: Console, report: TrainReport, target: Target, *, hint: bool = True) -> None:
    """The report, and what to do next if `hint`."""
    for line in report.summary_lines():
        console.print(Text(plain(line)))
    if not hint:
        return
    console.print(Text.assemble(("next  ", "bold"), (f'cartq search "..."{target.hint}', "cyan")))


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add_command(app, train, EXAMPLES)
