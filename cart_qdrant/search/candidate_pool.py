"""The candidates of a block of queries, which grow as far as they are needed.

Each list of the store is asked until it has given a number of files, so that one film of hundreds
of segments hides nothing behind it. In the usual case the first page of a list has many files, and
nothing is asked twice.
Shape legend: B queries, C candidates of one, U points of all, A points of one page, N identifiers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cart_qdrant.arrays.point_ids import keys_of
from cart_qdrant.arrays.types import FloatArray, IndexArray, KeyArray, MaskArray
from cart_qdrant.generator.beam_search import Beams
from cart_qdrant.identifiers.item_table import file_number, positions_in
from cart_qdrant.search.candidates import Candidates, FoundList
from cart_qdrant.search.encoding import EncodedQueries
from cart_qdrant.search.item_features import UNKNOWN_MODALITY, ItemFeatureReader, ItemFeatures
from cart_qdrant.search.store_lists import MAX_PAGE, MIN_CANDIDATES, Page, StoreList
from cart_qdrant.search.store_requests import StoreRequests
from cart_qdrant.storage import requests as qdrant

MISSES = 8
"""Decodings in a row that may name nothing that a filter lets through, before no more are tried."""


class DecodeAgain(Protocol):
    """Decodes one query again, into identifiers that it has not given yet."""

    def __call__(
        self, encoded: EncodedQueries, leaf_N: MaskArray, filter: qdrant.AnyFilter | None
    ) -> Beams:
        """Beams that end in the leaves of `leaf_N`; the filter says how many are worth keeping."""


@dataclass(frozen=True, slots=True)
class _Points:
    """All points that were found, each once.

    Attributes:
        id_U: Their ids.
        key_U: The same ids as keys, in order.
        items: Their features.
        point_A: Positions of the points of each page, by its `id()`.
        share_A: Log-probability of the beam that names each point of a page, likewise.
    """

    id_U: list[Any]
    key_U: KeyArray
    items: ItemFeatures
    point_A: dict[int, IndexArray]
    share_A: dict[int, FloatArray]

    def known(self, position_A: IndexArray) -> IndexArray:
        """Those of some positions whose modality the embedder knows."""
        is_known = self.items.space_C[position_A] != UNKNOWN_MODALITY
        return np.asarray(position_A[is_known], np.intp)


class CandidatePool:
    """Candidates of a block of queries.

    Args:
        requests: Makes the requests of the lists.
        items: Reads the features of items.
        decode_again: Decodes a query again.
        by_file: Whether files are counted, and left out on later pages; else points.
    """

    def __init__(
        self,
        requests: StoreRequests,
        items: ItemFeatureReader,
        decode_again: DecodeAgain,
        *,
        by_file: bool,
    ) -> None:
        self._requests, self._items = requests, items
        self._store = requests.layout.index.store
        self._decode_again, self._by_file = decode_again, by_file
        self._encoded = requests.encoded
        self._lists = requests.lists()
        self._compared: dict[int, qdrant.FoundIds] = {}
        self._points: _Points | None = None
        self._first: list[KeyArray] = []
        self._path_of: dict[int, str | None] = {}
        self._few: list[Any] | None = None  # what the filter lets through, if it is not much

    def fill(self, need: int) -> bool:
        """Ask until each list has `need` files (or points), or ends; returns whether there was
        anything to ask."""
        asked = False
        while lacking := [one for one in self._lists if self._lacks(one, need)]:
            self._ask(lacking, need)
            asked = True
        return asked

    def candidates(self) -> list[Candidates]:
        """The candidates of each query, with all that the lists say about them."""
        points = self._points or self._read()
        found: list[list[FoundList]] = [[] for _ in self._encoded.texts]
        for one in self._lists:
            for page in one.pages:
                score_A = np.asarray(page.found.scores, np.float32)
                ranked_A = points.share_A.get(id(page), score_A)
                point_A = points.point_A[id(page)]
                found[one.b].append(FoundList(one.by, point_A, score_A, ranked_A))
        out = []
        for b, own in enumerate(found):
            some = np.unique(np.concatenate([np.empty(0, np.intp), *(m.point_A for m in own)]))
            out.append(self._made(b, points, points.known(some), own))
        self._first = self._first or [one.key_C for one in out]
        self._requests.complete(out)
        return out

    def _made(
        self, b: int, points: _Points, some: IndexArray, own: Sequence[FoundList]
    ) -> Candidates:
        """The candidates of a query at some positions of all points."""
        made = Candidates.of(
            self._encoded.log_prior_BG[b],
            [points.id_U[n] for n in some],
            points.key_U[some],
            points.items.take(some),
        )
        for one in own:
            one.add_to(made, some, scored=self._requests.beams_are_scored)
        compared = self._compared.get(b)
        if compared is not None:
            position, scores = made.positions(compared)
            made.caption_C[position] = scores
            named = positions_in(made.key_C, np.unique(keys_of(self._named_first(b))))
            made.compared_C[named[named >= 0]] = True
        if self._first:
            made.first_C = positions_in(self._first[b], made.key_C) >= 0
        return made

    def _named_first(self, b: int) -> list[Any]:
        """Points that the first beams of a query named."""
        (one,) = (one for one in self._lists if one.b == b and one.by == "beam")
        return one.pages[0].found.ids

    def _lacks(self, one: StoreList, need: int) -> bool:
        if one.ended or not one.pages:
            return not one.ended
        return self._count(one) < need

    def _count(self, one: StoreList) -> int:
        """Files, or points, that a list has given."""
        points = self._points
        assert points is not None
        at = points.known(np.concatenate([points.point_A[id(page)] for page in one.pages]))
        return len(np.unique(points.items.file_C[at])) if self._by_file else len(at)

    def _ask(self, lists: Sequence[StoreList], need: int) -> None:
        """Ask for one more page of each list."""
        self._read_paths([one for one in lists if one.pages and one.ask is not None])
        requests: list[qdrant.QueryRequest] = []
        asked: list[tuple[StoreList, int, Beams | None]] = []
        compared: list[int] = []
        for one in lists:
            beams, limit = None, MIN_CANDIDATES
            if one.ask is None:
                beams = self._beams(one)
                if len(beams.scores_K) == 0:
                    one.ended = True
                    continue
                requests.append(self._requests.of_beams(one.b, beams))
                limit = requests[-1].limit or limit
                if not one.pages and self._requests.captions:
                    compared.append(one.b)
            else:
                limit = one.next_limit(need - (self._count(one) if one.pages else 0))
                requests.append(one.ask(self._unseen(one) if one.pages else None, limit))
            asked.append((one, limit, beams))
        requests += [self._requests.captions_of_beams(b) for b in compared]
        answers = self._store.query_ids(requests) if requests else []
        for (one, limit, beams), found in zip(asked, answers, strict=False):
            new = one.add(Page(found, beams, len(found.ids) < limit))
            one.misses = 0 if new else one.misses + 1
            if beams is None:
                one.ended = not new or len(found.ids) < limit
            else:
                one.ended = not self._requests.generative or one.misses >= MISSES
        self._compared |= dict(zip(compared, answers[len(asked) :], strict=True))
        self._points = self._read()

    def _read(self) -> _Points:
        """Read the features of all points, each once, whichever queries and lists found it."""
        pages = [page for one in self._lists for page in one.pages]
        owner = [one.b for one in self._lists for _ in one.pages]
        ids = [one for page in pages for one in page.found.ids]
        key_U, first_U, point_A = np.unique(keys_of(ids), return_index=True, return_inverse=True)
        id_U = [ids[n] for n in first_U.tolist()]
        ends = np.cumsum([0, *(len(page.found.ids) for page in pages)]).tolist()
        at = {
            id(page): point_A[begin:end]
            for page, (begin, end) in zip(pages, pairwise(ends), strict=True)
        }
        named = [(page, page.beams, at[id(page)]) for page in pages if page.beams is not None]
        items, shares = self._items.read(id_U, key_U, [(beams, rows) for _, beams, rows in named])
        share_A: dict[int, FloatArray] = {}
        worst: dict[int, float] = {}
        owner_of = {id(page): b for page, b in zip(pages, owner, strict=True)}
        for (page, beams, _), share in zip(named, shares, strict=True):
            # A later decoding gives what the one before it had no room for.
            b, log_probs = owner_of[id(page)], beams.log_probs()
            shift = max(0.0, float(log_probs.max()) - worst.get(b, np.inf))
            share_A[id(page)] = share - np.float32(shift)
            worst[b] = float(log_probs.min()) - shift
        return _Points(id_U, key_U, items, at, share_A)

    # What was seen

    def _beams(self, one: StoreList) -> Beams:
        """The first beams of a query, then those of further decodings."""
        if not one.pages:
            return self._encoded.beams[one.b]
        filter = self._requests.filter
        if filter is not None and self._few is None and self._store.count(filter) <= MAX_PAGE:
            found = self._store.scroll(filter, with_payload=False)
            self._few = [record.id for record in islice(found, MAX_PAGE)]
        leaf_N = self._items.leaves(self._few)
        for page in one.pages:
            assert page.beams is not None
            if page.is_whole:  # what it did not find, the filter does not let through
                leaf_N[page.beams.leaf_K] = False
        leaf_N &= ~self._items.leaves(one.ids())
        if self._by_file:
            leaf_N[self._items.leaves_of_files(self._files(one))] = False
        if not leaf_N.any():
            return Beams.none()
        return self._decode_again(
            self._encoded.one(one.b), leaf_N, None if self._few is not None else filter
        )

    def _files(self, one: StoreList) -> npt.NDArray[np.uint64]:
        """Numbers of the files that a list has given."""
        points = self._points
        assert points is not None
        at = np.concatenate([points.point_A[id(page)] for page in one.pages])
        return np.unique(points.items.file_C[at])

    def _read_paths(self, lists: Sequence[StoreList]) -> None:
        """Read the paths of the files that lists have given; a later page leaves them out."""
        points = self._points
        if not self._by_file or points is None or not lists:
            return
        at = np.concatenate([points.point_A[id(page)] for one in lists for page in one.pages])
        file_F, first_F = np.unique(points.items.file_C[at], return_index=True)
        new = [n for n, file in enumerate(file_F.tolist()) if file not in self._path_of]
        ids = [points.id_U[at[first_F[n]]] for n in new]
        if not ids:
            return
        wanted = qdrant.Filter(must=[qdrant.HasIdCondition(has_id=ids)])
        request = qdrant.QueryRequest(filter=wanted, limit=len(ids), with_payload=["path"])
        (found,) = self._store.query_batch([request])
        self._path_of |= dict.fromkeys((int(file_F[n]) for n in new), None)
        for point in found:
            path = (point.payload or {}).get("path")
            if path is not None:
                self._path_of[file_number(path)] = path

    def _unseen(self, one: StoreList) -> qdrant.AnyFilter | None:
        """A filter that excludes what a list has given."""
        if not self._by_file:
            return qdrant.Filter(must_not=[qdrant.HasIdCondition(has_id=one.ids())])
        points = self._points
        assert points is not None
        paths = [self._path_of[file] for file in self._files(one).tolist()]
        # A point without a path is a file of its own.
        bare = [
            points.id_U[u]
            for page in one.pages
            for u in points.point_A[id(page)].tolist()
            if self._path_of[int(points.items.file_C[u])] is None
        ]
        match = qdrant.MatchAny(any=[path for path in paths if path is not None])
        unwanted: list[qdrant.AnyCondition] = [qdrant.FieldCondition(key="path", match=match)]
        if bare:
            unwanted.append(qdrant.HasIdCondition(has_id=bare))
        return qdrant.Filter(must_not=unwanted)
