"""Beam search constrained by the prefix tree: only stored identifiers come out.

The decoder sees ids only. Scores of a level come from a `Scorer`; beams of all queries advance
together in flat arrays. With as many beams as leaves the result is the full enumeration.
Shape legend: B queries, K beams of a query, R beams of all queries, V codes, L levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cart_qdrant.errors import ConfigError
from cart_qdrant.index.trie import Trie

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]
IndexArray = npt.NDArray[np.intp]


class Scorer(Protocol):
    """Scores the codes of one level."""

    @property
    def per_prefix(self) -> bool:
        """Whether there is a row for each prefix; else one for each query."""

    def __call__(
        self, level: int, query_R: IndexArray, prefix_RL: IntArray, parent_R: IndexArray
    ) -> FloatArray:
        """Scores of every code after each prefix.

        Args:
            level: Level to score, from 0; asked in order.
            query_R: Which query each prefix belongs to.
            prefix_RL: Codes chosen so far (R, level).
            parent_R: Which prefix of the call before each one continues; a query at level 0.

        Returns:
            (R, V) if `per_prefix`, else (B, V).
        """


class PriorScorer:
    """`q . c_k`, then `q . e_{m,v}`: the approximated inner product, level by level.

    Args:
        levels_BV: Scores of each semantic level, (B, V) each; -inf marks codes of other spaces.
    """

    per_prefix = False

    def __init__(self, levels_BV: Sequence[FloatArray]) -> None:
        self.levels_BV = list(levels_BV)

    def __call__(
        self,
        level: int,
        query_R: IndexArray,  # noqa: ARG002 - of the protocol
        prefix_RL: IntArray,  # noqa: ARG002
        parent_R: IndexArray,  # noqa: ARG002
    ) -> FloatArray:
        """(B, V): a residual code's score does not depend on the prefix."""
        return self.levels_BV[level]


def places(rows_NL: IntArray) -> dict[bytes, int]:
    """Where each identifier stands, see `Beams.items`."""
    return {row.tobytes(): n for n, row in enumerate(np.ascontiguousarray(rows_NL))}


@dataclass(frozen=True, slots=True)
class Beams:
    """Decoded identifiers of one query, best first.

    Attributes:
        rows_KL: Identifiers with counter (K, L + 1).
        scores_K: Summed score of each.
    """

    rows_KL: IntArray
    scores_K: FloatArray

    def ids(self) -> list[str]:
        """Identifiers as stored in `cart.id`."""
        return ["-".join(map(str, row)) for row in self.rows_KL.tolist()]

    def items(self, place_of: Mapping[bytes, int]) -> IndexArray:
        """Places (K,) of the identifiers in the rows that `places` was made of."""
        rows = np.ascontiguousarray(self.rows_KL)
        return np.asarray([place_of[row.tobytes()] for row in rows], dtype=np.intp)

    def log_probs(self) -> FloatArray:
        """Log of the beams' shares of the probability that all beams have together."""
        if len(self.scores_K) == 0:
            return self.scores_K
        shifted = self.scores_K - self.scores_K.max()
        return np.asarray(shifted - np.log(np.exp(shifted).sum()), dtype=np.float32)


def beam_search(
    trie: Trie,
    scorer: Scorer,
    queries: int,
    width: int,
    gains: Sequence[FloatArray] | None = None,
) -> list[Beams]:
    """The best identifiers of the tree for each query.

    Args:
        trie: Stored identifiers; its last level is the counter, which no scorer is asked for.
        scorer: Scores of the semantic levels.
        queries: B.
        width: Beams kept of each query at every level.
        gains: Added to the score where a beam enters a node, for each level, whatever the query;
            see `prior.node_gains`.

    Raises:
        ConfigError: `width` is under 1.
    """
    if width < 1:
        raise ConfigError(f"The beam width is {width}, but must be at least 1.")
    depth = trie.depth
    empty = Beams(np.empty((0, depth), np.int32), np.empty(0, np.float32))
    if len(trie) == 0 or queries == 0:
        return [empty] * queries
    roots = len(trie.levels[0].tokens)
    query_R = np.repeat(np.arange(queries), roots)
    node_R = np.tile(np.arange(roots), queries)
    score_R = np.zeros(len(query_R), dtype=np.float32)
    prefix_RL = np.empty((len(query_R), 0), dtype=np.int32)
    parent_R: IndexArray = query_R
    every = np.arange(queries)
    table = scorer(0, every, np.empty((queries, 0), np.int32), every)
    for level in range(depth):
        token_R = trie.levels[level].tokens[node_R]
        if level < depth - 1:
            row_R = parent_R if scorer.per_prefix else query_R
            score_R = score_R + table[row_R, token_R]
        if gains is not None:
            score_R = score_R + gains[level][node_R]
        prefix_RL = np.concatenate([prefix_RL, token_R[:, None]], axis=1)
        keep = _best(query_R, score_R, width)
        query_R, node_R, score_R = query_R[keep], node_R[keep], score_R[keep]
        prefix_RL = prefix_RL[keep]
        if level == depth - 1:
            break
        if level + 1 < depth - 1:
            table = scorer(level + 1, query_R, prefix_RL, parent_R[keep])
        first = trie.levels[level].first
        begin, count = first[node_R], first[node_R + 1] - first[node_R]
        parent_R = np.repeat(np.arange(len(node_R)), count)
        within = np.arange(len(parent_R)) - np.repeat(np.cumsum(count) - count, count)
        node_R = begin[parent_R] + within
        query_R, score_R, prefix_RL = query_R[parent_R], score_R[parent_R], prefix_RL[parent_R]
    ends = np.searchsorted(query_R, np.arange(queries + 1))
    return [Beams(prefix_RL[a:b], score_R[a:b]) for a, b in pairwise(ends)]


def _best(query_R: IndexArray, score_R: FloatArray, width: int) -> IndexArray:
    """Positions of each query's best `width` finite beams, by query then score; ties by order."""
    counts = np.bincount(query_R)
    if len(counts) == 1 and len(score_R) > 4 * width:
        # One query: a partial sort is enough before the full one. Ties at the edge must stay in
        # order, so all that reach the threshold are kept for the sort below.
        edge = np.partition(score_R, len(score_R) - width)[len(score_R) - width]
        candidates = np.flatnonzero(score_R >= edge)
    else:
        candidates = np.arange(len(score_R))
    candidates = candidates[np.isfinite(score_R[candidates])]
    order = candidates[np.lexsort((-score_R[candidates], query_R[candidates]))]
    owner = query_R[order]
    starts = np.searchsorted(owner, owner)
    return order[np.arange(len(order)) - starts < width]
