"""Laws of editing tree and table: the same, to the last bit, as building both of what is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cart_qdrant.arrays.point_ids import KEY_BYTES
from cart_qdrant.identifiers.item_edits import Items
from cart_qdrant.identifiers.item_table import ItemTable
from cart_qdrant.identifiers.trie import Trie
from tests.unit.identifiers.made_trees import assert_same

LEVELS = 3
HUBS = (float("nan"), 0.0, 0.25, -1.5)
Item = tuple[tuple[int, ...], float, int, int, float]
"""Identifier, hubness, modality, file, hubness of the caption."""


def items_of(items: dict[int, Item]) -> Items:
    rows, hubs, modalities, files, captions = (
        zip(*items.values(), strict=True) if items else [()] * 5
    )
    keys = b"".join(key.to_bytes(KEY_BYTES, "big") for key in items)
    return Items(
        np.frombuffer(keys, dtype=f"S{KEY_BYTES}"),
        np.asarray(rows, np.int32).reshape(-1, LEVELS), np.asarray(hubs, np.float32),
        np.asarray(modalities, np.uint8), np.asarray(files, np.uint64),
        np.asarray(captions, np.float32),
    )  # fmt: skip


def keys_of(keys: Sequence[int]) -> np.ndarray:
    return items_of(dict.fromkeys(keys, ((0,) * LEVELS, 0.0, 0, 0, 0.0))).key_C


def assert_same_parts(one: tuple[Trie, ItemTable], other: tuple[Trie, ItemTable]) -> None:
    assert_same(one[0], other[0])
    for field in fields(ItemTable):
        a, b = getattr(one[1], field.name), getattr(other[1], field.name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[list[int], dict[int, Item]]]:
    """Steps of removed keys and of items that come or are replaced; no two items ever share an
    identifier at one time."""
    wide = draw(st.sampled_from([3, 300, 70_000]))
    steps = []
    held: dict[int, Item] = {}
    for _ in range(draw(st.integers(1, 5))):
        gone = draw(st.lists(st.integers(0, 12), max_size=8))
        held = {key: item for key, item in held.items() if key not in gone}
        come: dict[int, Item] = {}
        for key in draw(st.lists(st.integers(0, 12), max_size=8, unique=True)):
            held.pop(key, None)
            row = draw(st.tuples(*[st.integers(0, wide)] * LEVELS))
            if all(row != other[0] for other in (*held.values(), *come.values())):
                features = st.tuples(
                    st.sampled_from(HUBS), st.integers(0, 3), st.integers(0, 2**64 - 1),
                    st.sampled_from(HUBS),
                )  # fmt: skip
                come[key] = (row, *draw(features))
            else:
                gone.append(key)
        held |= come
        steps.append((gone, come))
    return steps


@given(history=histories())
def test_parts_that_were_edited_are_those_that_were_built(
    history: list[tuple[list[int], dict[int, Item]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    held: dict[int, Item] = {}
    parts = items_of(held).build()
    for gone, come in history:
        held = {key: item for key, item in held.items() if key not in gone} | come
        edited = items_of(come).replace_in(*parts, keys_of(gone))
        assert edited is not None
        parts = edited
        assert_same_parts(parts, items_of(held).build())
    folder = tmp_path_factory.getbasetemp()
    saved = []
    for part in (*parts, *items_of(held).build()):
        path: Path = folder / "part"
        part.save(path)
        saved.append(path.read_bytes())
    assert saved[:2] == saved[2:]


def test_items_that_share_an_identifier_or_a_key_are_not_edited() -> None:
    one: Item = ((0, 0, 0), 0.0, 0, 0, 0.0)
    two: Item = ((0, 0, 1), 0.0, 0, 0, 0.0)
    both = items_of({1: one, 2: one})
    assert items_of({3: two}).replace_in(*both.build(), keys_of([1])) is None
    parts = items_of({1: one, 2: two}).build()
    assert items_of({3: two}).replace_in(*parts, keys_of([1])) is None
    assert items_of({3: two}).replace_in(*parts, keys_of([2])) is not None


@given(histories())
def test_identifiers_are_read_by_their_positions(
    history: list[tuple[list[int], dict[int, Item]]],
) -> None:
    items = items_of(history[-1][1])
    trie, table = items.build()
    rows = table.rows(items.key_C)
    np.testing.assert_array_equal(trie.rows_at(table.leaf_N[rows]), items.row_CL)
