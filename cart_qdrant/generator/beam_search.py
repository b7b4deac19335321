"""Beam search constrained by the prefix tree: only stored identifiers come out.

The search sees codes only. A `Scorer` scores a level for all queries at once. With as many beams as
leaves the result is the full enumeration.
Shape legend: B queries, K beams of a query, C their children, R beams of all queries, V codes,
L levels, N leaves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cart_qdrant.arrays.types import FloatArray, IndexArray, IntArray, MaskArray
from cart_qdrant.errors import ConfigError
from cart_qdrant.generator.prior import NodeBonus
from cart_qdrant.identifiers.trie import Trie, spans


class Scorer(Protocol):
    """Scores the codes of one level for the beams of all queries."""

    @property
    def per_prefix(self) -> bool:
        """Whether there is a row of scores for each prefix; else for each query."""

    def __call__(
        self, level: int, query_R: IndexArray, prefix_RL: IntArray, parent_R: IndexArray
    ) -> FloatArray:
        """Scores of every code after each prefix.

        Args:
            level: Level to score, from 0; levels are scored in their order.
            query_R: Number of the query that each prefix belongs to.
            prefix_RL: Codes chosen so far (R, level).
            parent_R: Number of the prefix, in the call before, that each one continues; at level 0,
                of the query.

        Returns:
            (R, V) if `per_prefix`; else (B, V), and the call is made with the empty prefix of each
            query, as at level 0.
        """


class PriorScorer:
    """Scores by `q . c_k`, then `q . e_{m,v}`: the approximated inner product, level by level.

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


def positions(rows_NL: IntArray) -> dict[bytes, int]:
    """Position of each identifier among rows (N, L + 1), for `Beams.items`."""
    return {row.tobytes(): n for n, row in enumerate(np.ascontiguousarray(rows_NL))}


@dataclass(frozen=True, slots=True)
class Beams:
    """Decoded identifiers of one query, best first.

    Attributes:
        rows_KL: Identifiers with their disambiguation token (K, L + 1).
        scores_K: Summed score of each.
        leaf_K: Their positions among all identifiers of the tree.
    """

    rows_KL: IntArray
    scores_K: FloatArray
    leaf_K: IndexArray

    @classmethod
    def none(cls, depth: int = 1) -> Beams:
        """No beams, of a tree with that many levels."""
        none = np.empty(0, np.float32)
        return cls(np.empty((0, depth), np.int32), none, np.empty(0, np.intp))

    @classmethod
    def joined(
        cls,
        found: Sequence[Beams],
        best: int | None = None,
        weights: Sequence[float] | None = None,
    ) -> Beams:
        """Beams of several decodings, best first, each identifier once; scores become
        log-probabilities over all of them.

        Args:
            found: The decodings. An identifier of several keeps the greatest of its shares.
            best: An identifier's share is its score beside those of so many beams of its decoding,
                so that a wider decoding gives no smaller shares; None takes all.
            weights: What the shares of each decoding are multiplied by; None treats all alike.
        """
        each = weights or [1.0] * len(found)
        log_probs = [b.log_probs(best) + np.log(w) for b, w in zip(found, each, strict=True)]
        scores = np.concatenate(log_probs).astype(np.float32)
        leaves = np.concatenate([b.leaf_K for b in found])
        order = np.argsort(-scores, kind="stable")
        _, first = np.unique(leaves[order], return_index=True)
        kept = order[np.sort(first)]
        rows = np.concatenate([b.rows_KL for b in found])[kept]
        shares = cls(rows, scores[kept], leaves[kept])
        return cls(rows, shares.log_probs(), leaves[kept])

    def ids(self) -> list[str]:
        """Identifiers in the form of the payload key `cart.id`."""
        form = "-".join(["%d"] * self.rows_KL.shape[1])
        return [form % tuple(row) for row in self.rows_KL.tolist()]

    def items(self, position_of: Mapping[bytes, int]) -> IndexArray:
        """Positions (K,) of the identifiers in the rows that `positions` was called with."""
        rows = np.ascontiguousarray(self.rows_KL)
        return np.asarray([position_of[row.tobytes()] for row in rows], dtype=np.intp)

    def log_probs(self, best: int | None = None) -> FloatArray:
        """Log-probabilities (K,) of the beams, normalised over these beams, or over the best."""
        if len(self.scores_K) == 0:
            return self.scores_K
        shifted = self.scores_K - self.scores_K.max()
        return np.asarray(shifted - np.log(np.exp(shifted[:best]).sum()), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class _Front:
    """Beams of one query after some levels, best first.

    Attributes:
        node_K: Nodes in the level that the beams have reached.
        score_K: Summed scores.
        row_KL: Codes so far.
        parent_K: Number of the beam, in the level before, that each one continues.
        hub_K: Mean hubness under the nodes; None without a node bonus.
    """

    node_K: IndexArray
    score_K: FloatArray
    row_KL: IntArray
    parent_K: IndexArray
    hub_K: FloatArray | None


def nodes_above(trie: Trie, leaf_N: MaskArray) -> list[MaskArray]:
    """For each level, a mask of the nodes that lead to some of the leaves of a mask (N,)."""
    allowed = [leaf_N]
    for level in trie.levels[-2::-1]:
        below = allowed[-1]
        allowed.append(np.logical_or.reduceat(below, level.first[:-1]) if len(below) else below)
    return allowed[::-1]


def beam_search(
    trie: Trie,
    scorer: Scorer,
    queries: int,
    width: int,
    node_bonus: NodeBonus | None = None,
    allowed: Sequence[MaskArray] | None = None,
) -> list[Beams]:
    """Find the best identifiers of the tree for each query.

    Args:
        trie: Stored identifiers; the last level is the disambiguation token, which is not scored.
        scorer: Scores the semantic levels.
        queries: B.
        width: Beams kept of each query at every level.
        node_bonus: Added to the score of a beam that enters a node, whatever the query.
        allowed: Nodes of each level that beams may enter, as `nodes_above` finds them; None allows
            all.

    Raises:
        ConfigError: `width` is under 1.
    """
    if width < 1:
        raise ConfigError(f"The beam width is {width}, but must be at least 1.")
    depth = trie.depth
    if len(trie) == 0 or queries == 0:
        return [Beams.none(depth)] * queries
    zero = np.zeros(1, dtype=np.intp)
    hub = None if node_bonus is None else node_bonus.hub(-1, zero)
    root = _Front(zero, np.zeros(1, np.float32), np.empty((1, 0), np.int32), zero, hub)
    fronts, each = [root] * queries, np.arange(queries)
    above = starts = np.arange(queries + 1)  # of each query's beams among those of all
    for level in range(depth):
        tables: Sequence[FloatArray | None] = [None] * queries
        if level < depth - 1 and scorer.per_prefix:
            query_R = each.repeat(np.diff(starts))
            prefix_RL = np.concatenate([front.row_KL for front in fronts])
            parents = [f.parent_K + begin for f, begin in zip(fronts, above, strict=False)]
            table_RV = scorer(level, query_R, prefix_RL, np.concatenate(parents))
            tables = [table_RV[begin:end] for begin, end in pairwise(starts)]
        elif level < depth - 1:
            tables = list(scorer(level, each, root.row_KL.repeat(queries, axis=0), each))
        # Query by query: the children of one query's beams stay in the processor's cache.
        mask = None if allowed is None else allowed[level]
        fronts = [
            _advance(trie, level, front, scores, width, node_bonus, mask)
            for front, scores in zip(fronts, tables, strict=True)
        ]
        above, starts = starts, np.cumsum([0, *(len(front.node_K) for front in fronts)])
    return [Beams(front.row_KL, front.score_K, front.node_K) for front in fronts]


def _advance(
    trie: Trie,
    level: int,
    front: _Front,
    table: FloatArray | None,
    width: int,
    node_bonus: NodeBonus | None,
    allowed: MaskArray | None,
) -> _Front:
    """The best children of one query's beams.

    Args:
        level: Level of the children.
        table: Scores of the level's codes, (V,) or for each beam (K, V); None at the last level.
        allowed: Nodes of the level that may be entered; None allows all.
    """
    tokens = trie.levels[level].tokens
    if level:
        first = trie.levels[level - 1].first
        begin_K = first.take(front.node_K)
        count_K = first.take(front.node_K + 1) - begin_K
    else:
        begin_K, count_K = np.zeros(1, np.intp), np.asarray([len(tokens)])
    node_C = spans(begin_K, count_K)
    parent_C: IndexArray = np.arange(len(count_K)).repeat(count_K)
    if allowed is not None:
        kept = np.flatnonzero(allowed.take(node_C))
        node_C, parent_C = node_C.take(kept), parent_C.take(kept)
    score_C = front.score_K.take(parent_C)
    if table is not None:
        token_C: npt.NDArray[Any] = tokens.take(node_C)
        if table.ndim == 2:
            token_C = token_C + parent_C * table.shape[1]
        score_C += table.reshape(-1).take(token_C)
        finite = np.isfinite(score_C)
        if not finite.all():  # -inf: codes of other spaces and of far clusters, often most
            seen = np.flatnonzero(finite)
            node_C, parent_C, score_C = node_C.take(seen), parent_C.take(seen), score_C.take(seen)
    hub_C: FloatArray | None = None
    if node_bonus is not None and front.hub_K is not None:
        hub_C = node_bonus.hub(level, node_C)
        score_C += node_bonus.enter(hub_C, front.hub_K.take(parent_C))
    keep = _best(score_C, width)
    node_K, parent_K = node_C.take(keep), parent_C.take(keep)
    row_KL = np.empty((len(keep), level + 1), dtype=np.int32)
    row_KL[:, :level] = front.row_KL.take(parent_K, axis=0)
    row_KL[:, level] = tokens.take(node_K)
    hub_K = None if hub_C is None else hub_C.take(keep)
    return _Front(node_K, score_C.take(keep), row_KL, parent_K, hub_K)


def _best(score_C: FloatArray, width: int) -> IndexArray:
    """Positions of the best `width` of finite scores, best first; ties in their order."""
    candidates = np.arange(len(score_C))
    if len(score_C) > width:
        # A partial sort is enough before the full one. Ties at the edge must stay in order, so all
        # that reach it are kept for the sort below.
        edge = np.partition(score_C, len(score_C) - width)[len(score_C) - width]
        candidates = np.flatnonzero(score_C >= edge)
    found = score_C.take(candidates)
    order = (-found).argsort()  # unlike a stable sort, in the processor's vector units
    best = found.take(order)
    if (best[1:] == best[:-1]).any():
        order = (-found).argsort(kind="stable")
    return candidates.take(order[:width])
