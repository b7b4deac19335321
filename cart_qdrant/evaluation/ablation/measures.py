"""Recalls, decoding times and growth of one variant.

Shape legend: B queries, M candidates, D vector width, K beams, L levels.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cart_qdrant.arrays.types import IndexArray
from cart_qdrant.evaluation.ablation.results import GrowthResult, Recalls
from cart_qdrant.generator.beam_search import Beams, PriorScorer, Scorer, beam_search
from cart_qdrant.generator.network import Generator, GeneratorScorer
from cart_qdrant.identifiers.trie import Trie
from cart_qdrant.training.generator_data import GeneratorData, read_hidden_states

KS = (1, 5, 10)


@dataclass(frozen=True, slots=True)
class FittedVariant:
    """Identifiers, tree and generator of a variant.

    Attributes:
        item_of: Number of the item by identifier.
        generator: None for the prior alone.
        beams: Beam width.
    """

    data: GeneratorData
    trie: Trie
    item_of: Mapping[bytes, int]
    generator: Generator | None
    beams: int


def decode_queries(
    variant: FittedVariant, trie: Trie, generator: Generator | None, rows: IndexArray
) -> tuple[list[Beams], float]:
    """Beams of the queries `rows` in their items' space, and the seconds that decoding took."""
    data = variant.data
    out: dict[int, Beams] = {}
    seconds = 0.0
    for space, positions in data.blocks(rows):
        part = rows[positions]
        hidden_states, mask = read_hidden_states(data, part)
        start = time.perf_counter()
        q_BD, levels = data.query_PD[part], data.levels(space, part)
        scorer: Scorer = PriorScorer(levels)
        if generator is not None:
            gates = [1.0] * len(levels)
            scorer = GeneratorScorer.of(generator, hidden_states, mask, q_BD, levels, gates)
        found = beam_search(trie, scorer, len(part), variant.beams)
        seconds += time.perf_counter() - start
        out |= zip(positions.tolist(), found, strict=True)
    return [out[n] for n in range(len(rows))], seconds


def candidate_ranks(
    variant: FittedVariant, rows: IndexArray, found: Sequence[Beams]
) -> tuple[IndexArray, IndexArray]:
    """Rank of each query's right item among its candidates, by probability and by cosine; the
    greatest integer where it is not among them."""
    data = variant.data
    by_beam = np.full(len(rows), np.iinfo(np.intp).max)
    by_vector = by_beam.copy()
    for n, (row, beams) in enumerate(zip(rows, found, strict=True)):
        items = beams.items(variant.item_of)
        right = data.corpus.item_P[row]
        at = np.flatnonzero(items == right)
        if len(at):
            scores = data.corpus.vectors.x_ND[items] @ data.query_PD[row]
            by_beam[n] = at[0]
            by_vector[n] = int((scores > scores[at[0]]).sum())
    return by_beam, by_vector


def dense_ranks(data: GeneratorData, rows: IndexArray) -> IndexArray:
    """Rank of each query's right item among all items of its space, by cosine."""
    vectors, items = data.corpus.vectors, data.corpus.item_P[rows]
    out = np.empty(len(rows), dtype=np.intp)
    for space in np.unique(vectors.spaces[items]):
        mine = np.flatnonzero(vectors.spaces[items] == space)
        among = np.flatnonzero(vectors.spaces == space)
        scores = data.query_PD[rows[mine]] @ vectors.x_ND[among].T
        own = (data.query_PD[rows[mine]] * vectors.x_ND[items[mine]]).sum(axis=1)
        out[mine] = (scores > own[:, None] + 1e-6).sum(axis=1)
    return out


@dataclass(frozen=True, slots=True)
class Measured:
    """Recalls of a variant, and the milliseconds of decoding a query."""

    beams: Recalls
    reranked: Recalls
    dense: Recalls
    decode_ms: float


def measure_variant(variant: FittedVariant) -> Measured:
    """Decode and rank the held-out queries of both strata."""
    out = Measured({}, {}, {}, 0.0)
    split = variant.data.split
    spent, asked = 0.0, 0
    for name, rows in split.report.strata.items():
        found, seconds = decode_queries(variant, variant.trie, variant.generator, rows)
        spent, asked = spent + seconds, asked + len(rows)
        by_beam, by_vector = candidate_ranks(variant, rows, found)
        out.beams[name], out.reranked[name] = _recalls(by_beam), _recalls(by_vector)
        out.dense[name] = _recalls(dense_ranks(variant.data, rows))
    return Measured(out.beams, out.reranked, out.dense, round(1e3 * spent / max(asked, 1), 3))


def _recalls(rank_B: IndexArray) -> dict[int, float]:
    """Recall by k; empty where nothing was asked."""
    return {k: round(float((rank_B < k).mean()), 4) for k in KS if len(rank_B)}


def measure_growth(variant: FittedVariant, seed: int) -> Iterator[GrowthResult]:
    """The same queries among ever more candidates, by the decoders and by exact dense search."""
    data = variant.data
    spaces, rows = data.corpus.vectors.spaces, data.split.report.unseen_P
    names, counts = np.unique(spaces[data.corpus.item_P[rows]], return_counts=True)
    space = names[counts.argmax()]  # a query is asked within its item's space
    rows = rows[spaces[data.corpus.item_P[rows]] == space]
    among = np.flatnonzero(spaces == space)
    targets = np.unique(data.corpus.item_P[rows])
    others = np.random.default_rng(seed).permutation(np.setdiff1d(among, targets))
    every = np.arange(len(variant.trie))
    whole = Beams(variant.trie.rows(), np.empty(0, np.float32), every)
    item_of_row = whole.items(variant.item_of)
    sizes = [n for n in (500, 1_000, 2_000, 4_000) if len(targets) < n < len(among)]
    for size in (*sizes, len(among)):
        chosen = np.concatenate([targets, others[: size - len(targets)]])
        part = Trie.build(whole.rows_KL[np.isin(item_of_row, chosen)])
        r10: dict[str, float] = {}
        rate: dict[str, float] = {}
        for name, generator in (("prior", None), ("prior + correction", variant.generator)):
            found, seconds = decode_queries(variant, part, generator, rows)
            _, by_vector = candidate_ranks(variant, rows, found)
            r10[name] = float((by_vector < 10).mean())
            rate[name] = len(rows) / seconds
        r10["dual tower"], rate["dual tower"] = _dense_among(data, rows, chosen)
        yield GrowthResult(seed=seed, candidates=len(chosen), r10=r10, queries_per_second=rate)


def _dense_among(data: GeneratorData, rows: IndexArray, chosen: IndexArray) -> tuple[float, float]:
    """R@10 of exact dense search among the items `chosen` (M,), and its queries a second."""
    x_MD = np.ascontiguousarray(data.corpus.vectors.x_ND[chosen])
    start = time.perf_counter()
    scores = data.query_PD[rows] @ x_MD.T
    np.argpartition(-scores, min(10, len(chosen) - 1), axis=1)
    rate = len(rows) / (time.perf_counter() - start)
    at = {int(item): n for n, item in enumerate(chosen)}
    right = np.asarray([at[int(item)] for item in data.corpus.item_P[rows]])
    own = scores[np.arange(len(rows)), right]
    return float(((scores > own[:, None]).sum(axis=1) < 10).mean()), rate
