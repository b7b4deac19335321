"""Queries to vectors and beams.

The trained query encoder embeds texts; before training, and after it where training found that they
are better, the index's text anchors do, or an embedder that embeds texts itself, which is loaded
for it. The vectors are then decoded into beams.
Shape legend: B queries, D vector width, W sentence width, G modality groups.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cart_qdrant.arrays.types import FloatArray, MaskArray
from cart_qdrant.generator.beam_search import Beams
from cart_qdrant.generator.encoder import EncodedTexts
from cart_qdrant.index.collection import TEXT_DIM
from cart_qdrant.search.fusion import CAPTION_LANES, EMBEDDER, blend
from cart_qdrant.search.loaded_index import LoadedIndex
from cart_qdrant.search.options import SearchRequest
from cart_qdrant.storage import requests as qdrant


@dataclass(frozen=True, slots=True)
class EncodedQueries:
    """A block of queries, encoded.

    Attributes:
        texts: The queries as texts.
        vectors: Their vectors; `caption_BW` is zero where the queries are no texts.
        beams: Decoded identifiers of each.
        log_prior_BG: Log-probability of each modality group given the query.
    """

    texts: Sequence[str]
    vectors: EncodedTexts
    beams: Sequence[Beams]
    log_prior_BG: FloatArray

    @property
    def is_text(self) -> bool:
        """Whether the queries are texts: only these are compared with captions."""
        return bool(self.vectors.caption_BW.any())

    def one(self, b: int) -> EncodedQueries:
        """Query `b` alone."""
        here = slice(b, b + 1)
        return EncodedQueries(
            self.texts[here], self.vectors.one(b), self.beams[here], self.log_prior_BG[here]
        )


@dataclass(frozen=True, slots=True)
class EncodeTimes:
    """Milliseconds that encoding and decoding took."""

    encode: float
    decode: float


class QueryEncoding:
    """Encodes the queries of one index."""

    def __init__(self, loaded: LoadedIndex) -> None:
        self._loaded, self._index = loaded, loaded.index
        self._spaces = sorted(set(loaded.index.manifest.embedder.spaces.values()))
        decoder = loaded.decoder
        # Hubness is measured with texts, so it says nothing about other queries.
        self._vector_decoder = None if decoder is None else replace(decoder, node_bonus=None)

    def texts(
        self, queries: Sequence[str], request: SearchRequest
    ) -> tuple[EncodedQueries, EncodeTimes]:
        """Encode texts, and decode them if the lane reads beams."""
        loaded, decoder = self._loaded, self._loaded.decoder
        wants_beams = request.lane == "generative" or (
            request.lane in ("auto", "fused") and loaded.reads_beams
        )
        begin = time.perf_counter()
        vectors = self.vectors(
            queries,
            media=request.lane not in CAPTION_LANES,
            hidden_states=wants_beams or request.explain,
        )
        middle = time.perf_counter()
        beams = [Beams.none()] * len(queries)
        if wants_beams and decoder is not None and vectors.media:
            beams = (
                decoder.decode(
                    vectors.media, vectors.hidden_states, vectors.mask_BS,
                    caption_BW=vectors.caption_BW, matching=self._matching(request.filter),
                )
                or beams
            )  # fmt: skip
        end = time.perf_counter()
        log_prior_BG = loaded.modality_prior.log_priors(vectors.caption_BW)
        times = EncodeTimes((middle - begin) * 1e3, (end - middle) * 1e3)
        return EncodedQueries(queries, vectors, beams, log_prior_BG), times

    def mixed(
        self, text: str, media: Mapping[str, FloatArray], request: SearchRequest
    ) -> EncodedQueries:
        """Decode one query that is given by its vectors (1, D) in media spaces.

        The generator reads the vectors as it reads those of an item in training.
        """
        no_text_BW = np.zeros((1, TEXT_DIM), np.float32)
        beams = [Beams.none()]
        if self._vector_decoder is not None:
            matching = self._matching(request.filter)
            beams = self._vector_decoder.decode(media, matching=matching) or beams
        log_prior_BG = self._loaded.modality_prior.log_priors(no_text_BW)
        return EncodedQueries(
            [text], EncodedTexts(no_text_BW, no_text_BW, media), beams, log_prior_BG
        )

    def decode_again(
        self, encoded: EncodedQueries, leaf_N: MaskArray, filter: qdrant.AnyFilter | None
    ) -> Beams:
        """Decode one query into identifiers that it has not given yet.

        Args:
            encoded: The query alone.
            leaf_N: Leaves of the tree at which beams may end.
            filter: Condition on the payload; the fewer items it lets through, the more beams are
                kept. None where the leaves are those of such items.
        """
        decoder = self._loaded.decoder if encoded.is_text else self._vector_decoder
        if decoder is None:
            return Beams.none()
        vectors = encoded.vectors
        found = decoder.decode(
            vectors.media, vectors.hidden_states, vectors.mask_BS,
            caption_BW=vectors.caption_BW, matching=self._matching(filter), leaf_N=leaf_N,
        )  # fmt: skip
        return found[0] if found else Beams.none()

    def vectors(
        self, queries: Sequence[str], *, media: bool = True, hidden_states: bool = False
    ) -> EncodedTexts:
        """Vectors of texts.

        Args:
            media: Whether vectors in media spaces are wanted; before training they may take the
                embedder.
            hidden_states: Whether the generator will read the texts; it does if a gate is open.
        """
        model, calibration = self._loaded.model, self._loaded.calibration
        if model is None:
            text_BW = self._index.query_text_encoder().embed(queries)
            sentences = self._index.manifest.captions.encoder is None
            caption_BW = text_BW if sentences else self._loaded.caption_vectors(queries)
            return EncodedTexts(
                text_BW, caption_BW, self._untrained(queries, text_BW) if media else {}
            )
        found = model.encode(queries, hidden_states=hidden_states and any(calibration.gates))
        share, own = calibration.zero_shot, {}
        if media and share and calibration.zero_shot_by == EMBEDDER:
            embedder = self._index.embedder()
            own = {space: embedder.embed_text(queries, space) for space in found.media}
        elif media and share and (anchors := self._index.distilled_anchors()) is not None:
            own = {space: anchors.embed(found.text_BW, space) for space in found.media}
        blended = {s: blend(q_BD, own.get(s), share) for s, q_BD in found.media.items()}
        return replace(found, media=blended)

    def text_vectors(self, text: str) -> dict[str, FloatArray]:
        """Vectors (D,) of one text in the media spaces that it reaches."""
        return {space: q_BD[0] for space, q_BD in self.vectors([text]).media.items()}

    def _untrained(self, queries: Sequence[str], text_BW: FloatArray) -> dict[str, FloatArray]:
        """Query vectors in the media spaces that texts reach without training."""
        anchors = self._index.text_anchors()
        found: dict[str, FloatArray | None]
        if anchors is not None:
            found = {space: anchors.embed(text_BW, space) for space in self._spaces}
        else:
            embedder = self._index.embedder()
            found = {space: embedder.embed_text(queries, space) for space in self._spaces}
        return {space: q_BD for space, q_BD in found.items() if q_BD is not None}

    def _matching(self, filter: qdrant.AnyFilter | None) -> int | None:
        """Number of items that a filter lets through; None without a filter."""
        return None if filter is None else self._index.store.count(filter)
