"""How similar texts without any meaning come to the items of an index, to tell what is not close.

The scale of cosines depends on the embedder: 0.3 may be a good match in one index and chance in
another. What some meaningless texts reach in the same collection is a measure that needs nothing
else. It tells more than a low confidence, which presumes that the answer is there
(docs/experiments.md).
Shape legend: B texts.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

import numpy as np

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.search.candidate_features import greatest_cosine
from cart_qdrant.search.candidates import Candidates
from cart_qdrant.search.encoding import QueryEncoding
from cart_qdrant.search.store_requests import StoreLayout, nearest
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.protocol import MEDIA

MEANINGLESS = (
    "dmlqx gmoep", "qvuzh", "brelk yosta finwu", "xipho tazze", "kwornt", "plyde vack sumoj",
    "zeqqa hirf", "ontrell", "jub wexil craph", "mivvost", "thurg alpek", "yassni", "fobbel ruxt",
    "czimo", "drawple nux eft", "hoskivar",
)  # fmt: skip
"""Texts that name nothing."""
CAPTIONS = "captions"
"""Name under which the similarity to captions is kept; those to media have the name of a space."""
SHARE = 0.9
"""Share of the meaningless texts that come no nearer than what counts as background."""
SURELY_CLOSE = 0.45
"""Cosine of a caption from which nothing is compared: no meaningless text was found near it."""


class Background:
    """What meaningless texts reach in one index; it is computed when it is first needed.

    Args:
        layout: What is stored.
        encoding: Encodes texts as queries are.
    """

    def __init__(self, layout: StoreLayout, encoding: QueryEncoding) -> None:
        self._layout, self._encoding = layout, encoding
        self._lock = threading.Lock()
        self._levels: dict[str, float] = {}

    def remark(self, candidates: Candidates) -> str | None:
        """A sentence on a text whose candidates are no nearer than those of meaningless texts; None
        where something is close, or nothing was compared."""
        best_caption = greatest_cosine(candidates.caption_C)
        if best_caption >= SURELY_CLOSE or not len(candidates.ids):
            return None
        best = dict(self._best_media(candidates))
        if not np.isnan(candidates.caption_C).all():
            best[CAPTIONS] = best_caption
        levels = self._levels_of(best)
        if not best or any(one > levels.get(name, -1.0) for name, one in best.items()):
            return None
        found = ", ".join(
            f"{one:.2f} to {'captions' if name == CAPTIONS else 'media'} (meaningless texts reach "
            f"{levels[name]:.2f})"
            for name, one in best.items()
        )
        return f"nothing is surely close, hits may be chance: the best similarity is {found}"

    def _best_media(self, candidates: Candidates) -> Iterator[tuple[str, float]]:
        """The greatest similarity in each media space that was compared."""
        for number, space in enumerate(self._layout.spaces):
            here = candidates.media_C[candidates.items.space_C == number]
            if len(here) and not np.isnan(here).all():
                yield space, float(np.nanmax(here))

    def _levels_of(self, names: Iterable[str]) -> dict[str, float]:
        """The similarity that meaningless texts reach in some media spaces, or to captions."""
        with self._lock:
            if new := set(names) - set(self._levels):
                self._levels |= self._measured(new)
            return dict(self._levels)

    def _measured(self, names: set[str]) -> dict[str, float]:
        vectors = self._encoding.vectors(MEANINGLESS, media=names != {CAPTIONS})
        out: dict[str, float] = {}
        for space in names & set(vectors.media):
            filters = list(self._layout.filters_of_groups(space))
            best_GB = [self._best(vectors.media[space], MEDIA, filter) for filter in filters]
            out[space] = _level(np.max(best_GB, axis=0))
        if CAPTIONS in names:
            using = self._layout.index.caption_vector
            out[CAPTIONS] = _level(self._best(vectors.caption_BW, using, None))
        return out

    def _best(self, q_BD: FloatArray, using: str, filter: qdrant.AnyFilter | None) -> FloatArray:
        """The similarity (B,) of what is nearest to each text; -1 where there is nothing."""
        requests = [nearest(q_D, using, filter, 1) for q_D in q_BD]
        answers = self._layout.index.store.query_ids(requests)
        return np.asarray([max([-1.0, *found.scores]) for found in answers], np.float32)


def _level(best_B: FloatArray) -> float:
    return float(np.quantile(best_B, SHARE))
