"""An index over a collection that others fill, on both stores."""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from cart_qdrant.arrays.vectors import unit
from cart_qdrant.embedders.registry import open_embedder
from cart_qdrant.errors import MismatchError, StoreError, UsageError
from cart_qdrant.identifiers.parts import captioned
from cart_qdrant.index import identify
from cart_qdrant.index.attach import AttachOptions, attach
from cart_qdrant.index.field_guess import guess_fields
from cart_qdrant.index.health import check
from cart_qdrant.index.identifier_files import load_codec, load_trie
from cart_qdrant.index.identify import assign_new, refit
from cart_qdrant.index.index import Index
from cart_qdrant.index.ingest import Ingest
from cart_qdrant.index.manifest import sealed
from cart_qdrant.index.report import IngestOptions
from cart_qdrant.index.sync import sync
from cart_qdrant.search.filters import parse_filter
from cart_qdrant.search.query import Part, Query
from cart_qdrant.search.retriever import Retriever
from cart_qdrant.storage.protocol import VectorInfo
from cart_qdrant.training.train import train
from tests.conftest import TEST_COLLECTIONS, short_training
from tests.unit.index.test_identifier_updates import saved

DIM = 24
PHOTOS = f"{TEST_COLLECTIONS}photos"
THINGS = ["dog", "cat", "horse", "child", "woman", "man", "bird", "truck", "boat", "bike"]
ACTS = ["runs on the beach", "jumps over a log", "sleeps in the grass", "waits in the snow",
        "crosses a river", "plays in the park"]  # fmt: skip
PHRASES = [f"a {thing} {act}" for thing, act in itertools.product(THINGS, ACTS)]


@pytest.fixture(scope="session")
def phrase_vectors(text_encoder: Any) -> np.ndarray[Any, Any]:
    """What a model that we do not know made of pictures of the phrases (N, DIM)."""
    rng = np.random.default_rng(0)
    x = text_encoder.embed(PHRASES) @ rng.normal(size=(384, DIM))
    return np.asarray(x + 0.3 * rng.normal(size=x.shape), np.float32)


def theirs(n: int) -> dict[str, Any]:
    """A payload that has nothing of ours, and all that JSON has."""
    return {
        "meta": {"url": f"s3://bucket/{n}.jpg", "tags": ["a", None, {"b": 1.5}]},
        "title": PHRASES[n],
        "year": 2000 + n % 10,
        "größe": "größer",
        "deep": {"flag": n % 2 == 0, "empty": [], "none": None},
    }


def fill(
    client: QdrantClient,
    vectors: np.ndarray[Any, Any],
    *,
    name: str | None = None,
    whole: bool = True,
) -> None:
    """A collection as others make it: ids are numbers and UUIDs."""
    params = models.VectorParams(size=DIM, distance=models.Distance.COSINE)
    if name is not None:
        other = models.VectorParams(size=3, distance=models.Distance.EUCLID)
        client.create_collection(PHOTOS, {name: params, "other": other})
    else:
        client.create_collection(PHOTOS, params)
    add(client, vectors, range(len(vectors) if whole else len(vectors) // 2), name=name)


def add(
    client: QdrantClient,
    vectors: np.ndarray[Any, Any],
    rows: Iterable[int],
    *,
    name: str | None = None,
) -> None:
    client.upsert(
        PHOTOS,
        [
            models.PointStruct(
                id=n if n % 2 else str(uuid.UUID(int=n)),
                vector={name: vectors[n].tolist()} if name else vectors[n].tolist(),
                payload=theirs(n),
            )
            for n in rows
        ],
    )


def payloads(client: QdrantClient) -> dict[str, str]:
    """All payloads as JSON without the identifiers."""
    records, _ = client.scroll(PHOTOS, limit=1000)
    return {
        str(r.id): json.dumps({k: v for k, v in (r.payload or {}).items() if k[:4] != "cart"})
        for r in records
    }


@pytest.fixture
def attached(
    tmp_path: Path, client: QdrantClient, monkeypatch: pytest.MonkeyPatch, text_encoder: Any
) -> Callable[..., Index]:
    """Attaches to the collection of `client`, and brings the identifiers in step."""
    monkeypatch.setattr(Index, "text_encoder", lambda self: text_encoder)

    def make(**options: Any) -> Index:
        chosen = AttachOptions(**options)
        index = attach(tmp_path / ".cartq", PHOTOS, client=client, options=chosen)
        sync(index)
        return index

    return make


def test_attach_leaves_payloads_as_they_were(
    client: QdrantClient, attached: Callable[..., Index], phrase_vectors: Any
) -> None:
    fill(client, phrase_vectors)
    before = payloads(client)
    vectors = [r.vector for r in client.scroll(PHOTOS, limit=1000, with_vectors=True)[0]]
    index = attached()
    assert payloads(client) == before
    after = [r.vector for r in client.scroll(PHOTOS, limit=1000, with_vectors=True)[0]]
    assert after == vectors
    record = client.retrieve(PHOTOS, [7])[0]
    assert set(record.payload or {}) == {*theirs(7), "cart"}
    how = index.attachment
    assert how is not None
    assert (how.vector, how.path, how.captions, how.words) == ("", "meta.url", ["title"], "title")
    assert how.modality == "image"
    health = check(index)
    assert health is not None and health.items == len(PHRASES)


def test_sync_edits_tree_and_table_as_if_built_from_all(
    client: QdrantClient,
    attached: Callable[..., Index],
    phrase_vectors: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Others add, delete and overwrite points between two runs."""
    fill(client, phrase_vectors, whole=False)
    index = attached()

    def refuse(*args: Any) -> Any:
        raise AssertionError("built from all payloads")

    half = len(PHRASES) // 2
    add(client, phrase_vectors, range(half, half + 8))
    client.delete(PHOTOS, models.PointIdsList(points=[1, 3, str(uuid.UUID(int=2))]))
    with monkeypatch.context() as patched:
        patched.setattr(identify, "built_parts", refuse)
        sync(index)
        add(client, phrase_vectors, [4, 5, half + 9])  # written whole: without their identifiers
        client.delete(PHOTOS, models.PointIdsList(points=[7, half + 1]))
        sync(index)
        client.update_vectors(
            PHOTOS, [models.PointVectors(id=9, vector=phrase_vectors[50].tolist())]
        )
        sync(index, verify=True)
    edited = saved(index)
    assign_new(index, rebuild=True)
    assert saved(index) == edited
    trie = load_trie(index)
    assert trie is not None and len(trie) == client.count(PHOTOS).count


def test_sync_follows_others(
    client: QdrantClient, attached: Callable[..., Index], phrase_vectors: Any
) -> None:
    fill(client, phrase_vectors, whole=False)
    index = attached()
    half = len(PHRASES) // 2
    add(client, phrase_vectors, range(half, len(PHRASES)))
    client.delete(PHOTOS, models.PointIdsList(points=[1, 3, str(uuid.UUID(int=2))]))
    report = sync(index)
    assert (report.new, report.deleted, report.items) == (half, 3, len(PHRASES) - 3)
    again = sync(index)
    assert (again.new, again.deleted, again.changed) == (0, 0, 0)
    # A vector that is replaced in place keeps its payload, and with it the old identifier.
    client.update_vectors(PHOTOS, [models.PointVectors(id=5, vector=phrase_vectors[50].tolist())])
    assert sync(index).changed == 0
    assert sync(index, verify=True).changed == 1
    assert sync(index, verify=True).changed == 0
    carts = [
        (r.payload or {})["cart"] for r in client.retrieve(PHOTOS, [5, str(uuid.UUID(int=50))])
    ]
    assert (
        carts[0]["codes"] == carts[1]["codes"]
        and carts[0]["disambiguation"] != carts[1]["disambiguation"]
    )
    trie, info = load_trie(index), index.manifest.identifiers
    assert trie is not None and info is not None and len(trie) == len(PHRASES) - 3


def test_trained_search_finds_by_their_words(
    client: QdrantClient, attached: Callable[..., Index], phrase_vectors: Any
) -> None:
    fill(client, phrase_vectors)
    index = attached()
    before = payloads(client)
    train(index, short_training(tower_steps=60))
    assert payloads(client) == before
    # The identifiers of before stay until the next run that writes.
    assert set(client.retrieve(PHOTOS, [7])[0].payload or {}) == {*theirs(7), "cart", "cart_2"}
    with Retriever.open(index.folder.root, client=client) as retriever:
        asked = range(0, 60, 6)
        found = [retriever.search(PHRASES[n], k=10).hits for n in asked]
        right = [
            PHRASES[n] in [h.caption for h in hits] for n, hits in zip(asked, found, strict=True)
        ]
        assert sum(right) >= 8  # of 10; by chance 1.7
        assert all(h.path.startswith("s3://bucket/") and h.identifier for h in found[0])
        only = parse_filter(["year=2003"])
        years = {h.payload["year"] for h in retriever.search("a dog", filter=only).hits}
        assert years == {2003}
        dense = retriever.search("a dog runs", lane="dense", filter=only).hits
        assert {h.payload["year"] for h in dense} == {2003}
        assert retriever.search("a dog", lane="generative", k=5).hits
        with pytest.raises(UsageError, match="no vectors of captions"):
            retriever.search("a dog", lane="caption")
    assert client.count(PHOTOS).count == len(PHRASES)


def test_captions_get_a_vector_when_asked(
    client: QdrantClient, attached: Callable[..., Index], phrase_vectors: Any
) -> None:
    fill(client, phrase_vectors)
    before = payloads(client)
    index = attached(caption_vectors=True)
    assert payloads(client) == before
    assert client.get_collection(PHOTOS).config.params.vectors["cart_caption"].size == 384
    with Retriever.open(index.folder.root, client=client) as retriever:
        assert all(
            retriever.search(PHRASES[n], lane="caption", k=1).hits[0].caption == PHRASES[n]
            for n in range(5)
        )
    client.set_payload(PHOTOS, {"title": "a red car in the rain"}, [1])
    assert sync(index).captions == 0
    assert sync(index, verify=True).captions == len(PHRASES)
    with Retriever.open(index.folder.root, client=client) as retriever:
        (hit,) = retriever.search("a red car in the rain", lane="caption", k=1).hits
        assert hit.id == "1"


def test_hubness_and_identifiers_follow_the_captions(
    client: QdrantClient, attached: Callable[..., Index], phrase_vectors: Any
) -> None:
    fill(client, phrase_vectors)
    client.delete_payload(PHOTOS, ["title"], [1, 3])
    index = attached(caption_vectors=True)
    train(index, short_training(tower_steps=5))
    info = index.manifest.identifiers
    assert info is not None

    def hub(id: int) -> dict[str, float]:
        return dict((client.retrieve(PHOTOS, [id])[0].payload or {})[info.field]["hub"])

    codec = load_codec(index)
    assert codec is not None

    def spaces(*ids: int) -> list[str | None]:
        """Identifier spaces of points."""
        carts = [(client.retrieve(PHOTOS, [id])[0].payload or {})[info.field] for id in ids]
        return [codec.name_of(cart["codes"][0]) for cart in carts]

    before = {id: hub(id) for id in (1, 3, 5, 7)}
    assert "caption" not in before[1] and "caption" in before[5]
    assert spaces(1, 3, 5, 7) == ["media", "media", captioned("media"), captioned("media")]
    client.set_payload(PHOTOS, {"title": "a dog runs on the beach"}, [1])
    assert sync(index).captions == 1  # without a vector before: no point is new
    assert hub(1)["media"] == before[1]["media"] and "caption" in hub(1)
    assert [hub(id) for id in (3, 5, 7)] == [before[id] for id in (3, 5, 7)]
    assert spaces(1, 3) == [captioned("media"), "media"]
    client.set_payload(PHOTOS, {"title": "zzz"}, [5])
    client.delete_payload(PHOTOS, ["title"], [7])
    sync(index, verify=True)
    assert hub(5)["caption"] != before[5]["caption"] and "caption" not in hub(7)
    assert spaces(1, 3, 5, 7) == [captioned("media"), "media", captioned("media"), "media"]
    written = saved(index)
    assign_new(index, rebuild=True)
    assert saved(index) == written
    assert not index.changes.pending


def test_sync_reads_again_which_fields_hold_what(
    client: QdrantClient, attached: Callable[..., Index], phrase_vectors: Any
) -> None:
    fill(client, phrase_vectors)
    index = attached(caption_vectors=True, fields={"path": "meta.url"})
    assert sync(index).fields == {}
    revision = index.manifest.revision
    for n in range(len(PHRASES)):  # a field is renamed, one is added, and there is another kind
        id = n if n % 2 else str(uuid.UUID(int=n))
        kind = "video" if n % 3 else "image"
        new = {"path": f"{n}.x", "caption": f"{PHRASES[n]} again", "kind": kind, "start": 1.5}
        client.set_payload(PHOTOS, new, [id])
        client.delete_payload(PHOTOS, ["title"], [id])
    report = sync(index)
    assert report.to_json()["fields"] == {
        "captions": {"was": "title", "is": "caption"},
        "modality": {"was": None, "is": "kind"},
        "start": {"was": None, "is": "start"},
    }
    assert any("'caption'" in line and "'title'" in line for line in report.remarks)
    assert report.captions == len(PHRASES) and index.manifest.revision != revision
    how = index.attachment
    assert how is not None and how == report.attachment
    assert (how.path, how.captions, how.words) == ("meta.url", ["caption"], "caption")
    assert sync(index).fields == {} and index.attachment == how
    with Retriever.open(index.folder.root, client=client) as retriever:
        (hit,) = retriever.search(f"{PHRASES[4]} again", lane="caption", k=1).hits
        assert (hit.caption, hit.modality, hit.start) == (f"{PHRASES[4]} again", "video", 1.5)
        assert hit.path == "s3://bucket/4.jpg"
        only = parse_filter(["modality=image"])
        assert len(retriever.search("a dog", filter=only, k=60).hits) == 20


def test_a_named_vector_among_others(
    client: QdrantClient, attached: Callable[..., Index], phrase_vectors: Any
) -> None:
    fill(client, phrase_vectors, name="image")
    index = attached(fields={"path": "", "captions": ""}, key="codes")
    how = index.attachment
    assert how is not None
    assert (how.vector, how.path, how.captions, how.words) == ("image", None, [], None)
    assert "codes" in (client.retrieve(PHOTOS, [7])[0].payload or {})
    (record,) = index.store.retrieve(["7"])
    assert (record.payload or {})["path"] == "point:7"
    with pytest.raises(UsageError, match="already"):
        attached()
    root = index.folder.root
    with pytest.raises(StoreError, match="client of your own"):
        Retriever.open(root)
    with Retriever.open(root, client=client) as retriever:
        for name in ("7", "point:7"):
            (hit,) = retriever.search(Query((Part("like", name),)), k=1).hits
            nearest = int(np.argsort(-unit(phrase_vectors) @ unit(phrase_vectors)[7])[1])
            assert hit.id == (str(nearest) if nearest % 2 else str(uuid.UUID(int=nearest)))
        found = retriever.search("a dog", lane="dense")
        assert not found.hits and "no text reaches" in found.remarks[-1]


def test_it_writes_nothing_else(
    client: QdrantClient, attached: Callable[..., Index], phrase_vectors: Any, tmp_path: Path
) -> None:
    fill(client, phrase_vectors)
    index = attached()
    store = index.store
    point = models.PointStruct(id=str(uuid.uuid4()), vector={"media": [1.0] * DIM})
    for write in (
        lambda: store.upsert([point]),
        lambda: store.delete(["1"]),
        lambda: store.set_payload([("1", {"title": "mine"})]),
        lambda: store.delete_payload_key("title"),
        lambda: store.update_vectors("media", [("1", [1.0] * DIM)]),
    ):
        with pytest.raises(StoreError, match="filled by others"):
            write()
    with pytest.raises(UsageError, match="cartq sync"):
        Ingest(index, IngestOptions(paths=[tmp_path]))


def test_what_does_not_fit_is_told(
    client: QdrantClient, tmp_path: Path, phrase_vectors: Any
) -> None:
    root = tmp_path / ".cartq"
    with pytest.raises(StoreError, match="no collection"):
        attach(root, PHOTOS, client=client)
    fill(client, phrase_vectors, name="image")
    with pytest.raises(UsageError, match=r"no vector 'x'.*image 24-d Cosine.*other 3-d Euclid"):
        attach(root, PHOTOS, client=client, options=AttachOptions(vector="x"))
    with pytest.raises(MismatchError, match=r"'other'.*cannot be used"):
        attach(root, PHOTOS, client=client, options=AttachOptions(vector="other"))
    with pytest.raises(UsageError, match=r"payload field 'title' already.*--key"):
        attach(root, PHOTOS, client=client, options=AttachOptions(key="title"))
    with pytest.raises(UsageError, match="captoins"):
        AttachOptions(fields={"captoins": "title"})
    dot = models.VectorParams(size=2, distance=models.Distance.DOT)
    dots = f"{TEST_COLLECTIONS}dots"
    client.create_collection(dots, dot)
    client.upsert(dots, [models.PointStruct(id=1, vector=[3.0, 4.0])])
    with pytest.raises(MismatchError, match="5 long"):
        attach(root, dots, client=client)
    assert not (root / "manifest.json").exists()


def test_another_model_is_refused(
    client: QdrantClient, attached: Callable[..., Index], phrase_vectors: Any
) -> None:
    fill(client, phrase_vectors, whole=False)
    index = attached()
    root = index.folder.root
    old = index.folder.manifest.read_bytes()
    old_trie = {p.name: p.read_bytes() for p in root.iterdir() if p.is_file()}
    add(client, phrase_vectors, range(len(PHRASES) // 2, len(PHRASES)))
    sync(index)
    new = index.manifest.revision
    for name, data in old_trie.items():
        (root / name).write_bytes(data)
    with pytest.raises(MismatchError, match=f"revision {new!r} by .*, but .* has ") as told:
        Index.open(root, client=client)
    assert "cartq doctor --fix" in told.value.remedy
    other = json.loads(old)
    other["id"] = "another"
    (root / "manifest.json").write_bytes(sealed(other))
    with pytest.raises(MismatchError, match="belongs to the index"):
        Index.open(root, client=client)


def test_an_embedded_engine_of_others(
    tmp_path: Path, phrase_vectors: Any, text_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import qdrant_edge as edge

    monkeypatch.setattr(Index, "text_encoder", lambda self: text_encoder)
    folder = tmp_path / "theirs"
    folder.mkdir()
    params = edge.EdgeVectorParams(DIM, edge.Distance.Cosine)
    shard = edge.EdgeShard.create(str(folder), edge.EdgeConfig(vectors={"": params}))
    rows = [edge.Point(n + 1, phrase_vectors[n].tolist(), theirs(n)) for n in range(len(PHRASES))]
    shard.update(edge.UpdateOperation.upsert_points(rows))
    shard.flush()
    shard.close()
    options = AttachOptions(caption_vectors=True)
    with attach(tmp_path / ".cartq", "", path=folder, options=options) as index:
        report = sync(index)
        assert report.items == report.captions == len(PHRASES)
        assert index.store.info().vectors["cart_caption"] == VectorInfo(384)
    with Retriever.open(tmp_path / ".cartq") as retriever:
        (hit,) = retriever.search(PHRASES[8], lane="caption", k=1).hits
        assert (hit.id, hit.caption) == ("9", PHRASES[8])
        similar = retriever.search(PHRASES[8], k=3)
        assert similar.hits[0].id == "9"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".cartq", "theirs"]
    shard = edge.EdgeShard.load(str(folder))
    found = shard.retrieve([9], True, True)[0]
    assert {k: v for k, v in found.payload.items() if k != "cart"} == theirs(8)
    shard.close()


def test_fields_are_guessed_by_name_and_value() -> None:
    def points(**payload: Any) -> list[dict[str, Any]]:
        return [payload] * 10

    assert guess_fields(points(url="a.jpg", caption="a dog", text="")) == {
        "path": "url", "captions": "caption",
    }  # fmt: skip
    nested = points(page_content="a dog", metadata={"source": "a.mp4", "start": 3, "kind": "video"})
    assert guess_fields(nested) == {
        "path": "metadata.source", "captions": "page_content", "modality": "metadata.kind",
        "start": "metadata.start",
    }  # fmt: skip
    assert guess_fields(points(kind="jpeg", start="soon", path=7)) == {}
    assert guess_fields([]) == {}


def test_later_identifiers_find_their_field_free(
    client: QdrantClient, phrase_vectors: Any, tmp_path: Path
) -> None:
    """Identifiers go to KEY, then KEY_2: others may have either."""
    fill(client, phrase_vectors)
    client.set_payload(PHOTOS, {"tags_2": "theirs"}, [3])
    with pytest.raises(UsageError, match="'tags_2' already"):
        attach(tmp_path / "a", PHOTOS, client=client, options=AttachOptions(key="tags"))
    with attach(tmp_path / "b", PHOTOS, client=client) as index:
        sync(index)
        client.set_payload(PHOTOS, {"cart_2": "theirs"}, [5])  # since then
        with pytest.raises(StoreError, match=r"1 points .* 'cart_2'"):
            refit(index)
    assert client.retrieve(PHOTOS, [5])[0].payload["cart_2"] == "theirs"
    with pytest.raises(MismatchError, match="belongs to the index"):
        attach(tmp_path / "c", PHOTOS, client=client)


def test_points_of_another_kind_and_without_a_path(
    client: QdrantClient, attached: Callable[..., Index], phrase_vectors: Any
) -> None:
    fill(client, phrase_vectors)
    numbers = [n for n in range(len(PHRASES)) if n % 2]
    client.set_payload(PHOTOS, {"kind": "image"}, models.Filter())
    client.set_payload(PHOTOS, {"kind": "document"}, [9, 11])
    client.delete_payload(PHOTOS, ["meta"], numbers[:3])  # 1, 3, 5
    index = attached(fields={"modality": "kind"})
    info = index.manifest.identifiers
    assert info is not None and info.count == len(PHRASES) - 2
    again = sync(index)
    assert index.manifest.identifiers == info and again.new == 0
    assert (
        "2 points are left out: they lack this vector, or have another modality" in again.remarks[0]
    )
    with Retriever.open(index.folder.root, client=client) as retriever:
        assert retriever.item("3").path == "point:3"
        assert retriever.item("point:3").id == "3"
        assert retriever.item("s3://bucket/7.jpg").id == "7"
        with pytest.raises(UsageError, match="document"):
            retriever.item("9")
        for name in ("3", "point:3", "7"):
            found = retriever.search(Query((Part("like", name),)), k=50).hits
            assert name.removeprefix("point:") not in {hit.id for hit in found}
            assert not {"9", "11"} & {hit.id for hit in found}
        described = retriever.describe()
        assert described.items == {"image": len(PHRASES) - 2}
        assert described.fields["year"] and "cart.id" not in described.fields


def test_points_without_a_path_are_files_of_their_own(client: QdrantClient, tmp_path: Path) -> None:
    """More of them than the first page of a list holds."""
    params = models.VectorParams(size=DIM, distance=models.Distance.COSINE)
    client.create_collection(PHOTOS, params)
    x_ND = np.random.default_rng(4).normal(size=(300, DIM))
    client.upsert(
        PHOTOS,
        [models.PointStruct(id=n, vector=x.tolist(), payload={}) for n, x in enumerate(x_ND)],
    )
    with attach(tmp_path / ".cartq", PHOTOS, client=client) as index:
        sync(index)
        retriever = Retriever(index)
        query = Query((Part("like", "7"),))
        for lane in ("dense", "generative"):
            found = retriever.search(query, k=250, lane=lane).hits
            assert len({hit.path for hit in found}) == len({hit.id for hit in found}) == 250
            page = retriever.search(query, k=20, offset=210, lane=lane).hits
            assert [hit.id for hit in page] == [hit.id for hit in found[210:230]]


def test_fields_with_unusual_names(
    client: QdrantClient, attached: Callable[..., Index], phrase_vectors: Any, tmp_path: Path
) -> None:
    fill(client, phrase_vectors)
    client.set_payload(PHOTOS, {"Image Title": "a red car"}, [7])
    client.set_payload(PHOTOS, {"Image Title": "a blue car"}, [9])
    with pytest.raises(StoreError, match="cannot be addressed"):
        attach(tmp_path / "x", PHOTOS, client=client,
               options=AttachOptions(fields={"captions": 'a "title"'}))  # fmt: skip
    index = attached(fields={"captions": "Image Title"}, caption_vectors=True)
    assert sync(index, verify=True).captions == 2
    client.delete_payload(PHOTOS, ['"Image Title"'], [9])
    sync(index, verify=True)
    with Retriever.open(index.folder.root, client=client) as retriever:
        (hit,) = retriever.search("a car", lane="caption").hits
        assert (hit.id, hit.caption) == ("7", "a red car")
        assert retriever.search("red", lane="bm25").hits[0].id == "7"


def test_an_embedder_of_one_index_alone_is_refused(
    client: QdrantClient, phrase_vectors: Any, tmp_path: Path
) -> None:
    fill(client, phrase_vectors)
    with pytest.raises(UsageError, match="fitted to one index"):
        attach(tmp_path / "x", PHOTOS, client=client,
               options=AttachOptions(embedder=open_embedder("lite")))  # fmt: skip
