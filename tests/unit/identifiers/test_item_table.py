"""The table of what ranks items."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cart_qdrant.arrays.point_ids import key_of, keys_of
from cart_qdrant.errors import MismatchError
from cart_qdrant.identifiers.item_table import ItemTable, file_number

IDS = st.one_of(st.uuids(), st.integers(min_value=0, max_value=2**64 - 1))


def table(ids: list[object]) -> ItemTable:
    """Rows that tell the places of their ids."""
    n = np.arange(len(ids))
    return ItemTable.build(keys_of(ids), n, n % 3, n.astype(np.uint64) + 2**63, n / 2)


@given(st.lists(IDS, unique=True), st.lists(IDS))
def test_each_row_is_found_by_its_id_and_nothing_else(
    ids: list[object], other: list[object]
) -> None:
    made = table(ids)
    keys = [key_of(one) for one in ids]
    alone = [keys.count(key) == 1 for key in keys]
    row_N = made.rows(keys_of(ids))
    assert (row_N >= 0).tolist() == alone
    kept = np.flatnonzero(alone)
    np.testing.assert_array_equal(made.leaf_N[row_N[kept]], kept)
    np.testing.assert_array_equal(made.modality_N[row_N[kept]], kept % 3)
    np.testing.assert_array_equal(made.file_N[row_N[kept]], kept.astype(np.uint64) + 2**63)
    np.testing.assert_array_equal(made.caption_hub_N[row_N[kept]], (kept / 2).astype(np.float32))
    unknown = [one for one in other if key_of(one) not in keys]
    assert (made.rows(keys_of(unknown)) == -1).all()


@given(st.lists(st.uuids(), unique=True))
def test_saved_and_loaded_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, ids: list[object]
) -> None:
    made = table(ids)
    path = tmp_path_factory.mktemp("table") / "items.safetensors"
    made.save(path)
    found = ItemTable.load(path)
    for name in ("key_N", "leaf_N", "modality_N", "file_N", "caption_hub_N"):
        np.testing.assert_array_equal(getattr(found, name), getattr(made, name))
    assert found.nbytes == made.nbytes == 33 * len(ids)
    assert found.rows(keys_of(ids)).tolist() == made.rows(keys_of(ids)).tolist()


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "items.safetensors"
    table([uuid.uuid4() for _ in range(4)]).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(MismatchError, match="not readable"):
        ItemTable.load(path)
    path.write_bytes(whole.replace(b'"leaf"', b'"lean"'))
    with pytest.raises(MismatchError, match="no table of items: 'leaf'"):
        ItemTable.load(path)


def test_files_are_told_apart() -> None:
    names = [f"a/{n}.jpg" for n in range(1000)]
    assert len({file_number(name) for name in names}) == 1000
    assert file_number(names[0]) == file_number(names[0]) < 2**64
