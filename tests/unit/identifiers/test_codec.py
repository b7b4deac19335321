"""Laws of identifiers: greedy codes, unique names, exact round trips."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cart_qdrant.arrays.vectors import unique_ratio
from cart_qdrant.errors import ConfigError, MismatchError
from cart_qdrant.identifiers import quantizer
from cart_qdrant.identifiers.codec import (
    DisambiguationTokens,
    IdentifierConfig,
    QuantizerSize,
    fit_codec,
    fit_quantizer,
    level_reports,
)
from cart_qdrant.identifiers.quantizer import GROUPED, Codec, Groups, Quantizer

SEEDS = st.integers(0, 2**31)


def unit(rng: np.random.Generator, n: int, d: int = 8) -> Any:
    x = rng.normal(size=(n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def random_quantizer(rng: np.random.Generator, metric: bool = False) -> Quantizer:
    k, v, m, d = (int(n) for n in rng.integers([1, 1, 1, 2], [6, 6, 4, 9]))
    return Quantizer(
        rng.normal(size=(k, d)).astype(np.float32),
        rng.normal(size=(m, v, d)).astype(np.float32) / 2,
        offset=int(rng.integers(0, 50)),
        metric_DD=(np.eye(d) + rng.normal(size=(d, d)) / 9).astype(np.float32) if metric else None,
    )


@settings(deadline=None)
@given(SEEDS, st.booleans(), st.integers(0, 20))
def test_codes_are_greedy_and_decode_to_their_sum(seed: int, metric: bool, n: int) -> None:
    rng = np.random.default_rng(seed)
    q = random_quantizer(rng, metric)
    x = unit(rng, n, q.dim)
    codes = q.encode(x)
    assert codes.shape == (n, q.levels) and codes.dtype == np.int32
    to = np.eye(q.dim) if q.metric_DD is None else q.metric_DD
    rest = x.astype(np.float64)
    for level, book in enumerate([q.centers_KD, *q.books_MVD]):
        chosen = codes[:, level] - (q.offset if level == 0 else 0)
        distance = np.linalg.norm((rest[:, None] - book[None]) @ to, axis=2)
        took = distance[np.arange(n), chosen]
        np.testing.assert_allclose(took, distance.min(axis=1, initial=np.inf), atol=1e-4)
        rest -= book[chosen]
    np.testing.assert_allclose(q.decode(codes), x - rest, atol=1e-4)
    assert q.relative_error(x, codes) == pytest.approx(
        (rest**2).sum() / max((x**2).sum(), 1e-12), abs=1e-4
    )


def grouped(metric: bool = False) -> Quantizer:
    """A quantiser whose centres are many, by the true path."""
    rng = np.random.default_rng(0)
    x = unit(rng, 9_000, 6)
    root = (np.eye(6) + rng.normal(size=(6, 6)) / 20).astype(np.float32) if metric else None
    return fit_quantizer(x, QuantizerSize(GROUPED + 1, 4, 1), metric_DD=root)


@pytest.mark.parametrize("metric", [False, True])
def test_many_centres_are_searched_by_groups(metric: bool) -> None:
    q = grouped(metric)
    assert q.groups is not None
    first = q.groups.first_G
    assert first[0] == 0 and first[-1] == len(q.centers_KD) and (np.diff(first) > 0).all()
    x = unit(np.random.default_rng(1), 500, 6)
    to = np.eye(6, dtype=np.float32) if q.metric_DD is None else q.metric_DD
    distance = np.linalg.norm((x[:, None] - q.centers_KD[None]) @ to, axis=2)
    assert (q.encode(x)[:, 0] == distance.argmin(axis=1)).mean() > 0.97

    scores = q.level_scores(x[:40])[0]
    alone = np.concatenate([q.level_scores(one[None])[0] for one in x[:40]])
    np.testing.assert_allclose(scores, alone, atol=1e-5)  # also where they are -inf
    seen = np.isfinite(scores)
    assert 0.1 < seen.mean() < 0.9
    exact = x[:40] @ q.centers_KD.T
    np.testing.assert_allclose(scores[seen], exact[seen], atol=1e-5)
    best = np.argsort(-exact, axis=1)[:, :20]
    assert np.take_along_axis(seen, best, axis=1).mean() > 0.97

    again = Codec.from_arrays(Codec({"s": q}).to_arrays(), Codec({"s": q}).to_meta())
    np.testing.assert_array_equal(again.quantizers["s"].encode(x), q.encode(x))
    one_by_one = np.concatenate([q.encode(one[None]) for one in x[:50]])
    np.testing.assert_array_equal(one_by_one, q.encode(x)[:50])


@given(SEEDS)
def test_level_scores_add_up_to_the_product_with_the_approximation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    q = random_quantizer(rng)
    x, query = unit(rng, 5, q.dim), unit(rng, 1, q.dim)
    codes = q.encode(x)
    scores = q.level_scores(query)
    total = scores[0][0, codes[:, 0] - q.offset]
    for level in range(1, q.levels):
        total = total + scores[level][0, codes[:, level]]
    np.testing.assert_allclose(total, q.decode(codes) @ query[0], atol=1e-4)


def test_error_of_many_is_summed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    q = random_quantizer(np.random.default_rng(0))
    x = unit(np.random.default_rng(1), 100, q.dim)
    wanted = q.relative_error(x)
    monkeypatch.setattr(quantizer, "_ERROR_BLOCK", 7)
    assert q.relative_error(x) == pytest.approx(wanted, rel=1e-5)
    assert q.relative_error(x, q.encode(x)) == pytest.approx(wanted, rel=1e-5)


def test_another_width_is_refused() -> None:
    q = random_quantizer(np.random.default_rng(0))
    with pytest.raises(MismatchError, match=f"{q.dim + 1} wide.*{q.dim}"):
        q.encode(np.zeros((1, q.dim + 1), np.float32))


@given(st.lists(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=20), max_size=4))
def test_counters_never_give_an_identifier_twice(batches: list[list[tuple[int, int]]]) -> None:
    counters, seen = DisambiguationTokens(), []
    for batch in batches:
        codes = np.asarray(batch, dtype=np.int32).reshape(-1, 2)
        seen += [(*row, int(u)) for row, u in zip(batch, counters.assign(codes), strict=True)]
    assert len(set(seen)) == len(seen)
    # Dense: counters of a semantic part are 0, 1, 2 ...
    for part in {row[:-1] for row in seen}:
        taken = sorted(row[-1] for row in seen if row[:-1] == part)
        assert taken == list(range(len(taken)))


def test_counters_go_on_from_what_is_taken() -> None:
    counters = DisambiguationTokens({(1, 2): 7})
    assert counters.assign(np.array([[1, 2], [1, 3], [1, 2]], np.int32)).tolist() == [7, 0, 8]


@given(SEEDS)
def test_codec_arrays_round_trip(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = random_quantizer(rng, metric=True)
    codec = Codec({"visual": a, "audio": Quantizer(a.centers_KD, a.books_MVD, 99, None, 0.1, 5)})
    again = Codec.from_arrays(codec.to_arrays(), codec.to_meta())
    x = unit(rng, 7, a.dim)
    for space in ("visual", "audio"):
        one, other = codec.quantizers[space], again.quantizers[space]
        np.testing.assert_array_equal(one.encode(x), other.encode(x))
        assert (one.offset, one.error, one.fitted_on, one.method) == (
            other.offset,
            other.error,
            other.fitted_on,
            other.method,
        )
    assert (codec.levels, codec.coarse, codec.codes) == (again.levels, again.coarse, again.codes)


@given(SEEDS)
def test_groups_of_centres_round_trip(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = random_quantizer(rng)
    first = np.unique([0, 1, len(a.centers_KD)]).astype(np.int32)
    groups = Groups.of(a.centers_KD, first)
    codec = Codec({"visual": replace(a, groups=groups)})
    q = unit(rng, 5, a.dim)
    wanted = codec.quantizers["visual"].level_scores(q)
    again = Codec.from_arrays(codec.to_arrays(), codec.to_meta()).quantizers["visual"]
    for one, other in zip(wanted, again.level_scores(q), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("n", [1, 5, 20, 150])
def test_fit_names_almost_every_item(n: int) -> None:
    rng = np.random.default_rng(n)
    spaces = {"visual": unit(rng, n), "audio": unit(rng, max(1, n // 2))}
    codec = fit_codec(spaces, IdentifierConfig(method="rkmeans"))
    coarse: list[set[int]] = []
    for space, x in spaces.items():
        codes = codec.quantizers[space].encode(x)
        assert codes.shape[1] == codec.levels
        assert codes[:, 0].max() < codec.coarse and codes[:, 1:].max(initial=0) < codec.codes
        assert codec.quantizers[space].fitted_on == len(x)
        assert unique_ratio(codes) >= 0.75
        coarse.append(set(codes[:, 0].tolist()))
    assert coarse[0].isdisjoint(coarse[1])


def test_copies_do_not_count_against_the_size() -> None:
    x = np.repeat(unit(np.random.default_rng(0), 20), 10, axis=0)
    codec = fit_codec({"visual": x}, IdentifierConfig(method="rkmeans"))
    codes = codec.quantizers["visual"].encode(x)
    assert len(np.unique(codes, axis=0)) >= 19


def test_fitting_leaves_the_random_numbers_of_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    before = torch.get_rng_state()
    fit_quantizer(unit(np.random.default_rng(1), 200), QuantizerSize(8, 8, 3), method="rvq")
    assert seeded == []
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("method", ["rkmeans", "rvq"])
def test_fit_is_better_than_the_centres_alone(method: Any) -> None:
    x = unit(np.random.default_rng(1), 200)
    q = fit_quantizer(x, QuantizerSize(8, 8, 3), method=method)
    alone = Quantizer(q.centers_KD, q.books_MVD[:, :1] * 0)
    assert q.error < 0.7 * alone.relative_error(x)
    assert q.error == pytest.approx(q.relative_error(x), abs=1e-5)
    again = fit_quantizer(x, QuantizerSize(8, 8, 3), method=method)
    np.testing.assert_allclose(q.books_MVD, again.books_MVD, atol=1e-5)


def test_the_entropy_of_one_code_is_printed_without_a_minus() -> None:
    (report,) = level_reports(np.zeros((5, 1), np.int32), [4])
    assert json.dumps(round(report.entropy, 4)) == "0.0"


def test_level_reports_count_dead_codes() -> None:
    codes = np.array([[0, 0], [0, 1], [1, 1], [1, 1]], np.int32)
    first, second = level_reports(codes, [2, 8])
    assert (first.used, first.dead, first.entropy) == (2, 0, pytest.approx(1.0))
    assert (second.used, second.dead) == (2, 6) and second.entropy < 0.5


@pytest.mark.parametrize(
    "bad", [{"target_unique_ratio": 0.0}, {"target_unique_ratio": 1.1}, {"coarse": 8}]
)
def test_config_is_checked(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        IdentifierConfig(**bad)
