"""Write `docs/reference/cli.md` from the command line's own help.

`python docs/tools/cli_reference.py` writes the file. A test compares the committed file with what
the code gives, so that an option cannot change without its documentation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

TARGET = Path(__file__).resolve().parents[1] / "reference" / "cli.md"

HEAD = """\
# Command line

This page is generated from the program by `python docs/tools/cli_reference.py`; do not edit it.
`cartq COMMAND --help` prints the same in a terminal. The options of the whole program may stand
before the name of a command; commands that work on an index take `--index`, `--url`, `--collection`
and `--verbose` after their name as well.
"""
MARKUP = re.compile(r"\[/?(?:bold|cyan|dim|italic)\]")


def commands() -> Iterator[tuple[str, Any]]:
    """The program and all its commands, each with the words that call it."""
    from cart_qdrant_cli.main import app

    def walk(words: str, command: Any) -> Iterator[tuple[str, Any]]:
        yield words, command
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(f"{words} {name}", inner)

    return walk("cartq", typer.main.get_command(app))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _code(text: str) -> str:
    return "`" + " ".join(text.split()).replace("|", "\\|") + "`"


def _options(command: Any, context: Any) -> list[tuple[str, str]]:
    """Arguments and options of a command with their meaning, as its help shows them."""
    rows = []
    for parameter in command.get_params(context):
        record = None if parameter.hidden else parameter.get_help_record(context)
        if record is not None:
            name = record[0]
            if parameter.param_type_name == "argument":
                name = name.partition(" <")[0]
            rows.append((name, MARKUP.sub("", record[1]).replace("\\[", "[")))
    return rows


def _examples(epilog: str) -> list[str]:
    lines = [MARKUP.sub("", line).strip() for line in epilog.replace("\\[", "[").splitlines()]
    return [line for line in lines if line.startswith("cartq")]


def _describe(words: str, command: Any, known: set[tuple[str, str]]) -> Iterator[str]:
    """The section of a command; options that `known` holds are not repeated."""
    context = command.make_context(words, [], resilient_parsing=True)
    yield f"## `{words}`"
    yield MARKUP.sub("", command.help or "").strip()
    usage = " ".join(command.collect_usage_pieces(context)).replace("{", "").replace("}", "")
    yield f"```text\n{words} {usage.replace('......', '...')}\n```"
    rows = [row for row in _options(command, context) if row not in known]
    rows = [row for row in rows if not known or "--help" not in row[0]]
    if rows:
        table = ["| argument or option | meaning |", "|---|---|"]
        table += [f"| {_code(name)} | {_cell(meaning)} |" for name, meaning in rows]
        yield "\n".join(table)
    examples = _examples(command.epilog or "")
    if examples:
        yield "```bash\n" + "\n".join(examples) + "\n```"
    inner = getattr(command, "commands", {})
    if inner:
        links = (f"[`{name}`](#{words.replace(' ', '-')}-{name})" for name in inner)
        yield "Commands: " + " · ".join(links) + "."
    known |= set(rows) if words == "cartq" else set()


def render() -> str:
    """The whole page."""
    parts = [HEAD.strip()]
    known: set[tuple[str, str]] = set()
    for words, command in commands():
        parts += _describe(words, command, known)
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(render())
