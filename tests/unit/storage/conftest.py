"""Fixtures of the stores: an embedded one, and a server made of plain functions."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cart_qdrant.storage.edge import EdgeStore
from tests.unit.storage.fake_server import FakeServer
from tests.unit.storage.points import SPEC


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory where there is such a folder: the engine waits for the disk at each flush."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture
def store(tmp_path: Path) -> EdgeStore:
    store = EdgeStore(tmp_path / "store")
    store.create(SPEC)
    return store


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()
