"""The candidates of one query, with what each list of the store says about them.

Shape legend: C candidates, A points of one list, G modality groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cart_qdrant.arrays.point_ids import keys_of
from cart_qdrant.arrays.types import FloatArray, IndexArray, KeyArray, MaskArray
from cart_qdrant.identifiers.item_table import positions_in
from cart_qdrant.search.candidate_features import CandidateFeatures
from cart_qdrant.search.item_features import ItemFeatures
from cart_qdrant.storage import requests as qdrant


@dataclass(slots=True)
class Candidates:
    """Candidates of one query, in order of their ids; NaN where a list says nothing.

    Attributes:
        log_prior_G: Log-probability of each modality group given the query.
        ids: Point ids, as the store returns them.
        key_C: The same ids as keys, see `arrays.point_ids`.
        items: Features of the items that do not depend on the query.
        media_C: Cosine of query and media vector.
        caption_C: Cosine of query and caption vector.
        beam_C: Log-probability of the beam that names the candidate.
        bm25_C: BM25 score of the captions.
        compared_C: Whether the caption was compared already; NaN then means that there is none.
        found: Positions of the candidates that each list found.
        first_C: Whether the candidate was among the first that were collected, which share the
            probability; None where all were.
    """

    log_prior_G: FloatArray
    ids: list[Any]
    key_C: KeyArray
    items: ItemFeatures
    media_C: FloatArray
    caption_C: FloatArray
    beam_C: FloatArray
    bm25_C: FloatArray
    compared_C: MaskArray
    found: dict[str, IndexArray]
    first_C: MaskArray | None = None

    @classmethod
    def of(
        cls, log_prior_G: FloatArray, ids: list[Any], key_C: KeyArray, items: ItemFeatures
    ) -> Candidates:
        """Candidates that no list has said anything about yet."""
        media, caption, beam, bm25 = np.full((4, len(ids)), np.nan, np.float32)
        compared = np.zeros(len(ids), bool)
        return cls(log_prior_G, ids, key_C, items, media, caption, beam, bm25, compared, {})

    def positions(self, found: qdrant.FoundIds) -> tuple[IndexArray, FloatArray]:
        """Positions of the points of an answer that are candidates, and their scores."""
        position = positions_in(self.key_C, keys_of(found.ids))
        return position[position >= 0], np.asarray(found.scores, np.float32)[position >= 0]

    def ranks(self) -> dict[str, dict[str, int]]:
        """Rank of each candidate (by id, from 1) in each list that found it."""
        out: dict[str, dict[str, int]] = {}
        for by, positions in self.found.items():
            order = positions[np.argsort(-self.scores(by)[positions], kind="stable")]
            out[by] = {str(self.ids[c]): n for n, c in enumerate(order.tolist(), start=1)}
        return out

    def scores(self, by: str) -> FloatArray:
        """Scores (C,) by which a list ranks."""
        return {
            "beam": self.beam_C, "dense": self.media_C, "without_caption": self.media_C,
            "caption": self.caption_C, "bm25": self.bm25_C,
        }[by]  # fmt: skip

    def similarities(self) -> FloatArray:
        """Cosine of the query and each candidate's media vector (C,), else of its caption vector;
        NaN where neither was compared."""
        return np.where(np.isnan(self.media_C), self.caption_C, self.media_C)

    def similarity(self, c: int) -> float | None:
        """The similarity of one candidate; None where it was not compared."""
        found = float(self.similarities()[c])
        return None if np.isnan(found) else found

    def modality_prior(self, c: int) -> float | None:
        """Probability that the query is for a candidate's modality; None where the index has one
        modality group."""
        if len(self.log_prior_G) < 2:
            return None
        return float(np.exp(self.log_prior_G[self.items.group_C[c]]))

    def features(self) -> CandidateFeatures:
        """The features by which the candidates are ranked."""
        items = self.items
        return CandidateFeatures(
            self.media_C, self.caption_C, self.beam_C, items.space_C, items.hub_C,
            items.caption_hub_C, self.bm25_C, items.group_C, self.log_prior_G, self.first_C,
        )  # fmt: skip


@dataclass(slots=True)
class FoundList:
    """What one list of the store found for a query.

    Attributes:
        by: Name of the list.
        point_A: Positions of its points among all points of a block of queries.
        answer_A: Scores that the store returned.
        score_A: Scores by which the list ranks; those of beams differ from the store's.
    """

    by: str
    point_A: IndexArray
    answer_A: FloatArray
    score_A: FloatArray

    def add_to(self, candidates: Candidates, chosen: IndexArray, *, scored: bool) -> None:
        """Write the list's scores into the candidates.

        Args:
            chosen: Positions of the candidates among all points of the block, in order.
            scored: Whether the answer to beams holds cosines.
        """
        position = positions_in(chosen, self.point_A)
        # NaN: the identifier of the point changed meanwhile.
        here = (position >= 0) & ~np.isnan(self.score_A)
        position = position[here]
        candidates.scores(self.by)[position] = self.score_A[here]
        if self.by == "beam" and scored:
            candidates.media_C[position] = self.answer_A[here]
        found = candidates.found.get(self.by)
        candidates.found[self.by] = position if found is None else np.concatenate([found, position])
        if self.by == "without_caption":
            candidates.compared_C[position] = True
