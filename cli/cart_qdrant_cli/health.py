"""How the state of the identifiers is shown: what is known by `ingest`, all of it by `doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from cart_qdrant.records import fixed
from cart_qdrant_cli.output import counted, grid, plain, verdict

if TYPE_CHECKING:
    from cart_qdrant.index.health import Health, KnownHealth


def health_json(health: Health) -> dict[str, Any]:
    """The object of `doctor --json`."""
    return {
        "passed": health.passed,
        "unique_ratio": round(health.unique_ratio, 4),
        "items": health.items,
        "clashes": health.clashes,
        "duplicates": health.duplicates,
        "levels": [
            {
                "level": level.level,
                "codes": level.codes,
                "used": level.used,
                "dead": level.dead,
                "entropy": round(level.entropy, 4),
            }
            for level in health.levels
        ],
        "error": {space: round(value, 4) for space, value in health.error.items()},
        "fitted_error": {space: round(value, 4) for space, value in health.fitted_error.items()},
        "fitted_on": health.fitted_on,
        "problems": health.problems,
        "remarks": health.remarks,
    }


def known_json(health: KnownHealth) -> dict[str, Any]:
    """The object `identifiers` of `ingest --json`."""
    return {
        "unique_ratio": round(health.unique_ratio, 4),
        "levels": health.levels,
        "count": health.items,
        "clashes": health.clashes,
        "sizes": health.sizes,
        "fitted_on": health.fitted_on,
        "problems": health.problems,
        "remarks": health.remarks,
    }


def known_line(health: KnownHealth) -> str:
    """One line with the main numbers."""
    return (
        f"identifiers  unique-identifier ratio {fixed(health.unique_ratio)} "
        f"· {health.levels} levels · {counted(health.clashes, 'clash')} "
        f"· {counted(health.items, 'item')}, fitted on "
        f"{health.fitted_on_items:,}"
    )


def show_notes(console: Console, health: Health | KnownHealth) -> None:
    """The problems with their remedies, then the remarks."""
    for problem in health.problems:
        console.print(Text.assemble(("✗ ", "bold red"), plain(problem)))
    for line in health.remarks:
        console.print(Text("· " + plain(line), style="dim"))


def show_health(console: Console, health: Health) -> None:
    """Tables of levels and spaces, and the verdict."""
    numbers = ("level", "codes", "used", "dead", "entropy")
    table = grid(*numbers, title="Levels of the identifiers", right=numbers)
    for level in health.levels:
        table.add_row(
            "coarse" if level.level == 0 else str(level.level),
            str(level.codes),
            str(level.used),
            str(level.dead),
            fixed(level.entropy),
        )
    console.print(table)
    console.print()
    columns = ("space", "fitted on", "error at fitting", "error now")
    spaces = grid(*columns, title="Reconstruction error, relative", right=columns[1:])
    for space, fitted_on in health.fitted_on.items():
        now = health.error.get(space)
        spaces.add_row(
            plain(space),
            str(fitted_on),
            fixed(health.fitted_error[space]),
            "-" if now is None else fixed(now),
        )
    console.print(spaces)
    console.print()
    console.print(
        Text.assemble(
            verdict(health.passed),
            f"  unique-identifier ratio {fixed(health.unique_ratio)}: "
            f"{counted(health.items, 'item')}, {counted(health.clashes, 'clash')}, "
            f"{counted(health.duplicates, 'duplicate')}",
        )
    )
    show_notes(console, health)
