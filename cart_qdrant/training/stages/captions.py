"""Second stage: the captions of all items, encoded as the trained query encoder wants them.

Shape legend: B texts, W caption vector width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.index.caption_vectors import write_caption_vectors, write_sentence_vectors
from cart_qdrant.training.query_vectors import QueryVectors
from cart_qdrant.training.stages.state import Run, StoredCaptions, TrainedTower, TrainingData


def store_captions(run: Run, data: TrainingData, tower: TrainedTower) -> StoredCaptions:
    """Write the caption vectors that go into force with this training, where those in force are not
    the same; no search reads them before.

    They are made by the graph that searches will run, so that a text has one vector as a query and
    as a caption.
    """
    index, slot = run.index, run.index.caption_vector
    if data.encoder.tunes_captions:
        if index.keeps_captions:
            slot = write_caption_vectors(index, KnownCaptions(tower.queries), run.reporter)
        every = np.arange(len(data.corpus.texts))
        return StoredCaptions(slot, index.keeps_captions, tower.queries.caption(every))
    if index.manifest.captions.encoder is not None:
        slot = write_sentence_vectors(index, run.reporter).vector
    return StoredCaptions(slot, False, data.states.text_PW)


class KnownCaptions:
    """Encodes captions by the trained query encoder; those that it was trained on are encoded
    already."""

    def __init__(self, queries: QueryVectors) -> None:
        self._queries = queries
        self._number = {text: n for n, text in enumerate(queries.texts)}

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """Unit vectors (B, W) of texts (B of them)."""
        number_B = np.asarray([self._number.get(text, -1) for text in texts], np.intp)
        new = np.flatnonzero(number_B < 0)
        if not len(new):
            return self._queries.caption_UW[number_B]
        found = self._queries.encoder.captions([texts[n] for n in new.tolist()])
        if len(new) == len(texts):
            return found
        x_BW = self._queries.caption_UW[number_B]  # of the new ones, any
        x_BW[new] = found
        return x_BW
