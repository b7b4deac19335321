"""Laws of the constrained beam search, against plain enumeration of the stored identifiers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cart_qdrant.arrays.types import FloatArray, IntArray
from cart_qdrant.errors import ConfigError
from cart_qdrant.generator.beam_search import Beams, PriorScorer, beam_search, nodes_above
from cart_qdrant.generator.decode import IdentifierDecoder, beams_for
from cart_qdrant.generator.prior import NodeBonus
from cart_qdrant.identifiers.codec import DisambiguationTokens, IdentifierConfig, fit_codec
from cart_qdrant.identifiers.trie import Trie

Row = tuple[int, ...]

SEMANTIC, CODES = 3, 5  # levels before the counter, and codes of a level
rows = st.lists(
    st.tuples(*[st.integers(0, CODES - 1)] * SEMANTIC, st.integers(0, 2)), min_size=1, max_size=40
)
seeds = st.integers(0, 2**16)
queries = st.integers(1, 4)


class PrefixScorer:
    """Scores that depend on the whole prefix, as a decoder's do; (R, V) at every level."""

    per_prefix = True

    def __init__(self, seed: int, queries: int) -> None:
        self.tables = [
            # Small whole numbers: sums are exact, and ties are common.
            np.random.default_rng((seed, level))
            .integers(-9, 10, (queries, *[CODES] * (level + 1)))
            .astype(np.float32)
            for level in range(SEMANTIC)
        ]
        self.before: list[tuple[npt.NDArray[np.intp], IntArray]] = []

    def __call__(
        self,
        level: int,
        query_R: npt.NDArray[np.intp],
        prefix_RL: IntArray,
        parent_R: npt.NDArray[np.intp],
    ) -> FloatArray:
        assert prefix_RL.shape == (len(query_R), level)
        if level:  # a parent is the row that this prefix continues
            queries, prefixes = self.before[level - 1]
            assert np.array_equal(queries[parent_R], query_R)
            assert np.array_equal(prefixes[parent_R], prefix_RL[:, :-1])
        self.before[level:] = [(query_R, prefix_RL)]
        return np.asarray(self.tables[level][(query_R, *prefix_RL.T)])

    def score(self, query: int, codes: Row) -> float:
        return float(sum(self.tables[n][(query, *codes[: n + 1])] for n in range(len(codes))))

    def only(self, query: int) -> PrefixScorer:
        """The scorer of one of the queries."""
        one = PrefixScorer(0, 1)
        one.tables = [table[query : query + 1] for table in self.tables]
        return one


def prior(seed: int, queries: int) -> PriorScorer:
    rng = np.random.default_rng(seed)
    return PriorScorer(
        [rng.standard_normal((queries, CODES)).astype(np.float32) for _ in range(SEMANTIC)]
    )


def tuples(beams: Beams) -> list[Row]:
    return [tuple(row) for row in beams.rows_KL.tolist()]


def assert_enumeration(beams: Beams, wanted: dict[Row, float]) -> None:
    """The beams are all identifiers, once each, best first, with their scores."""
    found = tuples(beams)
    assert len(found) == len(set(found)) and set(found) == set(wanted)
    np.testing.assert_allclose(beams.scores_K, [wanted[row] for row in found], atol=1e-5)
    assert (np.diff(beams.scores_K) <= 0).all()


@given(rows, seeds, queries)
def test_as_many_beams_as_leaves_is_the_full_enumeration(
    stored: list[Row], seed: int, count: int
) -> None:
    trie = Trie.build(stored)
    for spare in (0, 7):
        scorer = PrefixScorer(seed, count)
        for query, beams in enumerate(beam_search(trie, scorer, count, len(trie) + spare)):
            assert_enumeration(beams, {row: scorer.score(query, row[:-1]) for row in stored})


@given(rows, seeds, queries, st.data())
def test_beams_end_where_they_are_allowed_to(
    stored: list[Row], seed: int, count: int, data: st.DataObject
) -> None:
    """As if the tree held the allowed identifiers alone; none may be allowed."""
    trie, scorer = Trie.build(stored), PrefixScorer(seed, count)
    allowed = data.draw(st.lists(st.booleans(), min_size=len(trie), max_size=len(trie)))
    leaf_N = np.asarray(allowed, bool)
    wanted = [tuple(row) for row in trie.rows()[leaf_N].tolist()]
    above = nodes_above(trie, leaf_N)
    assert [len(mask) for mask in above] == [len(level.tokens) for level in trie.levels]
    found = beam_search(trie, scorer, count, max(1, len(wanted)), None, above)
    for query, beams in enumerate(found):
        assert_enumeration(beams, {row: scorer.score(query, row[:-1]) for row in wanted})
        assert leaf_N[beams.leaf_K].all()


@given(rows, seeds, queries)
def test_the_prior_sums_one_score_a_level(stored: list[Row], seed: int, count: int) -> None:
    trie, scorer = Trie.build(stored), prior(seed, count)
    for query, beams in enumerate(beam_search(trie, scorer, count, len(trie))):
        wanted = {
            row: float(sum(t[query, row[level]] for level, t in enumerate(scorer.levels_BV)))
            for row in stored
        }
        assert_enumeration(beams, wanted)


@given(rows, seeds, queries, st.integers(1, 50))
def test_every_beam_is_stored(stored: list[Row], seed: int, count: int, width: int) -> None:
    trie, scorer = Trie.build(stored), PrefixScorer(seed, count)
    for query, beams in enumerate(beam_search(trie, scorer, count, width)):
        found = tuples(beams)
        assert 1 <= len(found) <= min(width, len(trie))
        assert len(set(found)) == len(found)
        assert trie.contains(beams.rows_KL).all()
        wanted = [scorer.score(query, row[:-1]) for row in found]
        np.testing.assert_allclose(beams.scores_K, wanted, atol=1e-5)
        assert beams.ids() == ["-".join(map(str, row)) for row in found]


@given(rows, seeds, queries, st.integers(1, 50))
def test_a_batch_answers_as_its_queries_one_by_one(
    stored: list[Row], seed: int, count: int, width: int
) -> None:
    trie, scorer = Trie.build(stored), PrefixScorer(seed, count)
    for query, beams in enumerate(beam_search(trie, scorer, count, width)):
        (alone,) = beam_search(trie, scorer.only(query), 1, width)
        np.testing.assert_array_equal(beams.rows_KL, alone.rows_KL)
        np.testing.assert_array_equal(beams.scores_K, alone.scores_K)


@given(rows, seeds, st.integers(1, 12))
def test_a_narrow_beam_keeps_the_best_prefixes_of_each_level(
    stored: list[Row], seed: int, width: int
) -> None:
    """Level by level, over plain tuples; of equal ones the better parent's, then the lower code."""
    scorer = PrefixScorer(seed, 1)
    kept: list[Row] = [()]
    for level in range(SEMANTIC + 1):
        known = {row[: level + 1] for row in stored}
        children = [child for one in kept for child in sorted(known) if child[:level] == one]
        kept = sorted(children, key=lambda child: -scorer.score(0, child[:SEMANTIC]))[:width]
    (beams,) = beam_search(Trie.build(stored), scorer, 1, width)
    assert tuples(beams) == kept


@given(seeds, st.integers(1, 3))
def test_a_wide_level_is_cut_as_by_a_full_sort(seed: int, count: int) -> None:
    """Many more nodes than beams, with many ties: one query takes another way than several."""
    rng = np.random.default_rng(seed)
    trie = Trie.build(np.stack([np.arange(60), np.zeros(60, int)], axis=1))
    table_BV = rng.integers(0, 6, (count, 60)).astype(np.float32)
    for query, beams in enumerate(beam_search(trie, PriorScorer([table_BV]), count, 5)):
        order = np.lexsort((np.arange(60), -table_BV[query]))[:5]
        assert beams.rows_KL[:, 0].tolist() == order.tolist()


@given(rows, seeds, st.sets(st.integers(0, CODES - 1)))
def test_a_masked_code_is_never_chosen(stored: list[Row], seed: int, masked: set[int]) -> None:
    trie, scorer = Trie.build(stored), prior(seed, 2)
    scorer.levels_BV[0][1, list(masked)] = -np.inf
    free, bound = beam_search(trie, scorer, 2, len(trie))
    assert set(tuples(free)) == set(stored)
    assert set(tuples(bound)) == {row for row in stored if row[0] not in masked}
    assert np.isfinite(bound.scores_K).all()


@given(rows, seeds, st.integers(1, 50))
def test_log_probs_are_a_distribution_over_the_beams(
    stored: list[Row], seed: int, width: int
) -> None:
    (beams,) = beam_search(Trie.build(stored), PrefixScorer(seed, 1), 1, width)
    logs = beams.log_probs()
    assert np.exp(logs).sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(np.diff(logs), np.diff(beams.scores_K), atol=1e-4)


@given(rows, seeds, st.integers(1, 9), st.integers(1, 40))
def test_joined_decodings_are_one_distribution(
    stored: list[Row], seed: int, width: int, wide: int
) -> None:
    trie = Trie.build(stored)
    (corrected,) = beam_search(trie, PrefixScorer(seed, 1), 1, width)
    (found,) = beam_search(trie, prior(seed, 1), 1, width)
    (wider,) = beam_search(trie, prior(seed, 1), 1, width + wide)
    joined = Beams.joined([corrected, wider], width)
    assert np.exp(joined.scores_K).sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(joined.log_probs(), joined.scores_K, atol=1e-5)
    assert set(tuples(joined)) == {*tuples(corrected), *tuples(wider)}
    assert len(set(tuples(joined))) == len(tuples(joined))
    assert (np.diff(joined.scores_K) <= 0).all()
    if tuples(wider)[: len(tuples(found))] == tuples(found):  # a greedy search may miss some
        narrow = Beams.joined([corrected, found], width)
        share = dict(zip(tuples(joined), joined.scores_K.tolist(), strict=True))
        before = dict(zip(tuples(narrow), narrow.scores_K.tolist(), strict=True))
        same = sorted(set(before) - set(tuples(wider)[width:]))
        ratio = [share[one] - before[one] for one in same]
        np.testing.assert_allclose(ratio, ratio[:1] * len(same), atol=1e-3)


def test_no_identifier_and_no_query() -> None:
    empty = Trie.build([], SEMANTIC + 1)
    for beams in beam_search(empty, prior(0, 2), 2, 3):
        assert beams.rows_KL.shape == (0, SEMANTIC + 1) and beams.ids() == []
        assert len(beams.log_probs()) == 0
    assert beam_search(Trie.build([(0, 0, 0, 0)]), prior(0, 1), 0, 3) == []


def test_a_width_under_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="width is 0"):
        beam_search(Trie.build([(0, 0, 0, 0)]), prior(0, 1), 1, 0)


@given(rows, seeds, queries, st.integers(0, 99))
def test_bonuses_of_the_nodes_sum_to_the_hubness_of_the_identifier(
    stored: list[Row], seed: int, count: int, hubs: int
) -> None:
    hub = dict(zip(stored, np.random.default_rng(hubs).random(len(stored)).tolist(), strict=True))
    trie = Trie.build(stored, hub_N=[hub[row] for row in stored])
    bonus, scorer = NodeBonus(trie, 3.0), PrefixScorer(seed, count)
    mean = float(np.mean(list(hub.values())))
    for query, beams in enumerate(beam_search(trie, scorer, count, len(trie), bonus)):
        wanted = {row: scorer.score(query, row[:-1]) - 3 * (hub[row] - mean) for row in hub}
        assert_enumeration(beams, wanted)


def test_a_tree_without_hubness_has_no_bonus() -> None:
    trie, scorer = Trie.build([(0, 1, 2, 0), (0, 1, 1, 0)]), prior(0, 1)
    (free,) = beam_search(trie, scorer, 1, 2)
    (gained,) = beam_search(trie, scorer, 1, 2, NodeBonus(trie, 3.0))
    np.testing.assert_array_equal(free.rows_KL, gained.rows_KL)
    np.testing.assert_array_equal(free.scores_K, gained.scores_K)


def test_a_selective_filter_widens_the_beams_of_the_prior() -> None:
    x = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    codec = fit_codec({"visual": x}, IdentifierConfig(method="rkmeans"))
    codes = codec.quantizers["visual"].encode(x)
    u = DisambiguationTokens().assign(codes)
    trie = Trie.build(np.concatenate([codes, u[:, None]], axis=1))
    decoder = IdentifierDecoder(trie=trie, codec=codec, scale=20, width=4, gates=[0.0] * 4)
    found = {
        matching: decoder.decode({"visual": x[:3]}, matching=matching)
        for matching in (None, 600, 60, 24, 0)
    }
    assert {n: [len(b.scores_K) for b in beams] for n, beams in found.items()} == {
        None: [4] * 3, 600: [4] * 3, 60: [4] * 3, 24: [10] * 3, 0: [60] * 3
    }  # fmt: skip


def test_beams_grow_with_the_collection_up_to_a_limit() -> None:
    assert [beams_for(200, n) for n in (0, 7_000, 10_000, 80_000, 10_000_000)] == [
        200, 200, 200, 400, 2_000,
    ]  # fmt: skip
    assert beams_for(2_500, 10**9) == 2_500
