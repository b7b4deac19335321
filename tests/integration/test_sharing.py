"""Searches go on beside other searches, ingestion and training, and follow what these activate."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from qdrant_client import QdrantClient

from cart_qdrant.errors import StoreError
from cart_qdrant.index.identify import refit, remove_stale
from cart_qdrant.index.index import Index
from cart_qdrant.index.ingest import Ingest
from cart_qdrant.index.migrate import migrate
from cart_qdrant.index.report import IngestOptions
from cart_qdrant.search.lanes import Lane
from cart_qdrant.search.options import SearchRequest
from cart_qdrant.search.query import Part, Query
from cart_qdrant.search.retriever import Retriever
from cart_qdrant.storage.store_info import StoreInfo
from cart_qdrant.training.train import train
from tests import media_factory as media
from tests.conftest import ROOT, TEST_COLLECTIONS, copy_of, open_client, short_training

QUERY = "a dog on a surfboard"


@pytest.fixture
def root(trained: Path, small_media: Path, tmp_path: Path) -> Path:
    """A trained index that a test may change, its media beside it."""
    shutil.copytree(small_media, tmp_path / "media")
    return copy_of(trained, tmp_path / ".cartq")


@pytest.fixture(params=["embedded", "memory", "server"])
def index(request: pytest.FixtureRequest, root: Path) -> Iterator[Index]:
    with Index.open(root) as one:
        if request.param != "embedded":
            place = StoreInfo(kind="client", collection=f"{TEST_COLLECTIONS}sharing")
            migrate(one, place, client=open_client(request, request.param))
        yield one


def cartq(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cart_qdrant_cli.main", "--index", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)


def found(retriever: Retriever, lane: Lane) -> list[str]:
    return [hit.id for hit in retriever.search(QUERY, k=3, lane=lane).hits]


def test_an_open_retriever_follows_a_training(index: Index) -> None:
    """Its beams name identifiers of the version before; they are found until it follows."""
    retriever = Retriever(index.with_manifest(index.manifest))
    before = retriever._follower.current()
    generative = found(retriever, "generative")
    assert generative
    with index.folder.lock():
        train(index, replace(short_training(), seed=1))
    # A search that began before goes on with the old version, and still finds its hits.
    (result,) = before.searcher.texts([QUERY], SearchRequest(lane="generative", k=3))
    assert [hit.id for hit in result.hits] == generative
    assert before.loaded.model is not None and before.loaded.model.generator is not None
    # The next one is answered by the new version.
    assert found(retriever, "generative")
    after = retriever._follower.current()
    assert after.index.manifest.revision == index.manifest.revision
    assert after.index.field != before.index.field
    with index.folder.lock():
        remove_stale(index)
    assert found(retriever, "generative") and found(retriever, "auto")
    names = {path.name for path in index.folder.root.iterdir()}
    assert before.index.manifest.generator is not None
    assert before.index.manifest.generator.folder.name not in names


def test_an_open_retriever_finds_what_is_ingested_later(index: Index, tmp_path: Path) -> None:
    retriever = Retriever(index.with_manifest(index.manifest))
    model = retriever._follower.current().loaded.model
    media.write_image(tmp_path / "media" / "late.png", media.scene(77))
    (tmp_path / "media" / "late.txt").write_text("a purple submarine\n")
    with index.folder.lock():
        Ingest(index, IngestOptions(paths=[tmp_path / "media"])).run()
    (hit, *_) = retriever.search("a purple submarine", lane="caption").hits
    assert hit.path == "media/late.png"
    late = retriever.search(Query((Part("like", hit.id),)), lane="generative", k=50)
    assert late.hits  # its tree has the new identifiers
    assert retriever._follower.current().loaded.model is model  # which is not loaded again


def test_an_open_retriever_follows_a_move_to_another_store(root: Path) -> None:
    with Retriever.open(root) as retriever, Index.open(root) as writer:
        before = found(retriever, "auto")
        with writer.folder.lock():
            refit(writer)
        assert found(retriever, "dense")
        client = QdrantClient(":memory:")
        migrate(writer, StoreInfo(kind="client", collection="moved"), client=client)
        with pytest.raises(StoreError, match="client of your own"):
            retriever.search(QUERY)
    with Retriever.open(root, client=client) as retriever:
        assert found(retriever, "dense") and before


def test_searches_run_beside_an_open_index(root: Path) -> None:
    """Two processes search while a third has the store, as a server or a training has it."""
    with Retriever.open(root) as retriever:
        here = found(retriever, "auto")
        with ThreadPoolExecutor(2) as pool:
            runs = list(pool.map(lambda _: cartq(root, "search", QUERY, "--json", "-k", "3"), "ab"))
        for run in runs:
            assert run.returncode == 0, run.stderr
            assert [hit["id"] for hit in json.loads(run.stdout)["hits"]] == here
        assert cartq(root, "info", "--json").returncode == 0


def test_a_retriever_stays_open_beside_the_processes_that_write(root: Path, tmp_path: Path) -> None:
    media.write_image(tmp_path / "media" / "late.png", media.scene(78))
    (tmp_path / "media" / "late.txt").write_text("a golden teapot\n")
    with Retriever.open(root) as retriever:
        best = found(retriever, "auto")[0]
        done, answers = threading.Event(), 0

        def write() -> subprocess.CompletedProcess[str]:
            try:
                return cartq(root, "ingest", str(tmp_path / "media"), "--json")
            finally:
                done.set()

        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write)
            while not done.is_set():
                assert found(retriever, "auto")[0] == best
                answers += 1
            run = writing.result()
        assert run.returncode == 0, run.stderr
        assert json.loads(run.stdout)["segments"] == 1 and answers > 0
        assert retriever.search("a golden teapot", lane="caption").hits[0].path == "media/late.png"


def test_a_second_writer_is_told_who_writes(root: Path) -> None:
    with (
        Index.open(root) as index,
        index.folder.lock(),
        pytest.raises(StoreError, match=r"Another process is writing .*: process \d+ \("),
    ):
        index.folder.lock(patience=0.05).__enter__()
