"""`cartq search`: hits for a text, an image, a video, an audio file, an item, or a mix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.text import Text
from typer.core import TyperCommand

from cart_qdrant.errors import UsageError
from cart_qdrant.extras import require
from cart_qdrant.records import Hit, Modality, fixed
from cart_qdrant_cli.options import (
    CollectionOption,
    FilterOption,
    GroupBy,
    IndexOption,
    JsonOption,
    Lane,
    ModalityOption,
    Target,
    UrlOption,
    VerboseOption,
    add_command,
    examples,
    resolve,
)
from cart_qdrant_cli.output import counted, facts, grid, plain, print_json, remark, stdout

if TYPE_CHECKING:
    from cart_qdrant.media.folder import MediaFolder
    from cart_qdrant.search.query import Kind, Query
    from cart_qdrant.search.result import SearchResult
    from cart_qdrant.search.retriever import Retriever

EXAMPLES = examples(
    'cartq search "a dog surfing"',
    'cartq search "a red car" --explain --min-confidence 0.1',
    'cartq search "waves at night" --modality video -k 5 --html hits.html',
    'cartq search "a red car" -k 20 --offset 20',
    "cartq search --image beach.jpg --min-similarity 0.5",
    "cartq search --like clip.mp4@12",
    'cartq search --mix "a dog" 0.7 --image beach.jpg 0.3 --minus snow',
    "cartq search rain --filter 'year>=2020' --filter camera=gopro,dji --json",
)


WEIGHED = ("--mix", "--image", "--audio", "--like", "--minus")
"""Options whose value may be followed by a weight."""
_BETWEEN = "\x1f"


class WeighedCommand(TyperCommand):
    """A command whose `WEIGHED` options take `VALUE` or `VALUE WEIGHT`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Join a weight to the value before it: for the parser an option has one value."""
        joined: list[str] = []
        rest = list(args)
        while rest and rest[0] != "--":
            word = rest.pop(0)
            weighed = word.partition("=")[0] in WEIGHED
            if weighed and "=" not in word and rest:
                joined.append(word)
                word = rest.pop(0)
            if weighed and rest and _is_number(rest[0]):
                word += _BETWEEN + rest.pop(0)
            joined.append(word)
        joined += rest
        return super().parse_args(ctx, joined)


def _is_number(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def _weighed(help: str, metavar: str) -> typer.models.OptionInfo:
    return typer.Option(  # type: ignore[no-any-return]
        metavar=f"{metavar} [WEIGHT]", help=help, show_default=False, rich_help_panel="Query"
    )


def search(
    context: typer.Context,
    query: Annotated[
        str | None, typer.Argument(help="What to look for.", metavar="TEXT", show_default=False)
    ] = None,
    mix: Annotated[
        list[str] | None, _weighed("A text as one part of a mixed query.", "TEXT")
    ] = None,
    image: Annotated[list[str] | None, _weighed("An image or video to search by.", "FILE")] = None,
    audio: Annotated[list[str] | None, _weighed("A file to search by its audio.", "FILE")] = None,
    like: Annotated[
        list[str] | None, _weighed("An item of the index to search by.", "ID|PATH[@SECONDS]")
    ] = None,
    minus: Annotated[
        list[str] | None, _weighed("A text that hits should not resemble.", "TEXT")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of hits.")] = 10,
    offset: Annotated[
        int,
        typer.Option("--offset", min=0, help="Best hits to pass over: page 2 of ten is at 10."),
    ] = 0,
    lane: Annotated[
        Lane, typer.Option(help="Way to rank; auto chooses the best for the query.")
    ] = Lane.AUTO,
    filters: FilterOption = None,
    modality: ModalityOption = None,
    group_by: Annotated[
        GroupBy,
        typer.Option(
            "--group-by", help="file: one hit a file, its best segment; none: all segments."
        ),
    ] = GroupBy.FILE,
    min_confidence: Annotated[
        float,
        typer.Option(
            "--min-confidence",
            min=0.0,
            max=1.0,
            help="Leave out hits whose confidence is lower.",
        ),
    ] = 0.0,
    min_similarity: Annotated[
        float | None,
        typer.Option(
            "--min-similarity",
            min=-1.0,
            max=1.0,
            help="Leave out hits whose similarity is lower; known before training, too.",
            show_default=False,
        ),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show for each hit why it was found.")
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Also write an HTML page of thumbnails.", show_default=False
        ),
    ] = None,
    json: JsonOption = False,
    index: IndexOption = None,
    url: UrlOption = None,
    collection: CollectionOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Search by text, image, audio or a mix; a hit in a video or audio file has its time span.

    Options of the query may be repeated; a number after one is its weight, 1 if none is given.
    """
    from cart_qdrant.search.filters import parse_filter

    if html is not None:
        require("media")
    target = resolve(context, index=index, url=url, collection=collection, verbose=verbose)
    asked = _query(query, mix, image, audio, like, minus)
    wanted = parse_filter(filters or (), modality)
    with open_retriever(target) as retriever:
        result = retriever.search(
            asked, k=k, lane=lane.value, filter=wanted, group_by=group_by.value, offset=offset,
            min_confidence=min_confidence, min_similarity=min_similarity, explain=explain,
        )  # fmt: skip
        media = None if html is None else retriever.media_folder(result.hits)
    if json:
        print_json(result.to_json())
    else:
        show_hits(stdout(), result.hits)
        if explain:
            show_whys(stdout(), result.hits)
    for line in result.remarks:
        remark(line)
    if not json:
        remark(describe(result))
    if html is not None and media is not None:
        remark(f"contact sheet: {write_sheet(result, media, html).absolute()}")


def _query(
    text: str | None,
    mix: list[str] | None,
    image: list[str] | None,
    audio: list[str] | None,
    like: list[str] | None,
    minus: list[str] | None,
) -> Query:
    """All that is asked for, in one query."""
    from cart_qdrant.search.query import Part, Query

    if text is not None and not text.strip():
        raise UsageError("The query is empty.", 'Write for example cartq search "a dog surfing".')
    parts = [] if text is None else [Part("text", text)]
    given: list[tuple[Kind, float, list[str] | None]] = [
        ("text", 1, mix), ("image", 1, image), ("audio", 1, audio), ("like", 1, like),
        ("text", -1, minus),
    ]  # fmt: skip
    for kind, sign, values in given:
        for value in values or ():
            name, _, given_weight = value.partition(_BETWEEN)
            weight = float(given_weight or 1)
            if sign < 0 and weight < 0:
                raise UsageError(
                    f"The weight of --minus {name!r} is {weight:g}, but must be above 0.",
                    f"What is wanted: --mix {name!r}",
                )
            parts.append(Part(kind, name, sign * weight))
    return Query(tuple(parts))


def open_retriever(target: Target) -> Retriever:
    """A retriever on the index of `target`.

    Raises:
        IndexMissingError: There is none.
    """
    from cart_qdrant.search.retriever import Retriever

    return Retriever.open(
        target.index, url=target.url, api_key=target.api_key, collection=target.collection
    )


def write_sheet(result: SearchResult, media: MediaFolder, out: Path) -> Path:
    """Write the contact sheet of a result whose files lie in `media`; returns its path."""
    from cart_qdrant.search.contact_sheet import contact_sheet

    took = result.took_ms.get("total")
    return contact_sheet(result.query, result.hits, media=media, out=out, took_ms=took)


def describe(result: SearchResult) -> str:
    """One line: how many hits, by which lane, in which time."""
    count = len(result.hits)
    steps = ", ".join(f"{k} {v:.1f}" for k, v in result.took_ms.items() if k != "total")
    total = result.took_ms.get("total", 0.0)
    hits = f"{count} hit{'' if count == 1 else 's'}"
    return f"{hits} · lane {result.lane} · {total:.1f} ms ({steps})"


def show_hits(console: Console, hits: Sequence[Hit]) -> None:
    """The hits as a table; columns that would be empty are left out."""
    if not hits:
        console.print("No hits.")
        return
    timed = any(hit.modality is not Modality.IMAGE for hit in hits)
    coded = any(hit.identifier for hit in hits)
    measure = _measure(hits)
    names = ["", "path", *(["time"] if timed else []), *([measure] if measure else []), "lane"]
    names += [*(["identifier"] if coded else []), "caption"]
    table = grid(*names, right=("", measure))
    for hit in hits:
        row: list[str | Text] = [str(hit.rank), Text(plain(hit.path), style="cyan")]
        row += [_time(hit)] if timed else []
        row += [_measured(hit, measure)] if measure else []
        row += [plain(hit.lane)]
        row += [hit.identifier or ""] if coded else []
        table.add_row(*row, Text(plain(hit.caption or "")))
    for name, column in zip(names, table.columns, strict=True):
        # The narrow columns stay whole; path and caption share the rest.
        column.no_wrap = name not in ("path", "caption")
    console.print(table)


def _measure(hits: Sequence[Hit]) -> str:
    """The column that tells how good hits are: the confidence where it is known, else the
    similarity; empty where neither is."""
    for name in ("confidence", "similarity"):
        if any(getattr(hit, name) is not None for hit in hits):
            return name
    return ""


def _measured(hit: Hit, measure: str) -> str:
    """A cell of the column `measure`."""
    if measure == "confidence":
        return "" if hit.confidence is None else f"{100 * hit.confidence:.0f} %"
    return "" if hit.similarity is None else fixed(hit.similarity)


def show_whys(console: Console, hits: Sequence[Hit]) -> None:
    """For each hit, the reasons why it was found."""
    for hit in hits:
        why = hit.why or {}
        console.print()
        console.print(Text.assemble((f"{hit.rank}  ", "bold"), (plain(hit.path), "cyan")))
        rows: dict[str, str] = {}
        found = [f"{name} #{rank}" for name, rank in why["rank_in"].items()]
        rows["found by"] = ", ".join(found)
        if why["media_similarity"] is not None:
            hub = "" if why["hubness"] is None else f", hubness {fixed(why['hubness'])}"
            rows["similarity"] = f"{fixed(why['media_similarity'])} to its content{hub}"
        if why["modality_prior"] is not None:
            kind = hit.modality.value
            share = f"{100 * why['modality_prior']:.0f} %"
            rows["modality"] = f"{kind}; the query asks for it with a probability of {share}"
        if why["matched_caption"] is not None:
            caption = why["matched_caption"]
            rows["caption"] = f"{caption['text']} (similarity {fixed(caption['similarity'], 2)})"
        for level, step in enumerate(why["identifier_path"]):
            share = ""
            if step["log_prob"] is not None:
                chance = 100 * math.exp(step["log_prob"])
                share = f", {chance:.0f} % of the probability of its branch"
            items = counted(step["items"], "item")
            words = f" like “{step['description']}”" if step["description"] else ""
            rows[f"level {level + 1}"] = f"{step['code']}: {items}{words}{share}"
        console.print(Padding(facts(rows), (0, 0, 0, 3)))


def _time(hit: Hit) -> str:
    from cart_qdrant.records import clock

    if hit.modality is Modality.IMAGE:
        return ""
    return f"{clock(hit.start)}-{clock(hit.end)}"


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add_command(app, search, EXAMPLES, cls=WeighedCommand)
