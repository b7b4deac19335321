"""The models of an index: loaded once, and taken over by the next version where they are valid."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cart_qdrant.index import models
from cart_qdrant.index.index import Index
from cart_qdrant.index.manifest import Artifact
from tests.conftest import PatchEmbedder

Open = Callable[..., Index]


def test_threads_load_a_model_once(
    tmp_path: Path, open_index: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    index: Index = open_index(tmp_path / ".cartq")
    loaded, together = [], threading.Barrier(8)

    def load(*_: Any, **__: Any) -> PatchEmbedder:
        time.sleep(0.02)
        loaded.append(PatchEmbedder())
        return loaded[-1]

    monkeypatch.setattr(models, "open_embedder", load)
    fresh = Index(index.folder, index.manifest, index.store)

    def ask(_: int) -> Any:
        together.wait()
        return fresh.embedder()

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(8)))
    assert len(loaded) == 1 and set(map(id, found)) == {id(loaded[0])}


def test_a_later_version_takes_over_what_is_valid(tmp_path: Path, open_index: Open) -> None:
    index: Index = open_index(tmp_path / ".cartq")
    embedder = index.embedder()
    assert index.with_manifest(replace(index.manifest, revision="x"))._embedder is embedder
    info = replace(index.manifest.embedder, statistics=Artifact("embedder.safetensors", "0"))
    assert index.with_manifest(replace(index.manifest, embedder=info))._embedder is None
