"""Collects the candidates of queries from the store of one index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cart_qdrant.index.index import Index
from cart_qdrant.search.candidate_pool import CandidatePool, DecodeAgain
from cart_qdrant.search.encoding import EncodedQueries
from cart_qdrant.search.item_features import ItemFeatureReader
from cart_qdrant.search.store_requests import StoreLayout, StoreRequests
from cart_qdrant.storage import requests as qdrant


class Collector:
    """Collects candidates from the store of one index.

    Args:
        index: The index.
        group_of: Number of each modality's group.
        spaces: The media spaces in the order of their numbers.
        items: Reads the features of items.
        decode_again: Decodes a query again, where its beams name too few files.
    """

    def __init__(
        self,
        index: Index,
        group_of: Mapping[str, int],
        spaces: Sequence[str],
        items: ItemFeatureReader,
        decode_again: DecodeAgain,
    ) -> None:
        self.layout = StoreLayout(index, group_of, spaces)
        self._items, self._decode_again = items, decode_again

    def collect(
        self,
        encoded: EncodedQueries,
        *,
        lanes: Sequence[str],
        filter: qdrant.AnyFilter | None,
        by_file: bool,
    ) -> CandidatePool:
        """A pool of candidates of each query, still to be filled.

        Args:
            lanes: Lanes that may answer; the generative one alone takes what beams name.
            filter: Condition on the payload that all candidates meet.
            by_file: Whether files are counted, else points.
        """
        requests = StoreRequests(self.layout, encoded, lanes, filter)
        return CandidatePool(requests, self._items, self._decode_again, by_file=by_file)
