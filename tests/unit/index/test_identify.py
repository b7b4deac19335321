"""Identifiers in an index: assigned, renewed, reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import models

from cart_qdrant.arrays import spill as rows
from cart_qdrant.arrays.point_ids import keys_of
from cart_qdrant.errors import MismatchError
from cart_qdrant.files import folder_hash
from cart_qdrant.identifiers.codec import DisambiguationTokens
from cart_qdrant.identifiers.free_tokens import FreeTokens
from cart_qdrant.identifiers.hubness import QueryBank
from cart_qdrant.identifiers.item_table import MODALITIES, file_number
from cart_qdrant.index.changes import Changes
from cart_qdrant.index.health import check
from cart_qdrant.index.identifier_files import load_codec, load_table, load_trie
from cart_qdrant.index.identifier_writes import encode, write_identifiers
from cart_qdrant.index.identify import (
    activate_identifiers,
    assign_new,
    prepare,
    refit,
    remove_stale,
)
from cart_qdrant.index.index import Index
from cart_qdrant.index.manifest import Artifact, GeneratorInfo
from cart_qdrant.index.models import QUERY_BANK
from cart_qdrant.index.points import has_identifier, read_vectors
from cart_qdrant.records import Identifier, Modality, Segment

Open = Callable[..., Index]


def add(index: Index, x_ND: Any, modality: Modality = Modality.IMAGE, name: str = "p") -> None:
    index.store.upsert(
        [
            models.PointStruct(
                id=Segment(f"{name}{n}", modality).id,
                vector={"media": row.tolist()},
                payload={"path": f"{name}{n}", "modality": str(modality), "hash": f"{name}{n}"},
            )
            for n, row in enumerate(x_ND)
        ]
    )


def vectors(n: int, seed: int = 0, dim: int = 48) -> Any:
    x = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def names(index: Index) -> list[Identifier]:
    info = index.manifest.identifiers
    assert info is not None
    found = index.store.scroll(with_payload=[info.field])
    return [Identifier.from_payload((r.payload or {})[info.field]) for r in found]


def assert_in_step(index: Index) -> None:
    trie, info = load_trie(index), index.manifest.identifiers
    assert trie is not None and info is not None
    stored = sorted([*one.codes, one.u] for one in names(index))
    assert trie.rows().tolist() == stored and info.count == len(stored)
    assert len({tuple(row) for row in stored}) == len(stored)
    # What the table says of each point is what its payload says.
    table, records = load_table(index), list(index.store.scroll(has_identifier(info.field)))
    assert table is not None and len(table) == len(records)
    for record, row in zip(records, table.rows(keys_of([r.id for r in records])), strict=True):
        payload = record.payload or {}
        cart = payload[info.field]
        assert trie.rows()[table.leaf_N[row]].tolist() == [*cart["codes"], cart["disambiguation"]]
        assert MODALITIES[table.modality_N[row]] == payload["modality"]
        assert table.file_N[row] == file_number(payload["path"])
        wanted = cart.get("hub", {}).get("caption", np.nan)
        assert table.caption_hub_N[row] == pytest.approx(wanted, nan_ok=True)


@pytest.fixture
def index(tmp_path: Path, open_index: Open) -> Index:
    return open_index(tmp_path / ".cartq")


def test_vectors_come_back_in_order_of_id(index: Index) -> None:
    x = vectors(30)
    add(index, x)
    add(index, x[:3], Modality.AUDIO, "s")
    found = read_vectors(index)
    assert found.ids == sorted(found.ids) and len(found.ids) == 33
    by_id = {Segment(f"p{n}", Modality.IMAGE).id: row for n, row in enumerate(x)}
    for i, row, space in zip(found.ids, found.x_ND, found.spaces, strict=True):
        assert (space == "visual") == (i in by_id)
        if i in by_id:
            np.testing.assert_allclose(row, by_id[i], atol=1e-6)
    assert {s: len(v) for s, v in found.by_space().items()} == {"visual": 30, "audio": 3}


def test_a_tree_of_another_size_is_refused(index: Index) -> None:
    add(index, vectors(30))
    info = refit(index)
    assert info is not None
    index.put(replace(index.manifest, identifiers=replace(info, count=29)))
    with pytest.raises(MismatchError, match="holds 30 identifiers, but the manifest says 29"):
        load_trie(index)


def test_vectors_in_a_file_are_named_as_those_in_memory(
    tmp_path: Path, open_index: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, stored = [], []
    for name, limit in (("memory", rows.IN_MEMORY), ("file", 0)):
        monkeypatch.setattr(rows, "IN_MEMORY", limit)
        with open_index(tmp_path / name / ".cartq") as index:
            add(index, vectors(60))
            add(index, vectors(20, seed=4), Modality.AUDIO, "s")
            found.append(read_vectors(index))
            assert found[-1].x_ND.flags.writeable == (name == "memory")
            refit(index)
            health = check(index)
            assert health is not None and health.passed, health
            stored.append(names(index))
            left = index.folder.work
            assert not left.exists() or not list(left.iterdir())
    assert stored[0] == stored[1] and found[0].ids == found[1].ids
    for space, x in found[0].by_space().items():
        np.testing.assert_array_equal(x, found[1].by_space()[space])


def test_empty_index(index: Index) -> None:
    assert read_vectors(index).ids == []
    assert refit(index) is None and assign_new(index) == 0
    assert check(index) is None and load_codec(index) is None and load_trie(index) is None


def test_new_items_are_named_by_the_frozen_books(index: Index) -> None:
    add(index, vectors(40))
    info = refit(index)
    assert info is not None and info.field == "cart"
    before = {one.id for one in names(index)}
    add(index, vectors(10, seed=1), name="new")
    add(index, vectors(1), name="copy")  # the vector of p0: the next counter
    assert assign_new(index) == 0
    assert_in_step(index)
    after = index.manifest.identifiers
    assert after is not None and after.books == info.books and after.field == "cart"
    assert before < {one.id for one in names(index)}
    codec = load_codec(index)
    assert codec is not None
    found = read_vectors(index)
    codes = encode(codec, found.x_ND, found.spaces)
    assert sorted(map(tuple, codes.tolist())) == sorted(one.codes for one in names(index))


def test_tree_is_mended_from_the_payload(index: Index) -> None:
    add(index, vectors(20))
    refit(index)
    index.store.delete([Segment("p0", Modality.IMAGE).id])
    assign_new(index, rebuild=True)
    assert_in_step(index)


def test_interrupted_assignment_goes_on(index: Index) -> None:
    add(index, vectors(20))
    refit(index)
    same = np.repeat(vectors(1), 6, axis=0)
    add(index, same, name="copy")
    codec, info = load_codec(index), index.manifest.identifiers
    assert codec is not None and info is not None
    trie = load_trie(index)
    assert trie is not None
    ids = [Segment(f"copy{n}", Modality.IMAGE).id for n in range(3)]
    codes = encode(codec, same[:3], np.array(["visual"] * 3))
    rows = DisambiguationTokens(FreeTokens(trie)).complete(codes)
    index.changes.add(ids)
    write_identifiers(index.store, info.field, ids, rows)
    # Killed here: three of six are named, the tree knows none.
    index.changes = Changes(index.folder.work)
    assert index.changes.unknown
    assign_new(index)
    assert_in_step(index)


def test_unknown_space_is_fitted_unless_a_generator_depends_on_the_books(index: Index) -> None:
    add(index, vectors(12))
    refit(index)
    generator = pretend_trained(index, vectors(5))
    add(index, vectors(2, seed=5), Modality.AUDIO, "s")
    assert assign_new(index) == 2
    assert index.manifest.generator == generator
    health = check(index)
    assert health is not None and not health.passed
    assert any("audio" in line and "cartq train" in line for line in health.problems)
    index.put(replace(index.manifest, generator=None))
    assert assign_new(index) == 0
    assert_in_step(index)


def pretend_trained(index: Index, queries_QD: Any) -> GeneratorInfo:
    """Put a generator in force that has nothing but its queries."""
    folder = index.folder.root / "generator-1"
    folder.mkdir()
    no_one = {"media.visual": np.zeros(len(queries_QD), np.uint64)}
    QueryBank({"media.visual": queries_QD}, {"media.visual": 10.0}, no_one).save(
        folder / QUERY_BANK
    )
    generator = GeneratorInfo(
        version=1, folder=Artifact(folder.name, folder_hash(folder)), identifiers=1
    )
    index.put(replace(index.manifest, generator=generator))
    return generator


def hubs(index: Index) -> dict[str, float]:
    info = index.manifest.identifiers
    assert info is not None
    payloads = {str(r.id): (r.payload or {})[info.field] for r in index.store.scroll()}
    return {one: p["hub"]["media"] for one, p in payloads.items() if p.get("hub")}


def test_points_that_come_after_training_get_their_hubness(index: Index) -> None:
    add(index, vectors(12))
    refit(index)
    trie = load_trie(index)
    assert trie is not None and np.isnan(trie.hub_N).all() and not hubs(index)
    pretend_trained(index, vectors(5, seed=3))
    add(index, vectors(4, seed=5), name="new")
    assign_new(index, rebuild=True)  # the older points have none either: training would write it
    assert_in_step(index)
    bank, found, info = index.query_bank(), read_vectors(index), index.manifest.identifiers
    assert bank is not None and info is not None
    wanted = bank.hubness(found.x_ND, "media.visual", found.file_N)
    stored = hubs(index)
    assert [stored[one] for one in found.ids] == pytest.approx(wanted.tolist(), abs=1e-5)
    # The tree knows them, at their identifiers.
    trie = load_trie(index)
    assert trie is not None
    codes = {str(r.id): (r.payload or {})[info.field] for r in index.store.scroll()}
    by_row = {
        (*codes[one]["codes"], codes[one]["disambiguation"]): stored[one] for one in found.ids
    }
    assert trie.hub_N.tolist() == pytest.approx([by_row[tuple(r)] for r in trie.rows().tolist()])


def test_flip_is_one_step(index: Index) -> None:
    add(index, vectors(20))
    first = refit(index)
    old = {one.id for one in names(index)}
    codec = load_codec(index)
    assert codec is not None and first is not None
    info = prepare(index, read_vectors(index), codec).info
    assert info.field == "cart_2"
    # Before: the old one in force and whole.
    assert index.manifest.identifiers == first and {o.id for o in names(index)} == old
    activate_identifiers(index, info)
    # After: the new one, and the old field is still there for who has the old manifest open.
    assert index.manifest.identifiers == info
    assert_in_step(index)
    assert all("cart" in (r.payload or {}) for r in index.store.scroll())
    remove_stale(index)
    assert not any("cart" in (r.payload or {}) for r in index.store.scroll())
    assert_in_step(index)
    remove_stale(index)  # nothing left to do


def test_check_passes_a_good_index_and_names_what_is_wrong(index: Index) -> None:
    add(index, vectors(60))
    refit(index)
    health = check(index)
    assert health is not None and health.passed, health
    assert (health.items, health.duplicates, health.fitted_on) == (60, 0, {"visual": 60})
    assert 0 < health.error["visual"] < 1 and len(health.levels) >= 2
    add(index, vectors(3, seed=9), name="unnamed")
    health = check(index)
    assert health is not None and any("63 items, 60 identifiers" in p for p in health.problems)
    add(index, vectors(260, seed=10), name="many")
    assign_new(index)
    health = check(index)
    assert health is not None and any("fitted on 60" in p for p in health.problems)


def test_check_finds_drift(index: Index) -> None:
    rng = np.random.default_rng(0)
    narrow = np.ones((40, 48)) + rng.normal(size=(40, 48)) / 10
    add(index, narrow.astype(np.float32))
    refit(index)
    add(index, vectors(100, seed=3), name="far")
    assign_new(index)
    health = check(index)
    assert health is not None and any("drift" in p for p in health.problems)


def test_check_forgives_copies_and_small_numbers(index: Index) -> None:
    add(index, np.repeat(vectors(4), 3, axis=0))
    refit(index)
    health = check(index)
    assert health is not None and health.duplicates == 8
    assert any("exact copies" in r for r in health.remarks)
    assert any("unreliable" in r for r in health.remarks)
    assert health.passed, health.problems
