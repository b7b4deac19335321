"""`cartq eval`: recall and latency of the lanes on queries with known answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.console import Console

from cart_qdrant_cli.options import (
    CollectionOption,
    FilterOption,
    IndexOption,
    JsonOption,
    Lane,
    ModalityOption,
    UrlOption,
    VerboseOption,
    add_command,
    distinct,
    examples,
    resolve,
)
from cart_qdrant_cli.output import grid, plain, print_json, reporting, stdout
from cart_qdrant_cli.search import open_retriever

if TYPE_CHECKING:
    from cart_qdrant.search import engine
    from cart_qdrant.search.evaluate import LaneScore

KS = (1, 5, 10)

EXAMPLES = examples(
    "cartq eval queries.jsonl",
    "cartq eval queries.jsonl --lane dense --lane auto -k 1 -k 10 --filter split=dev --json",
)


def evaluate(
    context: typer.Context,
    queries: Annotated[
        Path,
        typer.Argument(
            help='One JSON object a line: {"query": "...", "relevant": ["relative/path.jpg"]}.',
            metavar="QUERIES.jsonl",
            show_default=False,
        ),
    ],
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
    filters: FilterOption = None,
    modality: ModalityOption = None,
    json: JsonOption = False,
    index: IndexOption = None,
    url: UrlOption = None,
    collection: CollectionOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Measure recall, MRR and latency on your own queries."""
    from cart_qdrant.search.evaluate import evaluate as measure
    from cart_qdrant.search.evaluate import load_queries
    from cart_qdrant.search.filters import parse_filter

    target = resolve(context, index=index, url=url, collection=collection, verbose=verbose)
    wanted = parse_filter(filters or (), modality)
    rows = load_queries(queries)
    lanes = cast("list[engine.Lane]", distinct([one.value for one in lane or [Lane.AUTO]]))
    ks = sorted(set(k or KS))
    with open_retriever(target) as retriever, reporting("queries") as reporter:
        scores = measure(retriever, rows, lanes=lanes, ks=ks, filter=wanted, reporter=reporter)
    if json:
        print_json({"queries": len(rows), "lanes": [score.to_json() for score in scores]})
    else:
        show_scores(stdout(), scores, ks)


def show_scores(console: Console, scores: list[LaneScore], ks: list[int]) -> None:
    """One row a lane; recall in percent."""
    names = ("queries", *(f"R@{k}" for k in ks), "MRR@10", "p50 ms", "p95 ms")
    table = grid("lane", *names, right=names)
    for score in scores:
        row = score.to_json()
        table.add_row(
            plain(row["lane"]),
            str(row["queries"]),
            *(f"{100 * row['recall'][str(k)]:.1f}" for k in ks),
            f"{row['mrr@10']:.3f}",
            f"{row['p50_ms']:.1f}",
            f"{row['p95_ms']:.1f}",
        )
    console.print(table)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add_command(app, evaluate, EXAMPLES, name="eval")
