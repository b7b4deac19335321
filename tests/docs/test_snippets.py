"""Each snippet of the documentation does what it says: Python runs, commands and options exist.

A comment `<!-- not run: REASON -->` right above a Python block leaves it out.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cart_qdrant_cli.main import app
from cart_qdrant_cli.options import State
from tests.conftest import copy_of
from tests.docs.conftest import ROOT

BLOCK = re.compile(
    r"^(?:<!-- (?P<comment>[^\n]*) -->\n+)?```(?P<kind>\w*)\n(?P<body>.*?)^```$"
    r"(?P<output>\n+<!-- output -->\n+```text\n(?P<printed>.*?)^```$)?",
    re.S | re.M,
)
LOGS = {"experiments.md", "CHANGELOG.md", "changelog.md"}
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PACKAGES = {
    "cart_qdrant_langchain": "langchain_core", "cart_qdrant_llamaindex": "llama_index",
    "cart_qdrant_haystack": "haystack", "cart_qdrant_dspy": "dspy", "mcp": "mcp",
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, what it is, and what it is said to print."""

    file: Path
    line: int
    kind: str
    body: str
    comment: str
    printed: str | None

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"


def blocks(*kinds: str) -> Iterator[Block]:
    """All blocks of some kinds in the documentation."""
    for file in FILES:
        if file.name in LOGS:
            continue
        text = file.read_text()
        for found in BLOCK.finditer(text):
            if found["kind"] in kinds:
                line = text.count("\n", 0, found.start("kind")) + 1
                yield Block(
                    file, line, found["kind"], found["body"], found["comment"] or "",
                    found["printed"],
                )  # fmt: skip


def commands() -> Iterator[tuple[str, str]]:
    """Each line that calls `cartq`, with where it stands."""
    for block in blocks("bash", "console", "text", ""):
        lines = block.body.replace("\\\n", " ").splitlines()
        for line in lines:
            line = re.sub(r"^\$ ", "", line.strip())
            if line.startswith("cartq ") and "[OPTIONS]" not in line:
                yield str(block), line


def _touch(word: str) -> None:
    """A file or folder of that name, so that an argument that must exist does."""
    path = Path(word)
    if "://" in word or path.is_absolute() or ".." in path.parts or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix:
        path.touch()
    else:
        path.mkdir()


PYTHON = [block for block in blocks("python") if not block.comment.startswith("not run:")]
COMMANDS = sorted(set(commands()))


@pytest.fixture(scope="module")
def index(trained: Path, small_media: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with media and a trained `.cartq` beside them, as the documentation assumes it."""
    folder = tmp_path_factory.mktemp("documented")
    copy_of(trained, folder / ".cartq")
    shutil.copytree(small_media, folder / "media")
    return folder


def test_snippets_are_found() -> None:
    assert len(PYTHON) > 8 and len(COMMANDS) > 40


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_runs(block: Block, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "--8<--" in block.body:
        included = re.findall(r'--8<-- "(.*?)"', block.body)
        assert included and all((ROOT / name).exists() for name in included)
        return  # the tests of the examples run these
    for name, package in PACKAGES.items():
        if name in block.body and importlib.util.find_spec(package) is None:
            pytest.skip(f"not installed: {package}")
    monkeypatch.chdir(index)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block.body, str(block), "exec"), {"__name__": "__main__"})
    if block.printed is not None:
        assert block.printed.strip(), f"{block}: python docs/tools/outputs.py writes its output"
        mine, theirs = printed.getvalue().splitlines(), block.printed.splitlines()
        assert mine and theirs[0].count("|") == mine[0].count("|")


def parse(line: str) -> tuple[Any, Any]:
    """The command that a line calls, and its parsed context; nothing is run.

    Raises:
        Exception: Its options or values do not exist.
    """
    command: Any = typer.main.get_command(app)
    words = [word for word in shlex.split(line, comments=True)[1:] if word not in ("|", ">")]
    context = command.make_context("cartq", words, obj=State())
    while getattr(context, "_protected_args", None):
        words = [*context._protected_args, *context.args]
        name, command, rest = context.command.resolve_command(context, words)
        context = command.make_context(name, rest, parent=context)
    return command, context


@pytest.mark.parametrize(("where", "line"), COMMANDS, ids=lambda value: str(value)[:60])
def test_commands_and_options_exist(
    where: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cart_qdrant.index.remote.local_folder", Path)  # no network
    for word in shlex.split(line, comments=True)[2:]:
        if not word.startswith("-") and re.fullmatch(r"[\w./-]+", word):
            _touch(word)
    command, context = parse(line)
    assert command.name != "cartq", f"{where}: {line} names no command"
    assert context.command is command


@pytest.mark.parametrize("block", list(blocks("console")), ids=str)
def test_console_commands_run(block: Block, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(index)
    monkeypatch.setenv("COLUMNS", "160")
    parts = re.split(r"^\$ (.+)\n", block.body, flags=re.M)[1:]
    for line, printed in zip(parts[::2], parts[1::2], strict=True):
        words = [word for word in shlex.split(line)[1:] if not word.startswith("subject=")]
        words = [word for word in words if word != "--filter"]  # a field of the demo alone
        done = CliRunner().invoke(app, words, obj=State())
        assert done.exit_code == 0, done.output
        assert printed.strip(), f"{block}: python docs/tools/outputs.py writes its output"
        if words[0] == "search":
            headings = set(printed.splitlines()[0].split())
            assert headings <= {*done.stdout.splitlines()[0].split(), "confidence", "time"}
