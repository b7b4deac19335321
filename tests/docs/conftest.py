"""What the tests of the documentation share."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tool(name: str) -> ModuleType:
    """A script of docs/tools as a module."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def pages() -> list[Path]:
    """README, CONTRIBUTING and the pages of the site, but for the logs of what was."""
    logs = {"experiments", "changelog"}
    found = [path for path in (ROOT / "docs").rglob("*.md") if path.stem not in logs]
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(found)]
