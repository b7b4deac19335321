"""A collection whose owner goes on writing to it while it is trained on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

import cart_qdrant.training.train as training
from cart_qdrant.index.attach import AttachOptions, attach
from cart_qdrant.index.identifier_files import load_table, load_trie
from cart_qdrant.index.index import Index
from cart_qdrant.index.sync import sync
from cart_qdrant.records import Modality
from cart_qdrant.search.retriever import Retriever
from cart_qdrant.training import corpus
from tests.conftest import TEST_COLLECTIONS, short_training

DIM = 16
NAME = f"{TEST_COLLECTIONS}busy"
ITEMS = 48
KINDS = ["image", "image", "image", "audio"]


def point(n: int, *, title: str | None = None, seed: int = 0) -> models.PointStruct:
    rng = np.random.default_rng((n, seed))
    payload = {"url": f"{n}.jpg", "kind": KINDS[n % 4]}
    if title != "":
        payload["title"] = title or f"thing number {n} in a place of its own"
    return models.PointStruct(id=n, vector=rng.normal(size=DIM).tolist(), payload=payload)


def insert(client: QdrantClient) -> None:
    client.upsert(NAME, [point(n) for n in range(ITEMS, ITEMS + 3)])


def delete(client: QdrantClient) -> None:
    client.delete(NAME, models.PointIdsList(points=[0, 7, ITEMS - 1]))


def write_again(client: QdrantClient) -> None:
    """Whole points: what was laid over their payloads is gone, identifiers too."""
    client.upsert(NAME, [point(n) for n in range(0, ITEMS, 5)])


def replace_vectors(client: QdrantClient) -> None:
    client.upsert(NAME, [point(n, seed=1) for n in range(0, ITEMS, 3)])


def remove_captions(client: QdrantClient) -> None:
    client.delete_payload(NAME, ["title"], points=models.Filter())


def change_modality(client: QdrantClient) -> None:
    client.set_payload(NAME, {"kind": "hologram"}, points=[3, 4])
    client.set_payload(NAME, {"kind": "video"}, points=[8])


def empty(client: QdrantClient) -> None:
    client.delete(NAME, models.FilterSelector(filter=models.Filter()))


@pytest.fixture
def client() -> Iterator[QdrantClient]:
    one = QdrantClient(":memory:")
    one.create_collection(NAME, models.VectorParams(size=DIM, distance=models.Distance.COSINE))
    one.upsert(NAME, [point(n) for n in range(ITEMS)])
    yield one
    one.close()


@pytest.fixture
def index(
    tmp_path: Path, client: QdrantClient, text_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Index]:
    monkeypatch.setattr(Index, "text_encoder", lambda self: text_encoder)
    fields = {"captions": "title", "path": "url", "modality": "kind"}
    with attach(
        tmp_path / ".cartq", NAME, client=client, options=AttachOptions(fields=fields)
    ) as made:
        sync(made)
        yield made


MOMENTS = {
    "while it is read": (corpus, "read_vectors"),
    "before the identifiers": (training, "train_tower"),
    "after the identifiers": (training, "fit_identifiers"),
}
ACTS = [
    change_modality, delete, write_again, insert, replace_vectors, remove_captions, empty,
]  # fmt: skip


@pytest.mark.parametrize(
    ("moment", "act"),
    [
        *itertools.product(["while it is read", "after the identifiers"], ACTS[:3]),
        *itertools.product(["before the identifiers"], ACTS),
        ("while it is read", remove_captions),
    ],
)
def test_a_training_ends_and_the_next_sync_follows(
    index: Index,
    client: QdrantClient,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    act: Callable[[QdrantClient], None],
) -> None:
    module, name = MOMENTS[moment]
    real, acted = getattr(module, name), 0

    def then_others_write(*args: Any) -> Any:
        nonlocal acted
        out = real(*args)
        act(client)
        acted += 1
        return out

    monkeypatch.setattr(module, name, then_others_write)
    with index.folder.lock():
        training.train(index, short_training())
        assert acted == 1
        # Without any text no query reaches the vectors of a model that is not known.
        learned = bool(index.manifest.generator and index.manifest.generator.summary["pairs"])
        theirs = {str(r.id): _theirs(r) for r in _all(client)}
        sync(index, verify=True)
    assert {str(r.id): _theirs(r) for r in _all(client)} == theirs
    info, trie, table = index.manifest.identifiers, load_trie(index), load_table(index)
    assert info is not None and trie is not None and table is not None
    usable = [r for r in _all(client) if (r.payload or {})["kind"] in set(Modality)]
    stored = [(r.payload or {})[info.field] for r in usable if info.field in (r.payload or {})]
    assert len(stored) == len(usable) == info.count
    rows = {(*one["codes"], one["disambiguation"]) for one in stored}
    assert rows == set(map(tuple, trie.rows().tolist()))
    with Retriever(index) as retriever:
        for lane in ("dense", "generative", "auto"):
            hits = retriever.search("thing number 9", k=3, lane=lane).hits
            assert bool(hits) == (learned and bool(usable)) or lane == "generative"


def _all(client: QdrantClient) -> list[models.Record]:
    return client.scroll(NAME, limit=1000)[0]


def _theirs(record: models.Record) -> dict[str, Any]:
    return {k: v for k, v in (record.payload or {}).items() if not k.startswith("cart")}
