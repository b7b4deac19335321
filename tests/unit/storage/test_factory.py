"""The factory: which store a record of the manifest opens."""

from __future__ import annotations

from pathlib import Path

import pytest
from qdrant_client import QdrantClient

from cart_qdrant.errors import StoreError, UsageError
from cart_qdrant.storage.attached import AttachedStore
from cart_qdrant.storage.attachment import Attachment
from cart_qdrant.storage.edge import EdgeStore
from cart_qdrant.storage.factory import open_store
from cart_qdrant.storage.protocol import CollectionSpec
from cart_qdrant.storage.server import ServerStore
from cart_qdrant.storage.shared import SharedStore
from cart_qdrant.storage.store_info import StoreInfo


def test_without_a_place_the_store_is_in_the_folder_of_the_index(tmp_path: Path) -> None:
    store = open_store(StoreInfo(), tmp_path / "store")
    assert isinstance(store, SharedStore) and store.location == str(tmp_path / "store")
    assert not store.exists() and list(tmp_path.iterdir()) == []


def test_a_folder_of_others_gets_no_file_beside_it(tmp_path: Path) -> None:
    spec = CollectionSpec(vectors={"": 2})
    theirs, ours = tmp_path / "theirs" / "edge", tmp_path / "ours"
    ours.mkdir()
    EdgeStore(theirs, sidecar=False).create(spec)
    before = sorted(theirs.parent.iterdir())
    store = open_store(StoreInfo(path=str(theirs)), ours / "store")
    assert isinstance(store, SharedStore) and store.info().vectors[""].size == 2
    assert sorted(theirs.parent.iterdir()) == before
    store.close()


def test_a_url_opens_the_collection_of_a_server(tmp_path: Path) -> None:
    store = open_store(StoreInfo(kind="server", url="http://192.0.2.1:6333"), tmp_path)
    assert isinstance(store, ServerStore) and store.location == "http://192.0.2.1:6333/media"
    with pytest.raises(UsageError, match="no address of a Qdrant server"):
        open_store(StoreInfo(kind="server", url="http://host:port"), tmp_path)


def test_a_client_of_the_caller_is_needed_and_stays_open(tmp_path: Path) -> None:
    info = StoreInfo(kind="client", collection="c")
    with pytest.raises(StoreError, match=r"'c' is reached through a client of your own"):
        open_store(info, tmp_path)
    client = QdrantClient(":memory:")
    store = open_store(info, tmp_path, client=client)
    assert isinstance(store, ServerStore) and not store.exists()
    store.close()
    assert client.get_collections().collections == []


def test_a_collection_of_others_is_read_through_its_attachment(tmp_path: Path) -> None:
    info = StoreInfo(
        kind="server", url=":memory:", collection="c", attachment=Attachment(vector="theirs")
    )
    store = open_store(info, tmp_path)
    assert isinstance(store, AttachedStore) and store.location == ":memory:/c"
