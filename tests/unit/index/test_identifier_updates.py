"""Tree and table follow the points that changed: the same, to the last bit, as built from all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qdrant_client import models

from cart_qdrant.identifiers.hubness import QueryBank
from cart_qdrant.identifiers.parts import captioned
from cart_qdrant.index import changes, identifier_updates, identify
from cart_qdrant.index.changes import Changes
from cart_qdrant.index.health import check, known_health
from cart_qdrant.index.identifier_files import load_codec, load_table, load_trie
from cart_qdrant.index.identifier_writes import encode
from cart_qdrant.index.identify import assign_new, prepare, refit, update_identifiers
from cart_qdrant.index.index import Index
from cart_qdrant.index.points import has_identifier, read_captions, read_vectors
from cart_qdrant.records import Modality, Segment
from tests.unit.identifiers.made_codecs import joint_codec
from tests.unit.index.test_identify import assert_in_step, pretend_trained, vectors

Open = Callable[..., Index]
NAMES = 24
Step = tuple[str, list[int]]


def id_of(n: int) -> str:
    return Segment(f"p{n}", Modality.IMAGE).id


def write(index: Index, numbers: Sequence[int], seed: int) -> None:
    """Write points whole, as the ingestion does: without an identifier."""
    index.changes.add([id_of(n) for n in numbers])
    x_ND, captions = vectors(NAMES, seed), vectors(NAMES, seed + 1, 384)
    index.store.upsert(
        [
            models.PointStruct(
                id=id_of(n),
                vector={"media": x_ND[n].tolist()}
                | ({"caption": captions[n].tolist()} if n % 3 else {}),
                payload={"path": f"p{n % 5}", "modality": "image", "hash": f"{seed}"},
            )
            for n in numbers
        ]
    )


def describe(index: Index, numbers: Sequence[int], seed: int) -> None:
    """Give points other captions, as captioning does: they keep identifiers, but no hubness."""
    records = begin_captions(index, numbers)
    rows = vectors(NAMES, seed, 384)
    index.store.update_vectors(
        "caption", [(str(r.id), rows[n].tolist()) for n, r in enumerate(records)]
    )


def undescribe(index: Index, numbers: Sequence[int], seed: int) -> None:
    """Take the captions of points away."""
    index.store.delete_vectors("caption", [str(r.id) for r in begin_captions(index, numbers)])


def begin_captions(index: Index, numbers: Sequence[int]) -> list[Any]:
    """Points whose captions are about to change: their hubness goes."""
    index.changes.add([id_of(n) for n in numbers])
    records = index.store.retrieve([id_of(n) for n in numbers])
    info, updates = index.manifest.identifiers, []
    assert info is not None
    for record in records:
        cart = (record.payload or {}).get(info.field)
        if cart is not None:
            kept = {name: value for name, value in cart.items() if name != "hub"}
            updates.append((str(record.id), {info.field: kept}))
    index.store.set_payload(updates)
    return list(records)


def remove(index: Index, numbers: Sequence[int], seed: int) -> None:
    index.changes.add([id_of(n) for n in numbers])
    index.store.delete([id_of(n) for n in numbers])


def saved(index: Index) -> tuple[bytes, bytes]:
    """Files of tree and table in force."""
    info = index.manifest.identifiers
    assert info is not None
    return (
        index.folder.path(info.trie).read_bytes(),
        index.folder.path(info.items).read_bytes(),
    )


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Gets an entry each time that tree and table are built from all payloads."""
    calls: list[bool] = []

    def counted(*args: Any) -> Any:
        calls.append(True)
        return identifier_updates.built_parts(*args)

    monkeypatch.setattr(identify, "built_parts", counted)
    return calls


@pytest.fixture
def index(tmp_path: Path, open_index: Open) -> Iterator[Index]:
    yield open_index(tmp_path / ".cartq")


numbers = st.lists(st.integers(0, NAMES - 1), min_size=1, max_size=6, unique=True)
steps = st.lists(
    st.tuples(st.sampled_from(["write", "remove", "describe", "undescribe"]), numbers),
    min_size=1, max_size=4,
)  # fmt: skip
STEPS = {"write": write, "remove": remove, "describe": describe, "undescribe": undescribe}


def use_joint_codec(index: Index) -> None:
    """Make the identifiers of items with captions of both, as a training does."""
    pretend_trained(index, vectors(5))
    generator = index.manifest.generator
    codec = joint_codec(vectors(NAMES), vectors(NAMES, 1, 384))
    info = prepare(index, read_vectors(index), codec, index.query_bank()).info
    identify.activate_identifiers(index, info, generator)


def fill_jointly(index: Index) -> None:
    """Twelve points with identifiers of media and captions."""
    write(index, range(12), 0)
    refit(index)
    use_joint_codec(index)
    index.changes.settle()


def assert_made_of_what_they_have(index: Index) -> None:
    """Each item has the codes of its media vector, and of its caption vector where it has one."""
    codec, info = load_codec(index), index.manifest.identifiers
    assert codec is not None and info is not None
    found = read_vectors(index)
    captions = read_captions(index, found.ids, "caption")
    wanted = dict(zip(found.ids, encode(codec, found.x_ND, found.spaces, captions), strict=True))
    for record in index.store.scroll(has_identifier(info.field)):
        codes = (record.payload or {})[info.field]["codes"]
        assert codes == wanted[str(record.id)].tolist()
        has = bool(captions[found.ids.index(str(record.id))].any()) and codec.reads_captions
        assert (codec.name_of(codes[0]) == captioned("visual")) == has


@pytest.mark.slow
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    runs=st.lists(steps, min_size=1, max_size=3),
    trained=st.sampled_from([None, "media", "both"]),
)
def test_edited_parts_are_those_built_from_all_payloads(
    tmp_path_factory: pytest.TempPathFactory,
    open_index: Open,
    built: list[bool],
    runs: list[list[Step]],
    trained: str | None,
) -> None:
    index = open_index(tmp_path_factory.mktemp("edits") / ".cartq")
    write(index, range(12), 0)
    refit(index)
    index.changes.settle()
    if trained == "both":
        use_joint_codec(index)
    elif trained == "media":
        pretend_trained(index, vectors(5))
        assign_new(index, rebuild=True)
    for number, run in enumerate(runs):
        for what, some in run:
            STEPS[what](index, some, number + 1)
        built.clear()
        assert assign_new(index) == 0
        assert not built and not index.changes.pending
        edited = saved(index)
        assert_in_step(index)
        assert_made_of_what_they_have(index)
        assign_new(index, rebuild=True)
        assert built and saved(index) == edited


def test_an_item_whose_captions_change_gets_the_identifier_of_what_it_has(
    index: Index, built: list[bool]
) -> None:
    fill_jointly(index)
    for change, least in ((describe, {id_of(3)}), (undescribe, {id_of(3), id_of(4)})):
        before = codes_of(index)
        change(index, [3, 4], 7)  # the first has no caption at first, the second has one
        assert update_identifiers(index) == 0 and not built
        assert_in_step(index)
        assert_made_of_what_they_have(index)
        moved = {one for one, codes in codes_of(index).items() if codes != before[one]}
        assert least <= moved <= {id_of(3), id_of(4)}
        health = check(index)
        assert health is not None and health.passed, health
        assert health.fitted_on == {"visual": NAMES, captioned("visual"): NAMES}
    known = known_health(index)
    assert known is not None and known.sizes == {"visual": 5, captioned("visual"): 7}


def test_captions_that_a_killed_run_changed_are_in_the_identifiers_of_the_next(
    index: Index, built: list[bool]
) -> None:
    fill_jointly(index)
    describe(index, [3, 4], 7)
    index.changes = Changes(index.folder.work)  # killed here
    assert index.changes.unknown
    assert update_identifiers(index) == 0 and built
    assert_in_step(index)
    assert_made_of_what_they_have(index)


def codes_of(index: Index) -> dict[str, Any]:
    """Codes of each point."""
    info = index.manifest.identifiers
    assert info is not None
    return {str(r.id): (r.payload or {})[info.field]["codes"] for r in index.store.scroll()}


def test_a_killed_run_lets_the_next_one_build_from_all_payloads(
    index: Index, built: list[bool]
) -> None:
    write(index, range(12), 0)
    update_identifiers(index)
    remove(index, [3], 0)
    write(index, [14], 1)
    # Killed here: another process knows that points changed, but not which.
    index.changes = Changes(index.folder.work)
    assert index.changes.pending and index.changes.unknown
    write(index, [15], 1)
    assert update_identifiers(index) == 0 and built
    assert_in_step(index)
    assert not index.changes.pending and not index.changes.unknown


def test_a_failure_before_the_tree_is_written_is_made_good_in_the_same_process(
    index: Index, built: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(index, range(12), 0)
    update_identifiers(index)
    write(index, [20, 21], 1)

    def fail(*args: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(identify, "save_part", fail)
        with pytest.raises(OSError, match="No space"):
            update_identifiers(index)
    write(index, [22], 1)
    assert update_identifiers(index) == 0 and not built
    assert_in_step(index)
    index.store.delete([])
    edited = saved(index)
    assign_new(index, rebuild=True)
    assert saved(index) == edited


def test_very_many_changes_are_not_listed(
    index: Index, built: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(index, range(12), 0)
    update_identifiers(index)
    monkeypatch.setattr(changes, "MANY", 4)
    write(index, range(12, 17), 1)
    assert not index.changes.ids and index.changes.unknown
    assert update_identifiers(index) == 0 and built
    assert_in_step(index)
    write(index, [18], 1)
    assert index.changes.ids == {id_of(18)} and not index.changes.unknown


def test_a_broken_tree_is_built_again(index: Index, built: list[bool]) -> None:
    write(index, range(12), 0)
    update_identifiers(index)
    info = index.manifest.identifiers
    assert info is not None
    (index.folder.root / info.trie.name).write_bytes(b"")
    write(index, [13], 1)
    assert update_identifiers(index) == 0 and built
    assert_in_step(index)


def test_preparing_writes_each_payload_once_and_reads_nothing_back(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster what is read back may come from a replica that lags behind."""
    write(index, range(12), 0)
    refit(index)
    codec, found = load_codec(index), read_vectors(index)
    assert codec is not None
    banks = {"media.visual": vectors(5), "caption": vectors(5, 1, 384)}
    bank = QueryBank(
        banks, dict.fromkeys(banks, 10.0), dict.fromkeys(banks, np.zeros(5, np.uint64))
    )
    written: list[str] = []
    set_payload = index.store.set_payload

    def counted(updates: Sequence[Any]) -> None:
        written.extend(one for one, _ in updates)
        set_payload(updates)

    def no_scroll(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("read back")

    with monkeypatch.context() as patched:
        patched.setattr(index.store, "set_payload", counted)
        patched.setattr(index.store, "scroll", no_scroll)
        prepared = prepare(index, found, codec, bank)
    assert sorted(written) == sorted(found.ids) and len(prepared.trie) == 12
    identify.activate_identifiers(index, prepared.info)
    assert_in_step(index)
    trie, table = load_trie(index), load_table(index)
    assert trie is not None and table is not None
    assert not np.isnan(trie.hub_N).any() and np.isnan(table.caption_hub_N).sum() == 4
    edited = saved(index)
    assign_new(index, rebuild=True)
    assert saved(index) == edited
