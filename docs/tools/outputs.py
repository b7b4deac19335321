"""Write the printed outputs in README.md and docs/ again, from the index of the demo.

`cartq demo` first; then `python docs/tools/outputs.py` runs, in the folder of the demo,

- each command of a block of the kind `console` (its lines that begin with `$ `), and
- each block of the kind `python` that a comment `<!-- output -->` and a block of text follow,

puts what they print in the place of what stood there, and makes `docs/images/search.svg`, a picture
of a terminal, from a real search; where a Chromium is installed, also `docs/images/sheet.png`, a
picture of the page that `--html` writes. What takes time prints other milliseconds each time.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "docs" / "images" / "search.svg"
PICTURED = ('cartq search "a cat with green eyes" -k 3', 'cartq search "waiting on a bicycle" -k 3')
"""What the picture of a terminal shows."""
SHEET = ROOT / "docs" / "images" / "sheet.png"
SHEETED = 'cartq search "stars in the night sky" -k 4'
SHEET_SIZE = "1100,430"
COLUMNS = 118
CONSOLE = re.compile(r"(?P<open>```console\n)(?P<body>.*?)(?P<close>```)", re.S)
PYTHON = re.compile(
    r"(?P<open>```python\n(?P<code>[^`]*?)```\n+<!-- output -->\n+```text\n)"
    r"(?P<body>.*?)(?P<close>```)",
    re.S,
)
SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" class="rich-terminal" viewBox="0 0 {width} {height}">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" /></clipPath>
{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g></g></svg>
"""
"""As rich has it, without the fonts that it would fetch."""


def documents() -> list[Path]:
    """The README and all pages, but for the log, whose outputs are those of their time."""
    pages = [path for path in sorted((ROOT / "docs").rglob("*.md")) if path.stem != "experiments"]
    return [ROOT / "README.md", *pages]


def _environment(*, colour: bool) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CARTQ_")}
    return {**kept, "COLUMNS": str(COLUMNS), **({"FORCE_COLOR": "1"} if colour else {})}


def run(words: list[str], folder: Path, *, colour: bool = False) -> str:
    """What a Python command prints on stdout in a folder.

    Raises:
        SystemExit: It failed; its errors are shown.
    """
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=_environment(colour=colour), text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{shlex.join(words)} failed:\n{done.stderr}")
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.splitlines())


def cartq(command: str) -> list[str]:
    """The words that run a line such as `cartq search rain` in this interpreter."""
    _, *words = shlex.split(command)
    return ["-m", "cart_qdrant_cli.main", *words]


def refresh(text: str, folder: Path) -> str:
    """A document with its outputs written again."""

    def console(found: re.Match[str]) -> str:
        commands = re.findall(r"^\$ (.+)$", found["body"], re.M)
        parts = [f"$ {command}\n{run(cartq(command), folder)}" for command in commands]
        return found["open"] + "\n".join(parts) + found["close"]

    def python(found: re.Match[str]) -> str:
        with tempfile.TemporaryDirectory() as work:  # it may write
            shutil.copytree(folder / ".cartq", Path(work) / ".cartq")
            (Path(work) / "media").symlink_to(folder / "media")
            return found["open"] + run(["-c", found["code"]], Path(work)) + found["close"]

    return PYTHON.sub(python, CONSOLE.sub(console, text))


def picture(folder: Path) -> str:
    """A picture of a terminal with searches in it, as SVG."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    for command in PICTURED:
        console.print(Text.assemble(("$ ", "dim"), (command, "bold")))
        console.print(Text.from_ansi(run(cartq(command), folder, colour=True)))
    return console.export_svg(title="cartq search", code_format=SVG, unique_id="search")


def sheet(folder: Path, browser: str) -> bytes:
    """A picture of the page that `cartq search --html` writes, as PNG."""
    with tempfile.TemporaryDirectory() as work:
        page, shot = Path(work) / "hits.html", Path(work) / "sheet.png"
        run([*cartq(SHEETED), "--html", str(page)], folder)
        words = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        subprocess.run(
            [browser, *words, f"--window-size={SHEET_SIZE}", f"--screenshot={shot}", str(page)],
            check=True, capture_output=True,
        )  # fmt: skip
        return shot.read_bytes()


def main() -> None:
    """Refresh the documents and the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=ROOT / ".demo", help="of `cartq demo`")
    folder = parser.parse_args().folder.resolve()
    for path in documents():
        before = path.read_text()
        after = refresh(before, folder)
        if after != before:
            path.write_text(after)
    PICTURE.write_text(picture(folder))
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is not None:
        SHEET.write_bytes(sheet(folder, browser))


if __name__ == "__main__":
    main()
