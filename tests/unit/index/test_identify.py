"""Identifiers in an index: every point has one of its own, and the tree holds exactly those."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import models

from cart_qdrant.index import identify
from cart_qdrant.index.identifiers import IdentifierConfig, fit_codec
from cart_qdrant.index.identify import (
    adopt,
    assign_new,
    check,
    encode,
    load_codec,
    load_trie,
    prepare,
    read_vectors,
    remove_stale,
    renew,
)
from cart_qdrant.index.library import Library
from cart_qdrant.index.store import MEDIA
from cart_qdrant.persistence import Artifact, GeneratorInfo
from cart_qdrant.records import Identifier, Modality, Segment
from tests.conftest import points

Open = Callable[..., Library]
DIM = 48


@pytest.fixture
def library(tmp_path: Path, open_library: Open) -> Library:
    return open_library(tmp_path / ".cartq")


@pytest.fixture(autouse=True)
def cheap_books(monkeypatch: pytest.MonkeyPatch) -> None:
    """Residual k-means alone; the learned quantiser has tests of its own and takes seconds."""
    plain = IdentifierConfig(method="rkmeans")
    monkeypatch.setattr(
        identify, "fit_codec", lambda vectors, config=None: fit_codec(vectors, config or plain)
    )


def unit(count: int, seed: int = 0) -> Any:
    x_ND = np.random.default_rng(seed).standard_normal((count, DIM))
    return x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)


def add(library: Library, x_ND: Any, *, first: int = 0, kind: Modality = Modality.IMAGE) -> None:
    made = []
    for n, x in enumerate(x_ND, start=first):
        segment = Segment(f"{kind}-{n}", kind)
        payload = {"path": segment.path, "modality": str(kind), "hash": "x"}
        made.append(models.PointStruct(id=segment.id, vector={MEDIA: x.tolist()}, payload=payload))
    library.store.upsert(made)


def identifiers(library: Library) -> dict[str, Identifier]:
    info = library.manifest.identifiers
    assert info is not None
    found = points(library).items()
    return {i: Identifier.from_payload(p[info.field]) for i, p in found if info.field in p}


def assert_in_step(library: Library, items: int) -> None:
    found = identifiers(library)
    rows = sorted([*one.codes, one.u] for one in found.values())
    trie, info, codec = load_trie(library), library.manifest.identifiers, load_codec(library)
    assert trie is not None and info is not None and codec is not None
    assert len(found) == items == info.count
    assert len({tuple(row) for row in rows}) == items
    assert trie.rows().tolist() == rows
    vectors = read_vectors(library)
    codes = encode(codec, vectors.x_ND, vectors.spaces)
    assert [list(found[i].codes) for i in vectors.ids] == codes.tolist()


def train(library: Library) -> None:
    """As if a generator had been trained."""
    generator = GeneratorInfo(version=1, folder=Artifact("generator-1", "x"), identifiers=1)
    library.put(replace(library.manifest, generator=generator))


def test_no_point(library: Library) -> None:
    assert renew(library) is None and assign_new(library) == 0
    assert library.manifest.identifiers is None
    assert check(library) is None and load_codec(library) is None and load_trie(library) is None


@pytest.mark.parametrize("count", [1, 2, 20, 150])
def test_first_identifiers(library: Library, count: int) -> None:
    add(library, unit(count))
    assign_new(library)
    assert_in_step(library, count)
    health = check(library)
    assert health is not None and health.items == count
    if count >= 20:
        assert health.passed and health.U >= 0.95
    else:
        assert any("mean little" in line for line in health.remarks)


def test_new_points_get_the_next_counters(library: Library) -> None:
    x_ND = unit(40)
    add(library, x_ND)
    assign_new(library)
    before = identifiers(library)
    add(library, x_ND[:10], first=40)  # copies: the codes are taken
    assert assign_new(library) == 0
    assert_in_step(library, 50)
    after = identifiers(library)
    assert {i: after[i] for i in before} == before
    health = check(library)
    assert health is not None and health.duplicates == 10 and health.clashes >= 10


def test_a_second_call_writes_nothing(library: Library) -> None:
    add(library, unit(30))
    assign_new(library)
    manifest, stored = library.manifest, points(library)
    assign_new(library)
    assert library.manifest == manifest and points(library) == stored


def test_the_tree_follows_deletions(library: Library) -> None:
    add(library, unit(30))
    assign_new(library)
    library.store.delete([Segment(f"image-{n}", Modality.IMAGE).id for n in range(12)])
    assign_new(library)
    assert_in_step(library, 18)


def test_the_tree_follows_a_run_killed_before_it_was_written(library: Library) -> None:
    add(library, unit(30))
    assign_new(library)
    old = library.manifest
    add(library, unit(5, seed=1), first=30)
    assign_new(library)
    library.put(old)  # as if killed before the manifest was written
    assign_new(library)
    assert_in_step(library, 35)


def test_renewal_writes_a_new_field_and_the_old_one_goes_later(library: Library) -> None:
    add(library, unit(30))
    assign_new(library)
    renew(library)
    info = library.manifest.identifiers
    assert info is not None and (info.version, info.field) == (2, "cart_2")
    assert_in_step(library, 30)
    # Who has the old manifest open still finds what it names.
    assert all("cart" in payload for payload in points(library).values())
    remove_stale(library)
    assert library.manifest.stale_fields == []
    assert not any("cart" in payload for payload in points(library).values())
    renew(library)
    renew(library)
    remove_stale(library)
    assert_in_step(library, 30)
    fields = {key for payload in points(library).values() for key in payload if "cart" in key}
    assert fields == {"cart_4"}


def test_what_is_prepared_is_not_in_force(library: Library) -> None:
    add(library, unit(30))
    assign_new(library)
    before = library.manifest
    vectors = read_vectors(library)
    config = IdentifierConfig(coarse=3, codes=3, levels=2)
    info = prepare(library, vectors, fit_codec(vectors.by_space(), config))
    assert library.manifest == before == library.folder.read()
    assert_in_step(library, 30)
    adopt(library, info)
    assert library.manifest.identifiers == info and info.levels == 3
    assert_in_step(library, 30)


def test_adopting_drops_a_generator_of_other_identifiers(library: Library) -> None:
    add(library, unit(30))
    assign_new(library)
    train(library)
    renew(library)
    assert library.manifest.generator is None


def test_points_of_others_are_left_alone(library: Library) -> None:
    add(library, unit(20))
    foreign = [str(uuid.uuid4()) for _ in range(3)]
    library.store.upsert(
        [
            models.PointStruct(id=foreign[0], vector={MEDIA: [1.0] * DIM}, payload={"a": 1}),
            models.PointStruct(id=foreign[1], vector={}, payload={}),
            models.PointStruct(id=foreign[2], vector={}, payload={"path": "x", "modality": "?"}),
        ]
    )
    before = {i: points(library)[i] for i in foreign}
    assign_new(library)
    assert_in_step(library, 20)
    renew(library)
    assert_in_step(library, 20)
    assert {i: points(library)[i] for i in foreign} == before
    health = check(library)
    assert health is not None and health.items == 20 and health.passed


def test_a_new_space_gets_books_of_its_own(library: Library) -> None:
    add(library, unit(20))
    assign_new(library)
    add(library, unit(5, seed=1), kind=Modality.AUDIO)
    assert assign_new(library) == 0
    assert_in_step(library, 25)
    codec = load_codec(library)
    assert codec is not None and set(codec.quantizers) == {"visual", "audio"}


def test_a_new_space_does_not_cost_a_trained_generator(library: Library) -> None:
    add(library, unit(20))
    assign_new(library)
    train(library)
    add(library, unit(5, seed=1), kind=Modality.AUDIO)
    assert assign_new(library) == 5
    assert library.manifest.generator is not None
    assert len(identifiers(library)) == 20
    health = check(library)
    assert health is not None and any("'audio' has 5 items" in p for p in health.problems)


def test_growth_and_drift_are_noticed(library: Library) -> None:
    rng = np.random.default_rng(0)
    narrow = rng.standard_normal((20, DIM)) * 0.05 + 1
    add(library, narrow / np.linalg.norm(narrow, axis=1, keepdims=True))
    assign_new(library)
    add(library, unit(30), first=20)
    assign_new(library)
    health = check(library)
    assert health is not None and any("drift" in line for line in health.problems)
    add(library, unit(60, seed=1), first=50)
    assign_new(library)
    health = check(library)
    assert health is not None and any("fitted on 20 items" in line for line in health.problems)
    renew(library)
    health = check(library)
    assert health is not None and health.passed


def test_points_without_an_identifier_are_noticed(library: Library) -> None:
    add(library, unit(20))
    assign_new(library)
    add(library, unit(1, seed=1), first=20)
    health = check(library)
    assert health is not None and any("21 items, 20 identifiers" in p for p in health.problems)


def test_rows_of_an_unknown_space_have_no_code() -> None:
    x_ND = unit(4).astype(np.float32)
    codes = encode(fit_codec({"visual": x_ND}), x_ND, np.array(["visual", "audio", "visual", ""]))
    assert (codes[[1, 3]] == -1).all() and (codes[[0, 2]] >= 0).all()
