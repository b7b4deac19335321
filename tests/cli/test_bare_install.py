"""The wheel without any extra: it searches a trained index, and names the extra of each task."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from cart_qdrant.extras import install

ROOT = Path(__file__).resolve().parents[2]
MEGABYTES = 300
"""What the packages take on disk at most."""
ABSENT = ("torch", "av", "PIL", "sklearn", "scipy", "onnx", "vector_quantize_pytorch")

pytestmark = pytest.mark.slow


def run(*words: object) -> subprocess.CompletedProcess[str]:
    """Run a command without what this environment adds to the path of modules."""
    environment = {
        k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("CARTQ_")
    }
    return subprocess.run(
        [*map(str, words)], capture_output=True, text=True, env=environment, check=False
    )


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment that holds the wheel and what it requires alone."""
    folder = tmp_path_factory.mktemp("bare")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")
    sources = folder / "sources"
    # A build leaves folders beside its sources: a copy keeps them out of the working tree.
    listed = run("git", "-C", ROOT, "ls-files", "-z").stdout.split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/", "benchmarks/")):
            (sources / name).parent.mkdir(parents=True, exist_ok=True)
            (sources / name).write_bytes((ROOT / name).read_bytes())
    built = run(*pip, "wheel", "--no-deps", "-w", folder, sources)
    assert built.returncode == 0, built.stderr
    venv.create(folder / "venv", with_pip=False)
    (wheel,) = folder.glob("*.whl")
    inside = ("--python", folder / "venv" / "bin" / "python")
    done = run(*pip, *inside, "install", "-c", ROOT / "constraints.txt", wheel)
    if "No matching distribution" in done.stderr or "Temporary failure" in done.stderr:
        pytest.skip("no package index answers")
    assert done.returncode == 0, done.stderr
    checked = run(*pip, *inside, "check")
    assert checked.returncode == 0, checked.stdout
    return folder / "venv" / "bin"


def test_the_core_is_small_and_has_no_heavy_package(bare: Path) -> None:
    packages = next((bare.parent / "lib").glob("python*/site-packages"))
    size = sum(path.stat().st_size for path in packages.rglob("*") if path.is_file())
    assert size < MEGABYTES * 1e6
    code = f"import importlib.util as u; print([m for m in {ABSENT!r} if u.find_spec(m)])"
    assert run(bare / "python", "-c", code).stdout.strip() == "[]"


def test_a_trained_index_is_searched(bare: Path, trained: Path) -> None:
    done = run(bare / "cartq", "search", "a dog", "--index", trained, "--json")
    assert done.returncode == 0, done.stderr
    hits = json.loads(done.stdout)["hits"]
    assert hits
    code = (
        "import sys\nfrom cart_qdrant import Retriever\n"
        "with Retriever.open(sys.argv[1]) as retriever:\n"
        "    print(*(hit.path for hit in retriever.search('a dog').hits), sep='\\n')"
    )
    found = run(bare / "python", "-c", code, trained)
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines() == [hit["path"] for hit in hits]
    for command in ("info", "doctor"):
        shown = run(bare / "cartq", command, "--index", trained)
        assert "Traceback" not in shown.stderr and shown.returncode in (0, 1)


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (["ingest", "media"], "lite"),
        (["train"], "train"),
        (["search", "a dog", "--html", "hits.html"], "media"),
        (["eval", "queries.jsonl"], "eval"),
        (["eval", "--ablate"], "train"),
        (["demo"], "demo"),
        (["mcp"], "mcp"),
    ],
)
def test_each_task_names_its_extra(
    bare: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    extra: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "media").mkdir()
    query = {"query": "a dog", "relevant": ["picture-0.png"]}
    (tmp_path / "queries.jsonl").write_text(json.dumps(query) + "\n")
    at = [] if words[0] in ("ingest", "demo") else ["--index", trained]
    done = run(bare / "cartq", *words, *at)
    assert done.returncode == 2, done.stderr
    assert install(extra) in done.stderr
    assert "Traceback" not in done.stderr
