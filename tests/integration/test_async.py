"""Asynchronous and threaded use of one retriever, on both stores."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cart_qdrant.errors import UsageError
from cart_qdrant.search.engine import THREADS, Retriever

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
        store = retriever._library.store
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
