"""Two copies of one index folder never overwrite each other's collection."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient, models

from cart_qdrant.errors import MismatchError
from cart_qdrant.index import ownership
from cart_qdrant.index.attach import AttachOptions, attach
from cart_qdrant.index.index import Index
from cart_qdrant.index.migrate import migrate
from cart_qdrant.index.sync import sync
from cart_qdrant.records import Modality
from cart_qdrant.storage.server import ServerStore
from cart_qdrant.storage.store_info import StoreInfo
from tests.conftest import PatchEmbedder, copy_of

COLLECTION = "cartq-test-copies"


@dataclass
class Copies:
    """One index on a client's collection of six points, and copies of its folder."""

    first: Path
    client: QdrantClient
    opened: list[Index] = field(default_factory=list)

    def copy(self, name: str) -> Path:
        return copy_of(self.first, self.first.parent / name)

    def open(self, root: Path) -> Index:
        index = Index.open(root, client=self.client)
        self.opened.append(index)
        return index

    def owner(self) -> dict[str, Any]:
        metadata = self.client.get_collection(COLLECTION).config.metadata
        assert metadata is not None
        owner: dict[str, Any] = metadata["cart-qdrant:cart"]
        return owner


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Copies]:
    monkeypatch.setattr(ownership, "PAUSE", 0.0)
    client = QdrantClient(":memory:")
    params = models.VectorParams(size=4, distance=models.Distance.COSINE)
    client.create_collection(COLLECTION, params)
    client.upsert(COLLECTION, [
        models.PointStruct(id=n, vector=[1.0, n, n * n, 0.5], payload={"url": f"{n}.jpg"})
        for n in range(6)
    ])  # fmt: skip
    options = AttachOptions(modality=Modality.IMAGE)
    index = attach(tmp_path / "first", COLLECTION, client=client, options=options)
    sync(index)
    index.close()
    made = Copies(tmp_path / "first", client)
    yield made
    for one in made.opened:
        one.close()
    client.close()


def add(client: QdrantClient, n: int) -> None:
    client.upsert(
        COLLECTION, [models.PointStruct(id=n, vector=[1.0, n, 3.0, 0.1], payload={"url": "x"})]
    )


def test_a_copy_that_was_opened_before_another_one_wrote_is_refused(copies: Copies) -> None:
    second = copies.open(copies.copy("second"))
    first = copies.open(copies.first)
    before = second.manifest
    add(copies.client, 7)
    assert sync(first).new == 1
    add(copies.client, 8)
    with pytest.raises(MismatchError) as caught:
        sync(second)
    said = str(caught.value)
    assert first.manifest.revision in said and before.revision in said
    assert str(copies.first) in said and "doctor --fix" in said
    assert second.folder.read() == before
    points, _ = copies.client.scroll(COLLECTION, limit=100)
    assert [p.id for p in points if "cart" not in (p.payload or {})] == [8]
    assert sync(first).new == 1


def test_of_two_copies_that_write_at_once_one_stops(copies: Copies) -> None:
    first, second = copies.open(copies.first), copies.open(copies.copy("second"))
    id = "00000000-0000-0000-0000-000000000001"
    first.store.set_payload([(id, {"cart_9": {}})])
    second.store.set_payload([(id, {"cart_9": {}})])  # the later one goes on
    with pytest.raises(MismatchError, match=f"{second.folder.root} began to write"):
        first.store.set_payload([(id, {"cart_9": {}})])
    with pytest.raises(MismatchError, match=str(second.folder.root)):
        first.put(first.manifest)
    second.put(second.manifest)
    assert copies.owner()["revision"] == second.manifest.revision


@pytest.mark.parametrize("moment", range(5))
def test_at_whatever_moment_a_copy_comes_in_one_manifest_is_in_force(
    copies: Copies, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """The other copy puts its manifest between two requests of the first one."""
    first, second = copies.open(copies.first), copies.open(copies.copy("second"))
    calls: list[str] = []
    done: list[Index] = []

    def between(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: ServerStore, *args: Any) -> Any:
            if self is inner and len(calls) == moment and not done:
                done.append(second)
                with contextlib.suppress(MismatchError):
                    second.put(second.manifest)
            if self is inner:
                calls.append(real.__name__)
            return real(self, *args)

        return call

    inner = first.store._inner  # type: ignore[attr-defined]
    for name in ("info", "set_metadata"):
        monkeypatch.setattr(ServerStore, name, between(getattr(ServerStore, name)))
    refused = False
    try:
        first.put(first.manifest)
    except MismatchError:
        refused = True
    monkeypatch.undo()
    opened = []
    for root in (copies.first, second.folder.root):
        try:
            opened.append(copies.open(root))
        except MismatchError as error:
            assert "was last written" in str(error)
    assert len(opened) == 1
    assert opened[0].manifest.revision == copies.owner()["revision"]
    # Requests of `put`: look, announce, look, (the manifest is replaced), confirm.
    assert bool(done) == (moment < 4)
    assert refused == (moment == 0)
    if moment in (2, 3):
        assert opened[0].folder.root == copies.first


def test_reading_leaves_the_owner_alone(copies: Copies) -> None:
    before = copies.owner()
    index = copies.open(copies.copy("second"))
    assert index.store.count() == 6
    assert list(index.store.scroll())
    assert copies.owner() == before


def test_a_killed_run_locks_nobody_out(copies: Copies) -> None:
    killed = copies.open(copies.first)
    killed.store.set_payload([("3", {"cart_9": {}})])
    add(copies.client, 7)
    assert sync(copies.open(copies.first)).new == 1


def test_a_key_without_rights_for_metadata_may_write(
    copies: Copies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ServerStore, "set_metadata", lambda *args: None)  # it warns
    add(copies.client, 7)
    index = copies.open(copies.first)
    assert sync(index).new == 1
    add(copies.client, 8)
    assert sync(index).new == 1


def test_a_copy_is_not_moved_over_the_collection_of_another(tmp_path: Path) -> None:
    client = QdrantClient(":memory:")
    place = StoreInfo(kind="client", collection=COLLECTION)
    first = tmp_path / "first"
    with Index.create(first, PatchEmbedder()):
        pass
    second = copy_of(first, tmp_path / "second")
    with Index.open(first) as index:
        migrate(index, place, client=client)
        revision = index.manifest.revision
    with (
        Index.open(second) as index,
        pytest.raises(MismatchError, match=f"{revision}.*{first}.*--to-collection"),
    ):
        migrate(index, place, client=client)
    with Index.open(first, client=client) as index:  # back, and there again
        migrate(index, StoreInfo())
        index.put(index.manifest)
        migrate(index, place, client=client)
    client.close()
