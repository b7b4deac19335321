"""Every program in docs/examples, run as a user runs it, and the first steps in LangChain."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))
NEEDS = {
    "rag_langchain": "langchain_core", "rag_llamaindex": "llama_index.core",
    "rag_haystack": "haystack", "rag_dspy": "dspy", "mcp_client": "mcp",
}  # fmt: skip


def run(folder: Path, *command: str) -> str:
    """Output of a command in a folder."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CARTQ_")}
    environment["HAYSTACK_TELEMETRY_ENABLED"] = "False"
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_example_is_known() -> None:
    assert {path.stem for path in EXAMPLES} == set(NEEDS)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_answer_names_the_clip_and_its_seconds(
    example: Path, small_index: Path, tmp_path: Path
) -> None:
    package = NEEDS[example.stem]
    pytest.importorskip(package, reason=f"not installed: {package}")
    out = run(tmp_path, str(example), str(small_index), "a beach")
    assert re.search(r"Look at media/clip\.mp4 \d+\.\d+-\d+\.\d+ s", out), out


@pytest.mark.slow
def test_from_nothing_to_a_hit_in_langchain(small_media: Path, tmp_path: Path) -> None:
    """The lines of the page after `pip install`: one command, then its program, under ten lines."""
    pytest.importorskip("langchain_core", reason='pip install "cart-qdrant[langchain]"')
    shutil.copytree(small_media, tmp_path / "media")
    text = (ROOT / "docs" / "how-to" / "frameworks.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (program,) = [block for block in blocks if "cart_qdrant_langchain" in block]
    lines = [line for line in program.splitlines() if line.strip()]
    assert "cartq ingest ./media" in text and len(lines) + 1 < 10
    run(tmp_path, "-m", "cart_qdrant_cli.main", "ingest", "./media")
    out = run(tmp_path, "-c", program)
    first, *_ = out.splitlines()
    assert re.fullmatch(r"a beach media/clip\.mp4 \d+\.\d+", first), out
