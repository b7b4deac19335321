"""`Retriever`: the public search of one index.

A **lane** is a way to rank the items of an index for a query:

- `dense`: by the cosine of query and media vector
- `generative`: the items whose identifiers the generator writes for the query
- `caption`: by the cosine of query and caption vector
- `bm25`: by the words of the captions
- `rrf`: `dense`, `caption` and `bm25` joined by reciprocal rank fusion
- `fused`: media and caption vectors, and beams, joined by calibrated weights (`fusion`)
- `auto`: for each query the one of `generative`, `dense` and `fused` that the router chooses

A search goes through `options` (what is asked for), `encoding` (queries to vectors and beams),
`collector` (candidates from the store), `ranking` (by `fusion`) and `hits` (payloads).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

from cart_qdrant.index.index import Index
from cart_qdrant.index.remote import fetch_media, local_folder
from cart_qdrant.media.folder import MediaFolder
from cart_qdrant.records import Hit, Item
from cart_qdrant.search.following import Follower
from cart_qdrant.search.fusion import Calibration
from cart_qdrant.search.lanes import Lane
from cart_qdrant.search.lookup import find_item
from cart_qdrant.search.options import Grouping, SearchOptions, SearchRequest
from cart_qdrant.search.query import Query, check_text
from cart_qdrant.search.result import SearchResult
from cart_qdrant.storage import requests as qdrant

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

    from cart_qdrant.search.describe import Description

THREADS = 4
"""Asynchronous searches that run at once; torch and the store use more cores each."""


class Retriever:
    """Searches one index. Use `open`; a retriever is a context manager, and safe to use from
    several threads. It follows the index: what another process trains or ingests while it is open
    is in force from its next search on."""

    def __init__(self, index: Index, *, reopen: Callable[[], Index] | None = None) -> None:
        """Search an open index, which the retriever closes.

        Args:
            index: The index.
            reopen: Opens it again if it has moved to another store; None opens its folder.
        """
        self._follower = Follower(index, reopen or partial(Index.open, index.folder.root))
        # No thread is started before the first asynchronous search.
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="cart-qdrant")

    @classmethod
    def open(
        cls,
        root: Path | str = ".cartq",
        *,
        url: str | None = None,
        api_key: str | None = None,
        collection: str | None = None,
        client: QdrantClient | None = None,
    ) -> Retriever:
        """Open an index for searching.

        Args:
            root: The `.cartq` folder, or the URL of one that fsspec opens (`s3://bucket/.cartq`),
                of which a copy is kept in the user's cache.
            url: Server that the index must be on, if given.
            api_key: Key of the server. It is sent only to a server that you named, by `url` now or
                before, or in `CARTQ_URL`: the folder of an index may come from others.
            collection: Collection that the index must be in, if given.
            client: Client of your own to reach the server with; you close it.

        Raises:
            IndexMissingError: There is no index.
            MismatchError: Parts of the index are of different versions, or the key was not given
                for the server of the index.
            StoreError: The store cannot be opened, or another process has it.
        """

        def reopen() -> Index:
            return Index.open(
                local_folder(str(root)), url=url, api_key=api_key, collection=collection,
                client=client,
            )  # fmt: skip

        index = reopen()
        try:
            return cls(index, reopen=reopen)
        except BaseException:
            index.close()
            raise

    @property
    def _index(self) -> Index:
        return self._follower.current().index

    @property
    def base(self) -> Path:
        """Folder that the paths of hits are relative to."""
        return self._index.folder.base

    @property
    def is_attached(self) -> bool:
        """Whether others fill the collection, with payload fields of their own."""
        return self._index.attachment is not None

    def media_folder(self, hits: Iterable[Hit | Item] = ()) -> MediaFolder:
        """Folder that holds the files of hits under their paths: `base`, or a cache to which the
        files are downloaded if the index is behind a URL. Its `file` gives the path of a hit's file
        that may be opened; a path of a hit is data, and may lead anywhere."""
        return fetch_media(self._index.folder, self._index.manifest.id, [hit.path for hit in hits])

    @property
    def calibration(self) -> Calibration:
        """Weights and router in force."""
        return self._follower.current().loaded.calibration

    def describe(self) -> Description:
        """What the collection holds: items of each modality, fields to filter on, examples."""
        from cart_qdrant.search.describe import describe

        return describe(self._index)

    def item(self, name: str) -> Item:
        """A stored item by its id, its path, or PATH@SECONDS.

        Raises:
            UsageError: There is no such item.
        """
        return find_item(self._index, name)

    def search(
        self,
        query: str | Query,
        *,
        k: int = 10,
        lane: Lane = "auto",
        filter: qdrant.AnyFilter | None = None,
        group_by: Grouping = "file",
        offset: int = 0,
        min_confidence: float = 0.0,
        min_similarity: float | None = None,
        explain: bool = False,
    ) -> SearchResult:
        """The best `k` hits for a text, an image, an audio file, an item, or a mix of them.

        Args:
            query: What to find; `cart_qdrant.search.query` makes queries of several parts.
            k: Number of hits (files when grouped by file, each by its best segment).
            lane: The lane that answers; `auto` lets the router choose.
            filter: Condition on the payload; every lane obeys it.
            group_by: `file` gives each file once, `none` gives all segments.
            offset: Number of the best hits that are passed over; `offset=10, k=10` is page 2.
            min_confidence: Hits of a lower confidence are left out.
            min_similarity: Hits of a lower `Hit.similarity`, or of none, are left out.
            explain: Whether each hit tells why it is one (`Hit.why`).

        Raises:
            UsageError: An empty query, k under 1, an offset under 0, an unknown lane or grouping,
                a confidence outside [0, 1] or where none is known, a similarity outside [-1, 1] or
                in a lane that computes none, a part of the query that is not there.
            MediaError: A file of the query cannot be decoded.
        """
        return self.search_many(
            [query], k=k, lane=lane, filter=filter, group_by=group_by, offset=offset,
            min_confidence=min_confidence, min_similarity=min_similarity, explain=explain,
        )[0]  # fmt: skip

    async def asearch(self, query: str | Query, **options: Unpack[SearchOptions]) -> SearchResult:
        """`search` in a bounded pool of threads, so that the event loop is not blocked."""
        return (await self.asearch_many([query], **options))[0]

    async def asearch_many(
        self, queries: Sequence[str | Query], **options: Unpack[SearchOptions]
    ) -> list[SearchResult]:
        """`search_many` in a bounded pool of threads, so that the event loop is not blocked."""
        import asyncio  # it takes a tenth of a command's start

        work = partial(self.search_many, queries, **options)
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def search_many(
        self, queries: Sequence[str | Query], **options: Unpack[SearchOptions]
    ) -> list[SearchResult]:
        """`search` for many queries with the same options; texts are answered in blocks."""
        request = SearchRequest(**options)
        version = self._follower.current()
        request.check_index(
            captions=version.index.keeps_captions,
            confidence=bool(version.loaded.calibration.confidence),
        )
        asked = [
            query.parts[0].value if isinstance(query, Query) and query.is_text else query
            for query in queries
        ]
        texts = [query for query in asked if isinstance(query, str)]
        for text in texts:
            check_text(text)
        searcher = version.searcher
        of_texts = iter(searcher.texts(texts, request))
        found = [
            next(of_texts) if isinstance(query, str) else searcher.mixed(query, request)
            for query in asked
        ]
        for one in found:
            one.remarks.extend(version.remarks)
        return found

    def close(self) -> None:
        """Close the store as soon as the running searches have ended."""
        self._threads.shutdown()
        self._follower.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
