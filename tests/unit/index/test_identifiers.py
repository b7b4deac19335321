"""Laws of code books and counters."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cart_qdrant.errors import ConfigError, MismatchError
from cart_qdrant.index.identifiers import (
    Codec,
    Counters,
    IdentifierConfig,
    Quantizer,
    fit_codec,
    fit_quantizer,
    level_reports,
    unique_ratio,
)

FloatArray = npt.NDArray[np.float32]


def unit(n: int, d: int = 8, seed: int = 0) -> FloatArray:
    x_ND = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    return x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)


def quantizer(seed: int, *, k: int = 3, v: int = 4, m: int = 2, offset: int = 0) -> Quantizer:
    rng = np.random.default_rng(seed)
    return Quantizer(
        rng.standard_normal((k, 8)).astype(np.float32),
        rng.standard_normal((m, v, 8)).astype(np.float32),
        offset,
    )


@given(st.integers(0, 50), st.integers(0, 2**16), st.integers(0, 100))
def test_encode_takes_the_nearest_code_of_each_level(n: int, seed: int, offset: int) -> None:
    q = quantizer(seed, offset=offset)
    x_ND = unit(n, seed=seed + 1)
    codes = q.encode(x_ND)
    assert codes.shape == (n, q.levels) == (n, 3)
    rest = x_ND.astype(np.float64)
    for level, book in enumerate([q.centers_KD, *q.books_MVD]):
        chosen = codes[:, level] - (offset if level == 0 else 0)
        distances = ((rest[:, None] - book[None].astype(np.float64)) ** 2).sum(axis=2)
        mine = distances[np.arange(n), chosen]
        assert (mine <= distances.min(axis=1) + 1e-5).all()
        rest = rest - book[chosen]
    np.testing.assert_allclose(x_ND - q.decode(codes), rest, atol=1e-5)


def test_a_metric_decides_which_code_is_nearest() -> None:
    centers = np.array([[1, 0], [0, 1]], dtype=np.float32)
    books = np.zeros((1, 1, 2), dtype=np.float32)
    x = np.array([[0.6, 0.55]], dtype=np.float32)
    assert Quantizer(centers, books).encode(x)[0, 0] == 0
    along_second = np.diag([0.1, 1.0]).astype(np.float32)
    assert Quantizer(centers, books, metric_DD=along_second).encode(x)[0, 0] == 1


def test_level_scores_sum_to_the_product_with_the_approximation() -> None:
    q = quantizer(3)
    x, query = unit(20, seed=4), unit(5, seed=5)
    codes = q.encode(x)
    scores = q.level_scores(query)
    total = sum(scores[level][:, codes[:, level]] for level in range(q.levels))
    np.testing.assert_allclose(total, query @ q.decode(codes).T, atol=1e-5)


def test_encoding_another_width_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"5 wide.*8"):
        quantizer(0).encode(unit(2, d=5))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=60), st.integers(0, 60))
def test_counters_make_identifiers_unique(codes: list[tuple[int, int]], cut: int) -> None:
    rows = np.asarray(codes, dtype=np.int32).reshape(-1, 2)
    counters = Counters()
    # In two calls: counters go on where the last call stopped.
    u_N = np.concatenate([counters.assign(rows[:cut]), counters.assign(rows[cut:])])
    whole = {(*row, int(u)) for row, u in zip(codes, u_N, strict=True)}
    assert len(whole) == len(codes)
    for row in set(codes):
        assert sorted(u for *c, u in whole if tuple(c) == row) == list(range(codes.count(row)))


@settings(max_examples=20)
@given(st.booleans(), st.integers(0, 1000))
def test_codec_round_trip(with_metric: bool, seed: int) -> None:
    metric = np.eye(8, dtype=np.float32) * 2 if with_metric else None
    a, b = quantizer(seed), quantizer(seed + 1, offset=3)
    a = Quantizer(a.centers_KD, a.books_MVD, 0, metric, 0.25, 7, "rvq")
    codec = Codec({"visual": a, "audio": b})
    again = Codec.from_arrays(codec.to_arrays(), codec.to_meta())
    assert (again.levels, again.coarse, again.codes) == (3, 6, 4)
    for space, q in codec.quantizers.items():
        other = again.quantizers[space]
        np.testing.assert_array_equal(q.encode(unit(9)), other.encode(unit(9)))
        assert (q.offset, q.error, q.fitted_on, q.method) == (
            other.offset,
            other.error,
            other.fitted_on,
            other.method,
        )


@pytest.mark.parametrize("n", [1, 2, 3, 20, 300])
def test_fit_from_one_item_up(n: int) -> None:
    codec = fit_codec({"visual": unit(n)})
    q = codec.quantizers["visual"]
    codes = q.encode(unit(n))
    assert codes.min() >= 0 and q.fitted_on == n
    assert (codes < [len(q.centers_KD), *[q.books_MVD.shape[1]] * (q.levels - 1)]).all()
    if n >= 20:
        assert unique_ratio(codes) >= 0.95


def test_spaces_share_no_cluster_and_have_equal_levels() -> None:
    vectors = {"visual": unit(300), "audio": unit(5, seed=1)}
    codec = fit_codec(vectors)
    codes = {space: codec.quantizers[space].encode(x) for space, x in vectors.items()}
    assert codes["visual"].shape[1] == codes["audio"].shape[1] == codec.levels
    assert not set(codes["visual"][:, 0].tolist()) & set(codes["audio"][:, 0].tolist())


def test_copies_do_not_ask_for_larger_books() -> None:
    many_copies = np.repeat(unit(10), 20, axis=0)
    q = fit_codec({"visual": many_copies}).quantizers["visual"]
    assert len(q.centers_KD) <= 10
    assert unique_ratio(q.encode(unit(10))) >= 0.9


@pytest.mark.parametrize("method", ["rkmeans", "rvq"])
def test_more_levels_approximate_better(method: str) -> None:
    x = unit(400)
    errors = [
        fit_quantizer(x, k=8, v=8, m=m, method=method, seed=0).error  # type: ignore[arg-type]
        for m in (1, 2, 3)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.8 * errors[0]


def test_fitting_twice_gives_the_same_books() -> None:
    one, two = (fit_codec({"visual": unit(200)}).quantizers["visual"] for _ in range(2))
    np.testing.assert_array_equal(one.centers_KD, two.centers_KD)
    np.testing.assert_array_equal(one.books_MVD, two.books_MVD)


def test_level_reports() -> None:
    even, lone = level_reports(np.array([[0, 1], [1, 1], [2, 1], [3, 1]], np.int32), [4, 3])
    assert (even.used, even.dead, even.entropy) == (4, 0, pytest.approx(1.0))
    assert (lone.used, lone.dead, lone.entropy) == (1, 2, pytest.approx(0.0))


def test_configuration_is_checked() -> None:
    with pytest.raises(ConfigError, match="target_u"):
        IdentifierConfig(target_u=0)
    with pytest.raises(ConfigError, match="all three"):
        IdentifierConfig(coarse=4)
