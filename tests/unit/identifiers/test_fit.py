"""Laws of fitting on many vectors: what is measured on a part holds for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cart_qdrant.arrays.vectors import unique_ratio
from cart_qdrant.identifiers import codec as identifiers
from cart_qdrant.identifiers import fit as fit_many
from cart_qdrant.identifiers import quantizer
from cart_qdrant.identifiers.codec import IdentifierConfig, QuantizerSize, fit_codec, fit_quantizer
from cart_qdrant.identifiers.fit import ManyFit, distinct_rows
from cart_qdrant.identifiers.quantizer import Quantizer


def families(n: int, dim: int = 24, seed: int = 0) -> Any:
    """Unit vectors around 40 centres."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(40, dim))
    x = (centres[rng.integers(0, 40, n)] + 0.7 * rng.normal(size=(n, dim))).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts and blocks of thousands, so that some thousand vectors are many."""
    monkeypatch.setattr(identifiers, "LEARNED", 1_000)
    monkeypatch.setattr(fit_many, "SAMPLE", 1_500)
    monkeypatch.setattr(fit_many, "HELD", 1_500)
    monkeypatch.setattr(fit_many, "BLOCK", 700)


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0, 2.5]), min_size=2, max_size=2), max_size=30))
def test_distinct_rows_are_the_first_of_their_kind(rows: list[list[float]]) -> None:
    x = np.asarray(rows, dtype=np.float32).reshape(-1, 2)
    _, first = np.unique(x, axis=0, return_index=True)
    assert distinct_rows(x).tolist() == sorted(first.tolist())


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("size", [(64, 2, 2), (64, 4, 3), (256, 16, 2)])
def test_u_and_error_of_whole_clusters_are_those_of_all(size: tuple[int, int, int]) -> None:
    x = families(6_000)
    q, u = ManyFit(x, limit=100_000).fit(*size)
    codes = q.encode(x)
    assert u == pytest.approx(unique_ratio(codes), abs=0.03)
    assert q.error == pytest.approx(q.relative_error(x, codes), rel=0.05)


@pytest.mark.usefixtures("small")
def test_u_is_that_of_all_also_where_a_sample_places_the_clusters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fit_many, "PER_CLUSTER", 20)
    x = families(6_000)
    q, u = ManyFit(x, limit=500).fit(64, 4, 3)
    assert u == pytest.approx(unique_ratio(q.encode(x)), abs=0.03)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("metric", [False, True])
def test_it_is_as_good_as_fitting_on_all(metric: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x, rng = families(6_000), np.random.default_rng(0)
    root = (np.eye(24) + rng.normal(size=(24, 24)) / 20).astype(np.float32) if metric else None
    many = fit_quantizer(x, QuantizerSize(128, 16, 3), metric_DD=root)
    monkeypatch.setattr(identifiers, "LEARNED", 10_000)
    few = fit_quantizer(x, QuantizerSize(128, 16, 3), metric_DD=root)
    other = families(2_000, seed=1)  # of the same kind, not seen
    assert many.relative_error(other) < 1.03 * few.relative_error(other)
    assert unique_ratio(many.encode(x)) > unique_ratio(few.encode(x)) - 0.01
    assert many.fitted_on == 6_000 and many.method == "rkmeans"


@pytest.mark.usefixtures("small")
def test_seed_decides_and_a_file_is_as_good_as_memory(tmp_path: Path) -> None:
    x = families(3_000)
    np.save(tmp_path / "x.npy", x, allow_pickle=False)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r", allow_pickle=False)
    one, again, other = (
        fit_codec({"s": y}, IdentifierConfig(method="rkmeans", seed=seed)).quantizers["s"]
        for y, seed in ((x, 0), (mapped, 0), (x, 1))
    )
    np.testing.assert_array_equal(one.centers_KD, again.centers_KD)
    np.testing.assert_array_equal(one.books_MVD, again.books_MVD)
    assert one.error == again.error and (one.books_MVD[0] != other.books_MVD[0]).any()


@pytest.mark.usefixtures("small")
def test_more_levels_go_on_from_fewer() -> None:
    fit = ManyFit(families(3_000), limit=100_000)
    few, more = fit.fit(32, 8, 2)[0], fit.fit(32, 8, 4)[0]
    np.testing.assert_array_equal(few.books_MVD, more.books_MVD[:2])
    np.testing.assert_array_equal(few.centers_KD, more.centers_KD)
    assert more.error < few.error
    fewer = fit.fit(32, 8, 2)[0]  # after more
    np.testing.assert_array_equal(few.books_MVD, fewer.books_MVD)


@pytest.mark.usefixtures("small")
def test_copies_do_not_count_against_the_size() -> None:
    x = families(1_500)
    x = np.concatenate([x, x[:700], np.repeat(x[:1], 2_000, axis=0)])
    codec = fit_codec({"s": x}, IdentifierConfig(method="rkmeans"))
    q = codec.quantizers["s"]
    assert len(np.unique(q.encode(x), axis=0)) >= 0.95 * 1_500
    assert q.fitted_on == len(x)


@pytest.mark.usefixtures("small")
def test_many_and_few_get_the_same_number_of_levels() -> None:
    vectors = {"many": families(3_000), "few": families(200)}
    vectors["few"][100:, 3:] *= 1e-3  # crowded: it asks for more
    codec = fit_codec(vectors, IdentifierConfig(method="rkmeans", target_unique_ratio=0.999))
    shapes = {s: q.books_MVD.shape[0] for s, q in codec.quantizers.items()}
    assert len(set(shapes.values())) == 1
    codes = {s: q.encode(vectors[s])[:, 0] for s, q in codec.quantizers.items()}
    assert not set(codes["many"].tolist()) & set(codes["few"].tolist())


@pytest.mark.usefixtures("small")
def test_learned_books_where_they_are_asked_for() -> None:
    x = families(1_200)
    codec = fit_codec({"s": x}, IdentifierConfig(method="rvq"))
    q = codec.quantizers["s"]
    alone = Quantizer(q.centers_KD, q.books_MVD[:, :1] * 0)
    assert q.method == "rvq" and q.error < 0.9 * alone.relative_error(x)


@pytest.mark.usefixtures("small")
def test_many_centres_are_grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (quantizer, fit_many, identifiers):
        monkeypatch.setattr(module, "GROUPED", 16)
    x = families(3_000)
    q = fit_codec({"s": x}, IdentifierConfig(method="rkmeans")).quantizers["s"]
    assert 32 < len(q.centers_KD) <= 64  # a power of two under N / 24, but for what is rounded
    assert q.groups is not None and q.fitted_on == 3_000
    assert unique_ratio(q.encode(x)) >= 0.9
