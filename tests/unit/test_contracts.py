"""Contracts of the package: what importing does, and which way imports point."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cart_qdrant.embedders.text.folder import text_encoder_folder
from cart_qdrant.embedders.text.onnx_encoder import QuickTextEncoder

ROOT = Path(__file__).parents[2] / "cart_qdrant"


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, cart_qdrant; "
        "bad = {'torch', 'av', 'qdrant_client', 'sklearn', 'PIL'} & set(sys.modules); "
        "sys.exit(repr(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("index", ["small_index", "trained"])
def test_a_search_is_light(index: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    root = shutil.copytree(request.getfixturevalue(index), tmp_path / ".cartq")
    QuickTextEncoder(text_encoder_folder())  # its graph is kept from then on
    code = (
        "import sys\nfrom cart_qdrant import Retriever\n"
        f"with Retriever.open({str(root)!r}) as retriever:\n"
        "    for lane in ('auto', 'dense', 'caption', 'bm25', 'rrf'):\n"
        "        assert retriever.search('a beach', lane=lane).hits\n"
        "bad = {'torch', 'av', 'qdrant_client', 'sklearn', 'PIL', 'onnx'} & set(sys.modules)\n"
        "sys.exit(repr(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_imports_point_one_way() -> None:
    """search -> learn -> index -> leaves."""
    order = {"index": 0, "learn": 1, "search": 2}
    for path in ROOT.rglob("*.py"):
        here = path.relative_to(ROOT).parts[0]
        rank = order.get(here, -1)
        if path.name == "__init__.py" and rank == -1:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cart_qdrant."):
                part = (node.module or "").split(".")[1]
                assert order.get(part, -1) <= rank, f"{path} imports {node.module}"


def test_nothing_is_pickled() -> None:
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in ast.unparse(node), path
            if isinstance(node, ast.Import):
                assert not {"pickle", "dill", "joblib"} & {a.name for a in node.names}, path
