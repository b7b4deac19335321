"""The embedded store: what is written is there afterwards, text is ranked, and recall."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import models

from cart_qdrant.errors import StoreError
from cart_qdrant.storage.edge import EdgeStore
from cart_qdrant.storage.edge_engine import EdgeSettings
from cart_qdrant.storage.protocol import MEDIA, CollectionSpec
from tests.unit.storage.points import pid, point, where


def test_opening_is_lazy(tmp_path: Path) -> None:
    store = EdgeStore(tmp_path / "store")
    assert not store.exists()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StoreError, match="no collection at"):
        store.count()


def test_everything_is_there_after_reopening(store: EdgeStore, tmp_path: Path) -> None:
    payload = {
        "cart": {"id": "1-2-0", "codes": [1, 2]},
        "t": 1.5,
        "none": None,
        "deep": [{"a": []}],
    }
    store.upsert([point(n, **payload) for n in range(10)])
    store.set_payload([(pid(3), {"cart_2": {"id": "x"}}), (pid(99), {"lost": 1})])
    store.close()
    store.close()
    with pytest.raises(StoreError, match="was closed"):
        store.count()
    again = EdgeStore(tmp_path / "store")
    (row,) = again.retrieve([pid(3)], with_vectors=[MEDIA])
    assert row.payload == {"n": 3, **payload, "cart_2": {"id": "x"}}
    assert isinstance(row.vector, dict)
    assert row.vector[MEDIA] == pytest.approx([0.1**0.5, 3 * 0.1**0.5, 0, 0])
    assert again.count(where("cart.id", "1-2-0")) == 10


def test_ids_must_be_uuids(store: EdgeStore) -> None:
    store.upsert([models.PointStruct(id=uuid.UUID(pid(1)).hex, vector={MEDIA: [1.0] * 4})])
    assert [row.id for row in store.retrieve([pid(1).upper()])] == [pid(1)]
    for call in (lambda: store.delete(["7x"]), lambda: store.retrieve(["x"])):
        with pytest.raises(StoreError, match="not a UUID"):
            call()


def test_text_is_ranked_by_its_words(store: EdgeStore) -> None:
    texts = ["a dog surfing", "a dog", "a cat", "surfing is fun for every dog and man"]
    store.upsert([point(n, captions=[{"text": t}]) for n, t in enumerate(texts)])
    query = models.QueryRequest(
        query=models.TextQuery(text="Surfing dog"), using="captions[].text", with_payload=["n"]
    )
    (hits,) = store.query_batch([query])
    assert [hit.payload["n"] for hit in hits if hit.payload] == [0, 3, 1]


def test_filtered_search_keeps_recall_once_the_graph_is_built(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n_items, width, k = 11_000, 240, 10  # the engine builds a graph from 10 MB on
    centres = rng.normal(size=(100, width))
    x_ND = centres[rng.integers(0, 100, n_items)] + rng.normal(size=(n_items, width))
    x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
    share_N = rng.random(n_items)
    store = EdgeStore(tmp_path / "store")
    store.create(CollectionSpec(vectors={MEDIA: width}, keywords=("share",)))
    store.upsert(
        [
            models.PointStruct(
                id=pid(n),
                vector={MEDIA: x_ND[n].tolist()},
                payload={"share": [s for s in ("10", "60", "90") if share_N[n] * 100 < int(s)]},
            )
            for n in range(n_items)
        ]
    )
    store.build_graph()
    queries = centres[:20] + rng.normal(size=(20, width))

    def recall(store: EdgeStore, share: str) -> float:
        some = where("share", share)
        requests = [
            models.QueryRequest(query=q.tolist(), using=MEDIA, limit=k, filter=some)
            for q in queries
        ]
        allowed = np.flatnonzero(share_N * 100 < int(share))
        got = store.query_batch(requests)
        # Walked by int8, scored by the vectors.
        for q, hits in zip(queries, got, strict=True):
            cosines = [float(x_ND[uuid.UUID(hit.id).int - 1] @ q) for hit in hits]
            assert [hit.score for hit in hits] == pytest.approx(
                np.asarray(cosines) / np.linalg.norm(q), abs=1e-5
            )
        best = [allowed[np.argsort(-(x_ND[allowed] @ q))[:k]] for q in queries]
        pairs = zip(got, best, strict=True)
        return float(np.mean([len({h.id for h in g} & {pid(n) for n in b}) / k for g, b in pairs]))

    assert all(recall(store, share) == 1.0 for share in ("10", "60", "90"))
    store.close()
    graph = EdgeStore(tmp_path / "store", settings=EdgeSettings(exact_multiplications=0))
    found = {share: recall(graph, share) for share in ("10", "60", "90")}
    assert min(found.values()) >= 0.97, found
    config = json.loads((tmp_path / "store" / "edge_config.json").read_text())
    assert "scalar" in str(config["vectors"][MEDIA]["quantization_config"])
