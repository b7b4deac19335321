"""`cartq eval`: recall and latency of the lanes on queries with known answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.console import Console
from rich.table import Table

from cart_qdrant.errors import UsageError
from cart_qdrant.extras import require
from cart_qdrant.records import Modality
from cart_qdrant_cli.options import (
    CollectionOption,
    FilterOption,
    IndexOption,
    JsonOption,
    Lane,
    ModalityOption,
    Profile,
    Target,
    UrlOption,
    VerboseOption,
    add_command,
    distinct,
    examples,
    resolve,
)
from cart_qdrant_cli.output import grid, plain, print_json, remark, reporting, stdout
from cart_qdrant_cli.search import open_retriever

if TYPE_CHECKING:
    from cart_qdrant.evaluation.compare import Comparison
    from cart_qdrant.evaluation.evaluate import EvalQuery, LaneScore
    from cart_qdrant.search import lanes as search_lanes
    from cart_qdrant.storage.requests import AnyFilter

KS = (1, 5, 10)

EXAMPLES = examples(
    "cartq eval queries.jsonl",
    "cartq eval queries.jsonl --lane dense --lane auto -k 1 -k 10 --filter split=dev --json",
    "cartq eval --ablate --seeds 1 --out ablation",
    "cartq eval queries.jsonl --embedders lite,imagebind",
    "cartq eval queries.jsonl --granularity 2,5,10 --train quick --modality video",
)


def evaluate(
    context: typer.Context,
    queries: Annotated[
        Path | None,
        typer.Argument(
            help='One JSON object a line: {"query": "...", "relevant": ["relative/path.jpg"]}.',
            metavar="QUERIES.jsonl",
            show_default=False,
        ),
    ] = None,
    lane: Annotated[
        list[Lane] | None,
        typer.Option(
            help="Lane to measure; auto if none is given. Repeatable.", show_default=False
        ),
    ] = None,
    k: Annotated[
        list[int] | None,
        typer.Option(
            "-k", min=1, help="Depth of recall; 1, 5, 10. Repeatable.", show_default=False
        ),
    ] = None,
    ablation: Annotated[
        bool,
        typer.Option(
            "--ablate",
            help="Train without each of its parts, and measure it on held-out queries.",
            rich_help_panel="Ablation",
        ),
    ] = False,
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for tables and plots.", metavar="FOLDER", rich_help_panel="Ablation"
        ),
    ] = Path("ablation"),
    seeds: Annotated[
        int,
        typer.Option(
            min=1, help="Number of runs with different seeds.", rich_help_panel="Ablation"
        ),
    ] = 3,
    pairs: Annotated[
        int,
        typer.Option(min=100, help="Captions to train on at most.", rich_help_panel="Ablation"),
    ] = 10_000,
    embedders: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME",
            help="Embedders to compare: the files of the index are ingested again with each.",
            show_default=False,
            rich_help_panel="Comparison",
        ),
    ] = None,
    granularity: Annotated[
        str | None,
        typer.Option(
            metavar="SECONDS,SECONDS",
            help="Lengths of video and audio segments to compare, in seconds.",
            show_default=False,
            rich_help_panel="Comparison",
        ),
    ] = None,
    profile: Annotated[
        Profile | None,
        typer.Option(
            "--train",
            help="Train each before it is measured.",
            show_default=False,
            rich_help_panel="Comparison",
        ),
    ] = None,
    filters: FilterOption = None,
    modality: ModalityOption = None,
    json: JsonOption = False,
    index: IndexOption = None,
    url: UrlOption = None,
    collection: CollectionOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Measure recall, MRR and latency on your own queries, or the effect of each part."""
    target = resolve(context, index=index, url=url, collection=collection, verbose=verbose)
    if ablation:
        if queries is not None:
            raise UsageError(
                f"--ablate has queries of its own, but {queries} was given.",
                "Leave one of them out.",
            )
        _ablate(target, out, seeds, pairs, json=json)
        return
    if queries is None:
        raise UsageError(
            "No queries were given.", "cartq eval QUERIES.jsonl, or cartq eval --ablate"
        )
    comparing = embedders is not None or granularity is not None
    asked = lane or ([Lane.DENSE, Lane.AUTO] if comparing else [Lane.AUTO])
    task = _Task(queries, distinct([one.value for one in asked]), k, filters, modality)
    if comparing:
        _compare(target, task, embedders, granularity, profile, json=json)
    elif profile is not None:
        raise UsageError(
            "--train is for a comparison, but there is none.", "Add --embedders or --granularity."
        )
    else:
        _measure(target, task, json=json)


class _Task:
    """What is measured: queries of a file, in some lanes, among the items of a filter."""

    def __init__(
        self,
        queries: Path,
        lanes: list[str],
        k: list[int] | None,
        filters: list[str] | None,
        modality: Modality | None,
    ) -> None:
        from cart_qdrant.evaluation.evaluate import load_queries
        from cart_qdrant.search.filters import parse_filter

        self.filter: AnyFilter | None = parse_filter(filters or (), modality)
        self.queries: list[EvalQuery] = load_queries(queries)
        self.lanes = cast("list[search_lanes.Lane]", lanes)
        self.ks = sorted(set(k or KS))


def _measure(target: Target, task: _Task, *, json: bool) -> None:
    from cart_qdrant.evaluation.evaluate import evaluate as measure

    with open_retriever(target) as retriever, reporting("queries") as reporter:
        scores = measure(
            retriever, task.queries, lanes=task.lanes, ks=task.ks, filter=task.filter,
            reporter=reporter,
        )  # fmt: skip
    if json:
        print_json({"queries": len(task.queries), "lanes": [score.to_json() for score in scores]})
    else:
        several = any(len(row.relevant) > 1 for row in task.queries)
        show_scores(stdout(), scores, task.ks, several=several)


def _ablate(target: Target, out: Path, seeds: int, pairs: int, *, json: bool) -> None:
    require("train")
    from cart_qdrant.evaluation.ablation.report import markdown, require_plots, write_report
    from cart_qdrant.evaluation.ablation.results import GrowthResult, VariantResult
    from cart_qdrant.evaluation.ablation.run import ablate
    from cart_qdrant.evaluation.ablation.variants import AblationOptions

    require_plots()
    options = AblationOptions(seeds=seeds, pairs=pairs)
    rows: list[VariantResult] = []
    growth: list[GrowthResult] = []
    with target.open() as index, reporting("variants") as reporter:
        for found in ablate(index, options, reporter):
            if isinstance(found, VariantResult):
                rows.append(found)
                r10 = ", ".join(f"{s} {r[10]:.3f}" for s, r in found.beams.items() if r)
                reporter.say(
                    f"seed {found.seed} {found.variant}: R@10 {r10}, {found.decode_ms:.2f} ms"
                )
            else:
                growth.append(found)
    paths = write_report(rows, growth, options, out)
    if json:
        data = {"rows": [r.to_json() for r in rows], "growth": [g.to_json() for g in growth]}
        print_json({**data, "files": [str(path) for path in paths]})
    else:
        stdout().print(markdown(rows, growth, options), soft_wrap=True)
    for path in paths:
        remark(f"written: {path}")


def _compare(
    target: Target,
    task: _Task,
    embedders: str | None,
    granularity: str | None,
    profile: Profile | None,
    *,
    json: bool,
) -> None:
    from cart_qdrant.evaluation.compare import Setup, compare, stored_files

    with target.open() as index:
        names = (embedders or index.manifest.embedder.name).split(",")
        files = stored_files(index)
    try:
        lengths = [float(one) for one in granularity.split(",")] if granularity else [None]
    except ValueError as error:
        raise UsageError(
            f"--granularity is {granularity!r}, but must be seconds, divided by commas."
        ) from error
    setups = [Setup(name.strip(), length) for name in names for length in lengths]
    with reporting("files") as reporter:
        found = []
        for one in compare(
            files, task.queries, setups, lanes=task.lanes, ks=task.ks, filter=task.filter,
            reporter=reporter,
            profile=None if profile is None else profile.value,
        ):  # fmt: skip
            found.append(one)
            reporter.say(f"{one.setup.embedder}: {one.segments} items")
    if json:
        print_json({"queries": len(task.queries), "setups": [one.to_json() for one in found]})
        return
    stdout().print(_comparison(found, task.ks))


def _comparison(found: Sequence[Comparison], ks: Sequence[int]) -> Table:
    """One row for each lane of each setup."""
    columns = (
        "windows", "dim", "items", "embed s", "lane", *(f"R@{k}" for k in ks), "MRR@10", "p50 ms"
    )  # fmt: skip
    table = grid("embedder", *columns, right=tuple(c for c in columns if c != "lane"))
    for one in found:
        length = "-" if one.setup.seconds is None else f"{one.setup.seconds:g} s"
        for score in one.scores:
            table.add_row(
                plain(one.setup.embedder), length, str(one.dim), str(one.segments),
                f"{one.embed_seconds:.1f}", score.lane,
                *(f"{100 * score.recall[k]:.1f}" for k in ks),
                f"{score.mrr_10:.3f}", f"{score.p50_ms:.1f}",
            )  # fmt: skip
    return table


def show_scores(
    console: Console, scores: list[LaneScore], ks: list[int], *, several: bool = False
) -> None:
    """One row a lane; recall in percent, and mean average precision where a query has several
    answers."""
    depth = scores[0].depth if scores else 0
    ap = (f"mAP@{depth}",) if several else ()
    names = ("queries", *(f"R@{k}" for k in ks), "MRR@10", *ap, "p50 ms", "p95 ms")
    table = grid("lane", *names, right=names)
    for score in scores:
        row = score.to_json()
        table.add_row(
            plain(row["lane"]),
            str(row["queries"]),
            *(f"{100 * row['recall'][str(k)]:.1f}" for k in ks),
            f"{row['mrr@10']:.3f}",
            *(f"{row[f'map@{depth}']:.3f}" for _ in ap),
            f"{row['p50_ms']:.1f}",
            f"{row['p95_ms']:.1f}",
        )
    console.print(table)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add_command(app, evaluate, EXAMPLES, name="eval")
