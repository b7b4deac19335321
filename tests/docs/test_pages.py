"""The pages say what the code has: commands, errors, names, places."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cart_qdrant.errors import CartError
from tests.docs.conftest import ROOT, tool

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def leaves(kind: type[CartError]) -> set[str]:
    """Names of the errors that nothing derives from, and of those that are raised themselves."""
    below = kind.__subclasses__()
    own = set() if kind is CartError else {kind.__name__}
    return own.union(*(leaves(one) for one in below)) if below else {kind.__name__}


def test_the_command_reference_is_what_the_code_gives() -> None:
    reference = tool("cli_reference")
    assert reference.TARGET.read_text() == reference.render(), (
        "the command line changed: python docs/tools/cli_reference.py"
    )


def test_every_error_has_its_section() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    sections = re.findall(r"^## (\w+Error)$", text, re.M)
    assert len(sections) == len(set(sections))
    assert set(sections) == leaves(CartError)


def test_the_messages_that_it_quotes_are_in_the_code() -> None:
    said: set[str] = set()
    for root in ("cart_qdrant", "cli", "plugins"):
        for path in (ROOT / root).rglob("*.py"):
            tree = ast.walk(ast.parse(path.read_text()))
            said |= {
                n.value for n in tree if isinstance(n, ast.Constant) and isinstance(n.value, str)
            }
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    quoted = [" ".join(message.split()) for message in re.findall(r'\*"(.+?)"\*', text, re.S)]
    assert len(quoted) > 25
    for message in quoted:
        for part in message.split("..."):
            words = part.strip(" .,;:()")
            if len(words.split()) > 1:
                assert any(words in one for one in said), f"no message says {words!r}"


def test_the_names_of_the_api_reference_exist() -> None:
    text = (ROOT / "docs" / "reference" / "api.md").read_text()
    names = re.findall(r"^::: ([\w.]+)$", text, re.M)
    import cart_qdrant

    public = {f"cart_qdrant.{name}" for name in cart_qdrant.__all__ if name != "__version__"}
    assert public <= set(names)
    for name in names:
        module, _, attribute = name.rpartition(".")
        package = module.split(".")[0]
        host = package.removeprefix("cart_qdrant_")
        if host != package and not (ROOT / "plugins" / host / package).is_dir():
            pytest.fail(f"{name} is of no plugin")
        if host == package:
            assert hasattr(importlib.import_module(module), attribute), name


def defined(path: Path) -> set[str]:
    """Functions, classes and methods (`Class.method`) of a module."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            inner = [n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
            names |= {f"{node.name}.{n.name}" for n in inner}
    return names


def test_ten_places_are_where_contributing_says() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| ([^|`]+) \| `([\w/.]+\.py)` \| `([\w.]+)` \|$", text, re.M)
    assert len(rows) == 10
    for what, file, name in rows:
        path = ROOT / file
        assert path.exists(), f"{what}: {file}"
        assert name in defined(path), f"{what}: {file} has no {name}"


def test_contributing_names_the_markers_and_targets_that_there_are() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    pytest_options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
    markers = {line.partition(":")[0] for line in pytest_options["ini_options"]["markers"]}
    table = text.partition("| marker |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.M)) == markers
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        assert set(re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.M)) <= targets


def test_every_relative_link_leads_somewhere(pages: list[Path]) -> None:
    for page in [*pages, ROOT / "CHANGELOG.md"]:
        for target in LINK.findall(page.read_text()):
            path = target.partition("#")[0]
            if path and "://" not in path:
                assert (page.parent / path).exists(), f"{page.name}: {target}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 120


def test_the_glossary_has_each_word_once() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text()
    terms = [t for line in re.findall(r"^- \*\*(.+?)\*\*:", text, re.M) for t in line.split(", ")]
    assert len(terms) == len(set(terms)) > 40
    must = (
        "lane identifier segment moment hubness beam gate calibration confidence similarity "
        "ownership metadata deleted refit repair activate"
    )
    assert set(must.split()) <= set(terms)
    assert {"prefix tree", "query bank", "modality prior", "disambiguation token"} <= set(terms)


def test_figures_have_what_the_code_has(tmp_path: Path) -> None:
    plan = tool("rooms").measure(ROOT / "cart_qdrant")
    assert not [edge for edge in plan.imports if plan.points_up(edge)]
    svg = tool("rooms").draw(plan, "now")
    committed = (ROOT / "docs" / "images" / "rooms.svg").read_text()
    rooms = set(plan.rooms)
    assert all(f">{room}</text>" in svg and f">{room}</text>" in committed for room in rooms)


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings", reason='not installed: pip install "cart-qdrant[docs]"')
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    home = (tmp_path / "index.html").read_text()
    assert "googleapis" not in home and "gstatic" not in home


def test_the_extras_that_are_named_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"])
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        if page.name == "experiments.md":
            continue
        for found in re.findall(r"cart-qdrant\[([\w,]+)\]|`\[([a-z]+)\]`", page.read_text()):
            named = set("".join(found).split(","))
            assert named <= extras, f"{page.name} names {named - extras}"
    listed = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "quickstart.md").read_text(), re.M)
    assert set(listed) | {"dev", "docs"} == extras | {"dev", "docs"}
