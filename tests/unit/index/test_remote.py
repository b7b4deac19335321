"""Index folders behind URLs, on the in-memory file system of fsspec."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from qdrant_client import QdrantClient

from cart_qdrant.errors import IndexMissingError, MediaError, MismatchError, UsageError
from cart_qdrant.index.folder import IndexFolder
from cart_qdrant.index.index import Index
from cart_qdrant.index.manifest import sealed
from cart_qdrant.index.migrate import migrate
from cart_qdrant.index.remote import KEPT, local_folder
from cart_qdrant.search.retriever import Retriever
from cart_qdrant.storage.store_info import StoreInfo
from tests.conftest import copy_of

URL = "memory://shared/.cartq"


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """An empty file system; copies go into a folder of the test."""
    monkeypatch.setenv("CARTQ_CACHE", str(tmp_path / "cache"))
    system = fsspec.filesystem("memory")
    yield system
    if system.exists("/shared"):
        system.rm("/shared", recursive=True)


@pytest.fixture
def published(trained: Path, tmp_path: Path, memory: Any) -> Iterator[QdrantClient]:
    """A trained index whose points are with a client, and its folder at `URL`."""
    root = copy_of(trained, tmp_path / "original" / ".cartq")
    client = QdrantClient(":memory:")
    with Index.open(root) as index:
        migrate(index, StoreInfo(kind="client", collection="media"), client=client)
    shutil.rmtree(root / "store")
    memory.put(str(root), "/shared/.cartq", recursive=True)
    yield client
    client.close()


def test_a_retriever_opens_a_url(published: QdrantClient) -> None:
    with Retriever.open(URL, client=published) as retriever:
        assert retriever.search("a dog on a surfboard").hits[0].path == "media/picture-0.png"


def test_files_of_hits_are_brought_from_beside_the_original(
    published: QdrantClient, memory: Any, small_media: Path
) -> None:
    memory.put(str(small_media / "picture-0.png"), "/shared/media/picture-0.png")
    with Retriever.open(URL, client=published) as retriever:
        hits = retriever.search("a dog on a surfboard").hits
        assert {hit.path for hit in hits} > {"media/picture-0.png"}
        base = retriever.media_folder(hits).base
        wanted = (small_media / "picture-0.png").read_bytes()
        assert (base / "media/picture-0.png").read_bytes() == wanted
        # What is not beside it is left out, and what would lie outside the cache is not asked for.
        assert [path.name for path in base.rglob("*.*") if path.is_file()] == ["picture-0.png"]
        memory.put(str(small_media / "picture-0.png"), "/secret.png")
        outside = [replace(hits[0], path="../../secret.png")]
        with pytest.raises(MediaError, match="leads out"):
            retriever.media_folder(outside).file(outside[0].path)
        assert not (base / "../../secret.png").exists()


def test_a_copy_is_made_once_a_version(published: QdrantClient, memory: Any) -> None:
    folder = local_folder(URL)
    times = {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}
    assert times and local_folder(URL + "/") == folder
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")} == times
    assert {path.parent.name for path in times} > {folder.name}  # files, and a folder's files
    for damaged in times:
        damaged.write_bytes(b"damaged")
    assert local_folder(URL) == folder
    assert all(path.read_bytes() != b"damaged" for path in times)
    assert not list(folder.glob(".*"))
    with Index.open(folder, client=published) as index, pytest.raises(UsageError, match=URL):
        index.folder.lock().__enter__()


def test_what_is_not_whole_is_refused(published: QdrantClient, memory: Any) -> None:
    manifest = json.loads(memory.cat_file("/shared/.cartq/manifest.json"))
    trie = f"/shared/.cartq/{manifest['identifiers']['trie']['name']}"
    data = memory.cat_file(trie)
    memory.pipe_file(trie, b"else")
    with pytest.raises(MismatchError, match=r"trie-.* has hash"):
        local_folder(URL)
    memory.rm(trie)
    with pytest.raises(MismatchError, match="is missing"):
        local_folder(URL)
    memory.pipe_file(trie, data)
    assert IndexFolder(local_folder(URL)).read().generator is not None
    memory.pipe_file("/shared/.cartq/manifest.json", b"{")
    with pytest.raises(MismatchError, match="not readable as JSON"):
        local_folder(URL)
    (kept, *_) = Path(os.environ["CARTQ_CACHE"]).rglob("manifest.json")
    manifest = json.loads(kept.read_bytes())
    outside = {"name": "../x", "hash": ""}
    for change, told in (
        ({"format": 2}, "format 2"),
        (
            {"embedder": {**manifest["embedder"], "text_anchors": outside}},
            r"\.\./x",
        ),
    ):
        data = sealed({**manifest, **change})
        memory.pipe_file("/shared/.cartq/manifest.json", data)
        with pytest.raises(MismatchError, match=told):
            local_folder(URL)


def test_few_versions_are_kept(published: QdrantClient, memory: Any) -> None:
    seen = set()
    for revision in range(5):
        manifest = json.loads(memory.cat_file("/shared/.cartq/manifest.json"))
        data = sealed({**manifest, "revision": str(revision)})
        memory.pipe_file("/shared/.cartq/manifest.json", data)
        seen.add(local_folder(URL))
    assert len(seen) == 5 and sum(one.exists() for one in seen) == KEPT
    assert IndexFolder(local_folder(URL)).read().revision == "4"


def test_what_cannot_be_shared_is_told(memory: Any, small_index: Path) -> None:
    with pytest.raises(IndexMissingError, match="no index at memory://shared"):
        local_folder(URL)
    with pytest.raises(UsageError, match="nowhere"):
        local_folder("nowhere://bucket/.cartq")
    memory.pipe_file("/shared/.cartq/manifest.json", (small_index / "manifest.json").read_bytes())
    with pytest.raises(UsageError, match="cartq migrate --to"):
        local_folder(URL)
    assert local_folder("photos/.cartq") == Path("photos/.cartq")
