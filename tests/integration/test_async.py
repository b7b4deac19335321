"""Asynchronous and threaded use of one retriever, on both stores."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cart_qdrant.errors import UsageError
from cart_qdrant.index.index import Index
from cart_qdrant.index.ingest import Ingest
from cart_qdrant.index.migrate import migrate
from cart_qdrant.index.report import IngestOptions, IngestReport
from cart_qdrant.search.retriever import THREADS, Retriever
from cart_qdrant.storage.store_info import StoreInfo
from tests import media_factory as media
from tests.conftest import TEST_COLLECTIONS, copy_of, open_client

QUERY = "a dog on a surfboard"


def test_asynchronous_answers_are_the_same(trained: Path) -> None:
    with Retriever.open(trained) as retriever:
        alone = [hit.id for hit in retriever.search(QUERY, k=5).hits]

        async def ask() -> list[list[str]]:
            found = await asyncio.gather(*(retriever.asearch(QUERY, k=5) for _ in range(8)))
            return [[hit.id for hit in one.hits] for one in found]

        assert asyncio.run(ask()) == [alone] * 8
        with pytest.raises(UsageError, match="k is 0"):
            asyncio.run(retriever.asearch(QUERY, k=0))


def test_the_event_loop_goes_on_during_a_search(
    small_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search waits for what only the loop can give it."""
    beats = threading.Event()
    search = Retriever.search_many

    def wait(self: Retriever, *args: Any, **kwargs: Any) -> Any:
        assert beats.wait(30), "the loop stood still"
        return search(self, *args, **kwargs)

    monkeypatch.setattr(Retriever, "search_many", wait)

    async def beat() -> None:
        for _ in range(20):
            await asyncio.sleep(0.001)
        beats.set()

    async def both(retriever: Retriever) -> int:
        # More searches than threads: those that wait for a thread do not block either.
        asked = (retriever.asearch(QUERY) for _ in range(THREADS + 2))
        found = await asyncio.gather(*asked, beat())
        return sum(1 for one in found if one is not None and one.hits)

    with Retriever.open(small_index) as retriever:
        assert asyncio.run(both(retriever)) == THREADS + 2


def test_threads_search_while_points_are_written(trained: Path) -> None:
    """Eight threads read what one thread rewrites."""
    with Retriever.open(trained) as retriever:
        store = retriever._index.store
        alone = [hit.id for hit in retriever.search(QUERY, k=5).hits]
        records = list(store.scroll(with_payload=True))
        done = threading.Event()

        def write() -> int:
            rounds = 0
            while not done.is_set():
                for record in records:
                    store.set_payload([(str(record.id), {"touched": rounds})])
                rounds += 1
            return rounds

        def read(_: int) -> list[list[str]]:
            return [[hit.id for hit in retriever.search(QUERY, k=5).hits] for _ in range(5)]

        with ThreadPoolExecutor(9) as pool:
            writer = pool.submit(write)
            try:
                found = list(pool.map(read, range(8)))
            finally:
                done.set()
            assert writer.result() >= 1
    assert found == [[alone] * 5] * 8


@pytest.fixture(params=["embedded", "memory", "server"])
def index(
    request: pytest.FixtureRequest, trained: Path, small_media: Path, tmp_path: Path
) -> Iterator[Index]:
    """A trained index that a test may change, its media beside it, in either store."""
    shutil.copytree(small_media, tmp_path / "media")
    root = copy_of(trained, tmp_path / ".cartq")
    with Index.open(root) as one:
        if request.param != "embedded":
            place = StoreInfo(kind="client", collection=f"{TEST_COLLECTIONS}media")
            migrate(one, place, client=open_client(request, request.param))
        yield one


def test_threads_search_while_files_are_ingested(index: Index, tmp_path: Path) -> None:
    """Eight threads ask while a ninth adds pictures; afterwards these are found, too."""
    for n in range(6):
        media.write_image(tmp_path / "media" / f"late-{n}.png", media.scene(50 + n))
        (tmp_path / "media" / f"late-{n}.txt").write_text(f"a red lighthouse number {n}\n")
    retriever = Retriever(index)
    alone = retriever.search(QUERY, k=1).hits[0].id
    done = threading.Event()

    def read(_: int) -> int:
        asked = 0
        while not done.is_set() or not asked:
            hits = retriever.search(QUERY, k=5).hits
            assert hits[0].id == alone and len({hit.id for hit in hits}) == 5
            asked += 1
        return asked

    def write() -> IngestReport:
        try:
            with index.folder.lock():
                return Ingest(index, IngestOptions(paths=[tmp_path / "media"])).run()
        finally:
            done.set()

    with ThreadPoolExecutor(9) as pool:
        readers = [pool.submit(read, n) for n in range(8)]
        report = pool.submit(write).result()
        assert all(reader.result() >= 1 for reader in readers)
    assert report.segments == 6 and not report.failed
    found = Retriever(index).search("a red lighthouse number 3", lane="caption", k=6).hits
    assert {hit.path for hit in found} == {f"media/late-{n}.png" for n in range(6)}
