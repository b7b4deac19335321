"""Contracts of the package: what importing does, and which way imports point."""

from __future__ import annotations

import ast
import graphlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cart_qdrant
from cart_qdrant.embedders.text.folder import text_encoder_folder
from cart_qdrant.embedders.text.onnx_encoder import OnnxTextEncoder
from tests.conftest import copy_of

ROOT = Path(__file__).parents[2] / "cart_qdrant"


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, cart_qdrant; "
        "bad = {'torch', 'av', 'qdrant_client', 'sklearn', 'PIL'} & set(sys.modules); "
        "sys.exit(repr(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("index", ["small_index", "trained"])
def test_a_search_is_light(index: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    root = copy_of(request.getfixturevalue(index), tmp_path / ".cartq")
    OnnxTextEncoder(text_encoder_folder())  # its graph is kept from then on
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


PUBLIC = {
    "Caption", "CartError", "Hit", "Identifier", "Modality", "Part", "Query", "Retriever",
    "Segment", "__version__",
}  # fmt: skip


def test_the_public_names_are_exactly_these_and_can_be_imported() -> None:
    assert len(cart_qdrant.__all__) == len(PUBLIC) and set(cart_qdrant.__all__) == PUBLIC
    assert set(dir(cart_qdrant)) == PUBLIC
    namespace: dict[str, object] = {}
    exec("from cart_qdrant import *", namespace)
    assert namespace.keys() - {"__builtins__"} == PUBLIC
    for name in PUBLIC - {"__version__"}:
        assert getattr(namespace[name], "__name__", None) == name
    for name in vars(cart_qdrant):  # beside the public names there are modules and private names
        found = getattr(cart_qdrant, name)
        hidden = name.startswith("_") or inspect.ismodule(found)
        assert hidden or name in PUBLIC | {"TYPE_CHECKING", "Any", "annotations"}, name
    with pytest.raises(AttributeError, match="no attribute 'Index'"):
        cart_qdrant.Index  # noqa: B018


def test_the_docstring_of_the_package_names_every_room_in_the_order_of_imports() -> None:
    named = re.findall(r"^- `(\w+)/`", cart_qdrant.__doc__ or "", re.M)
    rooms = allowed_imports()
    assert sorted(named) == sorted(rooms)
    for n, room in enumerate(named):
        assert rooms[room] <= set(named[n + 1 :]), room


LEAVES = {"compute", "config", "errors", "extras", "files", "locks", "progress", "records"}


def allowed_imports() -> dict[str, set[str]]:
    """What each room may import, by the table in CONTRIBUTING.md."""
    rows = re.findall(
        r"^\| `(\w+)` \|[^|]*\|([^|]*)\|$", (ROOT.parent / "CONTRIBUTING.md").read_text(), re.M
    )
    return {room: set(re.findall(r"`(\w+)`", allowed)) for room, allowed in rows}


def test_a_room_imports_only_what_the_table_allows() -> None:
    rooms = allowed_imports()
    folders = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert rooms.keys() == folders
    files = {path.stem for path in ROOT.glob("*.py")} - {"__init__"}
    assert files == LEAVES
    for path in ROOT.rglob("*.py"):
        here = path.relative_to(ROOT).parts[0]
        if here == "__init__.py":
            continue
        may = (rooms[here] | {here} if here in rooms else set()) | LEAVES
        for node in ast.walk(ast.parse(path.read_text())):  # imports inside functions, too
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cart_qdrant"):
                named = (node.module or "").split(".")[1:2] or [alias.name for alias in node.names]
                assert set(named) <= may, f"{path}:{node.lineno} imports {node.module}"


def test_the_table_has_no_circle_and_no_room_that_is_not_used() -> None:
    rooms = allowed_imports()
    used: dict[str, set[str]] = {room: set() for room in rooms}
    for path in ROOT.rglob("*/*.py"):
        here = path.relative_to(ROOT).parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cart_qdrant."):
                used[here].add((node.module or "").split(".")[1])
    order = list(graphlib.TopologicalSorter(rooms).static_order())
    assert set(order) == set(rooms)
    for room, allowed in rooms.items():
        assert allowed <= used[room], f"{room} does not import {allowed - used[room]}"


def test_nothing_is_pickled() -> None:
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in ast.unparse(node), path
            if isinstance(node, ast.Import):
                assert not {"pickle", "dill", "joblib"} & {a.name for a in node.names}, path
