"""What the user should know of an answer: what could not be used, and why nothing was found."""

from __future__ import annotations

from collections.abc import Iterator

from cart_qdrant.search.background import Background
from cart_qdrant.search.filters import has_caption
from cart_qdrant.search.fusion import CAPTION_LANES
from cart_qdrant.search.loaded_index import LoadedIndex
from cart_qdrant.search.options import SearchRequest
from cart_qdrant.search.ranking import Ranking


class Remarks:
    """Makes the remarks on the answers from one index.

    Args:
        loaded: The index.
        background: What meaningless texts reach in it.
    """

    def __init__(self, loaded: LoadedIndex, background: Background) -> None:
        self._loaded, self._store = loaded, loaded.index.store
        self._background = background

    def on_texts(self, request: SearchRequest, *, reached: bool) -> list[str]:
        """What holds for all texts of a block.

        Args:
            reached: Whether the texts have a vector in some media space.
        """
        out = []
        if self._loaded.model is None:
            out.append("not trained: `cartq train` makes answers better and quicker")
        if request.lane in CAPTION_LANES or reached:
            return out
        if request.lane in ("dense", "generative") or not self._has_captions():
            out.append(
                "no text reaches the media vectors before training: nothing is found by text; "
                "search by an item (--like), or train: `cartq train`"
            )
        else:
            out.append("no text reaches the media vectors: captions alone answer")
        return out

    def on_answer(
        self,
        request: SearchRequest,
        whole: Ranking,
        kept: Ranking,
        *,
        reached: bool,
        text: bool = True,
    ) -> list[str]:
        """What holds for one answer.

        Args:
            whole: All that was ranked.
            kept: What of it is confident and similar enough.
            reached: Whether the query has a vector in some media space.
            text: Whether the query is a text.
        """
        return list(self._on_answer(request, whole, kept, reached=reached, text=text))

    def _on_answer(
        self, request: SearchRequest, whole: Ranking, kept: Ranking, *, reached: bool, text: bool
    ) -> Iterator[str]:
        count, answers = len(kept.order), "files" if request.ranks_files else "segments"
        if count > request.offset:
            if request.lane == "generative" and count < request.offset + request.k:
                yield f"beams name {count} {answers} in all: other lanes may find more"
            # Within a filter meaningless texts come less near.
            if text and request.filter is None:
                far = self._background.remark(whole.candidates)
                if far is not None:
                    yield far
            return
        if count:
            yield f"there are {count} hits, and --offset passes over {request.offset}"
        elif len(whole.order):
            yield (
                f"{len(whole.order)} {answers} were found, and all left out by "
                f"{' and '.join(_limits(request))}"
            )
        elif self._store.count() == 0:
            yield "the collection is empty: `cartq ingest` fills it"
        elif request.filter is not None and self._store.count(request.filter) == 0:
            yield "no item meets the filter"
        elif request.lane == "bm25":
            yield "no caption holds a word of the query"
        elif request.lane == "caption" and not self._has_captions():
            yield "no item has a caption: `cartq caption` makes some"
        elif request.lane == "generative" and reached and self._loaded.decoder is None:
            yield "items have no identifiers yet: `cartq train`, or `cartq sync` where attached"

    def _has_captions(self) -> bool:
        return self._store.count(has_caption(self._loaded.index)) > 0


def _limits(request: SearchRequest) -> Iterator[str]:
    """The options that leave out hits, with their values."""
    if request.min_confidence:
        yield f"--min-confidence {request.min_confidence:g}"
    if request.min_similarity is not None:
        yield f"--min-similarity {request.min_similarity:g}"
