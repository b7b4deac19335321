"""Decoding in identifier spaces: items with captions and items without one, of one media space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cart_qdrant.generator.beam_search import Beams, positions
from cart_qdrant.generator.decode import IdentifierDecoder
from cart_qdrant.generator.prior import NodeBonus
from cart_qdrant.identifiers.codec import DisambiguationTokens
from cart_qdrant.identifiers.parts import captioned
from cart_qdrant.identifiers.quantizer import Codec
from cart_qdrant.identifiers.trie import Trie
from tests.unit.identifiers.made_codecs import BOTH, joint_codec

N, SCALE = 40, 20.0


def unit(seed: int, n: int, dim: int) -> Any:
    x = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


X, M = unit(0, N, 8), unit(1, N, 6)
CODEC = joint_codec(X, M)


def rows_of(with_captions: Sequence[bool]) -> Any:
    """Whole identifiers of the items."""
    asked = np.asarray(with_captions)
    codes = CODEC.quantizers["visual"].encode(X)
    codes[asked] = CODEC.quantizers[captioned("visual")].encode(BOTH.of_items(X, M)[asked])
    return DisambiguationTokens().complete(codes)


def decoder_of(rows: Any, **options: Any) -> IdentifierDecoder:
    return IdentifierDecoder(
        trie=Trie.build(rows), codec=CODEC, scale=SCALE, width=N, gates=[0.0] * 4, **options
    )


def scores_of(beams: Beams, rows: Any) -> Any:
    """Score of each item, NaN where no beam names it."""
    out = np.full(len(rows), np.nan)
    out[beams.items(positions(rows))] = beams.scores_K
    return out


def test_an_item_with_a_caption_is_scored_by_both_its_parts() -> None:
    rows = rows_of([True] * N)
    (found,) = decoder_of(rows).decode({"visual": X[:1]}, caption_BW=M[:1])
    u = BOTH.of_queries(X[:1], M[:1], 14)
    assert u is not None
    wanted = SCALE * CODEC.quantizers[captioned("visual")].decode(rows[:, :-1]) @ u[0]
    np.testing.assert_allclose(scores_of(found, rows), wanted, atol=1e-3)


def test_without_a_text_the_media_part_alone_finds_items_with_captions() -> None:
    rows = rows_of([True] * N)
    (found,) = decoder_of(rows).decode({"visual": X[:1]})
    q = CODEC.quantizers[captioned("visual")]
    wanted = SCALE * BOTH.media * q.decode(rows[:, :-1])[:, 6:] @ X[0]
    np.testing.assert_allclose(scores_of(found, rows), wanted, atol=1e-3)


@pytest.mark.parametrize("with_captions", [[False] * N, [n != 3 for n in range(N)]])
def test_items_without_a_caption_are_found_by_their_media_as_ever(with_captions: Any) -> None:
    rows = rows_of(with_captions)
    (found,) = decoder_of(rows).decode({"visual": X[:1]}, caption_BW=M[:1])
    scores, without = scores_of(found, rows), ~np.asarray(with_captions)
    assert not np.isnan(scores).any()
    alone = SCALE * CODEC.quantizers["visual"].decode(rows[without][:, :-1]) @ X[0]
    np.testing.assert_allclose(np.diff(scores[without]), np.diff(alone), atol=1e-3)


def test_new_items_are_named_no_less_often_than_by_identifiers_of_media_alone() -> None:
    """They compete for beams with one another alone."""
    noise, new = 0.35 * unit(5, N, 8), np.arange(N) % 3 == 0
    queries = (X + noise).astype(np.float32)[new]

    def hits(rows: Any, width: int) -> int:
        decoder = replace(decoder_of(rows), width=width)
        found = decoder.decode({"visual": queries}, caption_BW=M[: len(queries)])
        named = [one.items(positions(rows)) for one in found]
        return sum(n in items for n, items in zip(np.flatnonzero(new), named, strict=True))

    before, now = rows_of([False] * N), rows_of((~new).tolist())
    each = [(hits(before, width), hits(now, width)) for width in (1, 2, 4, 8)]
    assert all(was <= found for was, found in each) and each[0][0] < each[0][1], each


def test_a_few_items_without_a_caption_do_not_stand_before_all_others() -> None:
    rows = rows_of([n != 3 for n in range(N)])
    (found,) = decoder_of(rows).decode({"visual": X[:1]}, caption_BW=M[:1])
    shares = np.exp(scores_of(found, rows))
    assert shares.sum() == pytest.approx(1, abs=1e-4)
    assert shares[3] == pytest.approx(1 / N, abs=1e-4) and shares.argmax() == 0


def test_hubness_counts_as_the_media_vectors_that_it_is_of() -> None:
    trie = Trie.build(rows_of([True] * N), hub_N=np.linspace(0, 1, N))
    decoder = decoder_of(rows_of([True] * N), node_bonus=NodeBonus(trie, 3.0))
    weights = {name: decoder.bonus_in(name).weight for name in CODEC.quantizers}  # type: ignore[union-attr]
    assert weights == {"visual": 3.0, captioned("visual"): pytest.approx(3.0 * BOTH.media)}


def test_a_space_that_a_query_does_not_reach_has_no_scorer() -> None:
    decoder = decoder_of(rows_of([True] * N))
    assert decoder.scorer("visual", {"audio": X[:1]}) is None
    assert decoder.decode({"audio": X[:1]}, caption_BW=M[:1]) == []
    assert decoder.scorer(captioned("visual"), {"visual": X[:1]}, caption_BW=M[:1]) is not None


def test_an_empty_tree_gives_no_beams() -> None:
    empty = IdentifierDecoder(
        trie=Trie.build([], depth=5), codec=Codec(CODEC.quantizers), scale=1.0, width=3,
        gates=[0.0] * 4,
    )  # fmt: skip
    assert empty.decode({"visual": X[:1]}, caption_BW=M[:1]) == []
