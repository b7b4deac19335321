"""The main job and the congruence suite on a real Qdrant server; skipped where none can be had."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test
from qdrant_client import models

from cart_qdrant.embedders.registry import open_embedder
from cart_qdrant.errors import IndexMissingError, MismatchError, StoreError
from cart_qdrant.index.health import check
from cart_qdrant.index.index import Index
from cart_qdrant.index.ingest import Ingest
from cart_qdrant.index.report import IngestOptions
from cart_qdrant.search.retriever import Retriever
from cart_qdrant.storage.protocol import MEDIA, CollectionSpec
from cart_qdrant.storage.server import ServerStore
from cart_qdrant.training.train import train
from tests.conftest import TEST_COLLECTIONS, Server, short_training
from tests.congruence.test_stores import SPEC, TwoStores


def test_the_main_job(server: Server, small_media: Path, tmp_path: Path) -> None:
    """Ingest, search, train, search, ingest again: as on the embedded store."""
    shutil.copytree(small_media, tmp_path / "media")
    name = f"{TEST_COLLECTIONS}job"
    place: dict[str, Any] = {"url": server.url, "api_key": server.key, "collection": name}
    root = tmp_path / ".cartq"
    with Index.create(root, open_embedder("lite"), **place) as index, index.folder.lock():
        report = Ingest(index, IngestOptions(paths=[tmp_path / "media"])).run()
        assert not report.failed and report.segments > 10
    with Retriever.open(root, **place) as retriever:
        assert retriever.search("a dog on a surfboard").hits[0].path == "media/picture-0.png"
    with Index.open(root, **place) as index, index.folder.lock():
        train(index, short_training())
        again = Ingest(index, IngestOptions(paths=[tmp_path / "media"])).run()
        assert (again.segments, again.unchanged) == (0, report.files)
        health = check(index)
        assert health is not None and health.items == report.segments
    with Retriever.open(root, **place) as retriever:
        for lane in ("auto", "fused", "dense", "generative", "caption", "bm25", "rrf"):
            hits = retriever.search("a dog on a surfboard", lane=lane, explain=True).hits  # type: ignore[arg-type]
            assert hits and hits[0].why is not None, lane
        assert retriever.search("surfboard", lane="bm25").hits[0].path == "media/picture-0.png"
    with pytest.raises(StoreError, match="Missing rights"):
        Index.open(root, url=server.url, collection=name, api_key="wrong")
    client = server.client()
    client.delete_collection(name)
    client.close()
    with pytest.raises(IndexMissingError, match="no longer at"):
        Index.open(root, **place)


def test_a_collection_of_another_embedder_is_refused(server: Server) -> None:
    store = ServerStore.connect(server.url, server.key, f"{TEST_COLLECTIONS}one")
    store.create(CollectionSpec(vectors={MEDIA: 4}))
    with pytest.raises(MismatchError, match=r"'media': 4.*'media': 8"):
        store.create(CollectionSpec(vectors={MEDIA: 8}))
    store.close()


def test_large_batches_go_in_parts(server: Server) -> None:
    """About 20 MB of JSON: the server takes 32 MB a request at most."""
    store = ServerStore.connect(server.url, server.key, f"{TEST_COLLECTIONS}large", timeout=120)
    store.create(CollectionSpec(vectors={MEDIA: 512}))
    points = [
        models.PointStruct(
            id=str(uuid.UUID(int=n)), vector={MEDIA: [1.0, n, *[0.5] * 510]}, payload={"n": n}
        )
        for n in range(2_500)
    ]
    store.upsert(points)
    store.set_payload([(str(point.id), {"m": 1}) for point in points])
    match = models.FieldCondition(key="m", match=models.MatchValue(value=1))
    assert store.count(models.Filter(must=[match])) == len(points)
    store.close()


def test_stores_agree(server: Server) -> None:
    """The congruence suite, with the server in the place of local mode."""

    class WithServer(TwoStores):
        def __init__(self) -> None:
            super().__init__()
            self.local.close()
            server.empty()
            name = f"{TEST_COLLECTIONS}congruence"
            self.local = ServerStore.connect(server.url, server.key, name)
            self.local.create(SPEC)

    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        WithServer, settings=settings(max_examples=30, stateful_step_count=20, deadline=None)
    )
