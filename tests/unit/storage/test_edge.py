"""The embedded store: safety of what is written, refusals, and recall."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qdrant_edge as edge
from qdrant_client import models

from cart_qdrant.errors import ConfigError, MismatchError, StoreError, VectorError
from cart_qdrant.storage.edge import EdgeStore
from cart_qdrant.storage.edge_engine import EdgeSettings, disk_free
from cart_qdrant.storage.factory import open_store
from cart_qdrant.storage.protocol import MEDIA, CollectionSpec
from cart_qdrant.storage.store_info import StoreInfo

SPEC = CollectionSpec(vectors={MEDIA: 4}, keywords=("cart.id",), texts=("captions[].text",))


def point(n: int, **payload: Any) -> models.PointStruct:
    vector = {MEDIA: [1.0, float(n), 0.0, 0.0]}
    return models.PointStruct(id=pid(n), vector=vector, payload={"n": n, **payload})


def pid(n: int) -> str:
    return str(uuid.UUID(int=n + 1))


def where(key: str, value: str | int | bool) -> models.Filter:
    match = models.MatchValue(value=value)
    return models.Filter(must=[models.FieldCondition(key=key, match=match)])


def nearest(**more: Any) -> models.QueryRequest:
    return models.QueryRequest(query=[1.0, 0.0, 0.0, 0.0], using=MEDIA, **more)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory where there is such a folder: the engine waits for the disk at each flush."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture
def store(tmp_path: Path) -> EdgeStore:
    store = EdgeStore(tmp_path / "store")
    store.create(SPEC)
    return store


def test_opening_is_lazy(tmp_path: Path) -> None:
    store = open_store(StoreInfo(), tmp_path / "store")
    assert isinstance(store, EdgeStore) and not store.exists()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StoreError, match="no collection at"):
        store.count()


def test_payload_indexes_are_on_disk_and_those_of_a_killed_run_are_made(
    store: EdgeStore, tmp_path: Path
) -> None:
    store.create_keyword_index("kept")
    store.create_keyword_index("lost")
    store.upsert([point(0, kept="a", lost="b")])
    store.close()
    shard = edge.EdgeShard.load(str(tmp_path / "store"))
    shard.update(edge.UpdateOperation.delete_field_index("lost"))
    shard.flush()
    shard.close()
    store = EdgeStore(tmp_path / "store")
    store.create(CollectionSpec(vectors={MEDIA: 4}, keywords=("kept", "lost")))
    assert store.count(where("kept", "a")) == store.count(where("lost", "b")) == 1
    store.close()
    shard = edge.EdgeShard.load(str(tmp_path / "store"))
    schema = shard.info().payload_schema
    for field in ("kept", "lost"):
        params = schema[field].params
        assert params is not None and params.memory == edge.Memory.Cold
    shard.close()


def test_create_twice_changes_nothing_and_adds_indexes(store: EdgeStore, tmp_path: Path) -> None:
    store.upsert([point(1)])
    before = (tmp_path / "store.json").read_text()
    store.create(SPEC)
    assert (tmp_path / "store.json").read_text() == before
    store.create_keyword_index("cart_2.id")
    store.create_keyword_index("cart_2.id")
    assert json.loads((tmp_path / "store.json").read_text())["keywords"] == ["cart.id", "cart_2.id"]
    assert store.count() == 1
    with pytest.raises(MismatchError, match=r"'media': 4.*'media': 8"):
        store.create(CollectionSpec(vectors={MEDIA: 8}))


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


KILLED = """
import os, signal, sys
from pathlib import Path
from tests_point import point
from cart_qdrant.storage.edge import EdgeStore
from cart_qdrant.storage.protocol import CollectionSpec
store = EdgeStore(Path(sys.argv[1]))
store.create(CollectionSpec(vectors={"media": 4}, keywords=("cart.id",)))
store.upsert([point(n) for n in range(500)])
store.set_payload([(point(7).id, {"mark": True})])
store.delete([point(8).id])
store.flush()
print("flushed", flush=True)
store.upsert([point(n) for n in range(500, 700)])
os.kill(os.getpid(), signal.SIGKILL)
"""


def run(code: str, *args: object) -> subprocess.Popen[str]:
    """Run code in a new process that can import `point` from this file."""
    prelude = f"""
        import importlib.util, sys
        spec = importlib.util.spec_from_file_location("tests_point", {__file__!r})
        sys.modules["tests_point"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    """
    command = [sys.executable, "-c", textwrap.dedent(prelude) + code, *map(str, args)]
    return subprocess.Popen(
        command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path.cwd()
    )


def test_what_was_flushed_survives_kill_9(tmp_path: Path) -> None:
    process = run(KILLED, tmp_path / "store")
    out, _ = process.communicate(timeout=60)
    assert out == "flushed\n" and process.returncode == -signal.SIGKILL
    store = EdgeStore(tmp_path / "store")
    found = {row.id: row for row in store.scroll(with_vectors=[MEDIA])}
    assert {pid(n) for n in range(500)} - {pid(8)} <= found.keys()
    assert pid(8) not in found
    assert found[pid(7)].payload == {"n": 7, "mark": True}
    for n in (0, 499):
        assert store.query_batch([nearest(filter=where("n", n))])[0][0].id == pid(n)
    store.upsert([point(1000)])
    assert store.count(where("n", 1000)) == 1


HOLD = """
import sys
from pathlib import Path
from cart_qdrant.storage.edge import EdgeStore
store = EdgeStore(Path(sys.argv[1]))
print(store.count(), flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_refused(store: EdgeStore, tmp_path: Path) -> None:
    store.close()
    holder = run(HOLD, tmp_path / "store")
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "0\n"
        with pytest.raises(StoreError, match="in use by another process") as caught:
            EdgeStore(tmp_path / "store").count()
        assert str(tmp_path / "store") in str(caught.value)
    finally:
        holder.communicate(timeout=60)
    assert EdgeStore(tmp_path / "store").count() == 0


def test_a_second_store_of_this_process_is_refused(store: EdgeStore, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="in use"):
        EdgeStore(tmp_path / "store").count()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_gets_an_error_instead_of_a_hang(store: EdgeStore) -> None:
    store.upsert([point(1)])
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(20)
            for call in (store.count, lambda: store.query_batch([nearest()]), store.flush):
                with pytest.raises(StoreError, match="fork"):
                    call()
            store.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert store.count() == 1


def test_a_crash_while_creating_leaves_nothing_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"

    def crash(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", crash)
        with pytest.raises(KeyboardInterrupt):
            EdgeStore(path).create(SPEC)
    assert not EdgeStore(path).exists()
    store = EdgeStore(path)
    store.create(SPEC)
    store.upsert([point(1, cart={"id": "a"})])
    assert store.count(where("cart.id", "a")) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store", "store.json", "work"]
    assert not any((tmp_path / "work").iterdir())


def test_a_folder_without_a_collection_is_kept_aside(tmp_path: Path) -> None:
    (tmp_path / "store" / "wal").mkdir(parents=True)
    (tmp_path / "store" / "wal" / "open-1").write_bytes(b"half")
    store = EdgeStore(tmp_path / "store")
    store.create(SPEC)
    assert store.count() == 0
    (kept,) = tmp_path.glob("store.broken-*/wal/open-1")
    assert kept.read_bytes() == b"half"


def test_a_lost_sidecar_is_made_again_and_a_broken_one_is_named(
    store: EdgeStore, tmp_path: Path
) -> None:
    sidecar = tmp_path / "store.json"
    before = sidecar.read_text()
    store.close()
    sidecar.unlink()
    again = EdgeStore(tmp_path / "store")
    again.upsert([point(1)])
    assert json.loads(sidecar.read_text()) == json.loads(before)
    again.close()
    sidecar.write_text("{")
    with pytest.raises(StoreError, match=r"store\.json cannot be read"):
        EdgeStore(tmp_path / "store").upsert([point(1)])


def test_a_damaged_store_is_a_store_error(store: EdgeStore, tmp_path: Path) -> None:
    store.close()
    (tmp_path / "store" / "edge_config.json").write_text("{")
    with pytest.raises(StoreError, match="failed"):
        EdgeStore(tmp_path / "store").count()


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    free = [10**12]
    store = EdgeStore(tmp_path / "store", free_bytes=lambda _: free[0])
    store.create(SPEC)
    store.upsert([point(1)])
    free[0] = 300_000_000  # over the reserve, not enough for the batch
    store.upsert([point(2)])
    big = [point(n, text="x" * 100_000) for n in range(10, 200)]
    with pytest.raises(StoreError, match=r"has 300 MB free; this needs 3\d\d MB"):
        store.upsert(big)
    free[0] = 1000
    for call in (
        lambda: store.upsert([point(3)]),
        lambda: store.set_payload([(pid(1), {"a": 1})]),
        lambda: store.update_vectors(MEDIA, [(pid(1), [0.0, 0.0, 0.0, 1.0])]),
        store.build_graph,
        lambda: EdgeStore(tmp_path / "new", free_bytes=lambda _: 0).create(SPEC),
    ):
        with pytest.raises(StoreError, match="0 MB free"):
            call()
    rows = {row.id: row.payload for row in store.scroll()}
    assert rows == {pid(1): {"n": 1}, pid(2): {"n": 2}}
    assert disk_free(tmp_path / "not" / "there") > 0


@pytest.mark.parametrize(
    ("vector", "says"),
    [
        ({MEDIA: [1.0, float("nan"), 0, 0]}, "NaN or infinity"),
        ({MEDIA: [1.0, float("inf"), 0, 0]}, "NaN or infinity"),
        ({MEDIA: [0.0, 0.0, 0, 0]}, "zero"),
        ({MEDIA: [1.0, 2.0, 3.0]}, "width 3; the collection has 4"),
        ({MEDIA: 3}, "width int"),
        ({MEDIA: ["a", "b", "c", "d"]}, "not made of numbers"),
        ({"other": [1.0, 0, 0, 0]}, r"'other'.*\['media'\]"),
        ([1.0, 0, 0, 0], "has no name"),
    ],
)
def test_a_bad_vector_refuses_its_whole_batch(store: EdgeStore, vector: Any, says: str) -> None:
    bad = models.PointStruct.model_construct(id=pid(2), vector=vector, payload={})
    with pytest.raises(VectorError, match=says):
        store.upsert([point(1), bad, point(3)])
    assert store.count() == 0


def test_bad_queries_and_names_are_vector_errors(store: EdgeStore) -> None:
    for request in (
        models.QueryRequest(query=[1.0, 2.0], using=MEDIA),
        models.QueryRequest(query=[1.0, 2.0, 3.0, 4.0]),
        models.QueryRequest(query=models.NearestQuery(nearest=[0.0] * 4), using=MEDIA),
        models.QueryRequest(
            prefetch=models.Prefetch(query=[float("nan")] * 4, using=MEDIA),
            query=models.FusionQuery(fusion=models.Fusion.RRF),
        ),
    ):
        with pytest.raises(VectorError):
            store.query_batch([request])
    with pytest.raises(VectorError, match="'other'"):
        store.retrieve([pid(1)], with_vectors=["other"])
    with pytest.raises(VectorError, match="'other'"):
        list(store.scroll(with_vectors=["other"]))


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e30])
def test_very_short_and_long_vectors_keep_their_direction(store: EdgeStore, scale: float) -> None:
    vector = [3 * scale, 4 * scale, 0.0, 0.0]
    store.upsert([models.PointStruct(id=pid(1), vector={MEDIA: vector}, payload={})])
    ((hit,),) = store.query_batch([nearest(with_vector=[MEDIA])])
    assert hit.score == pytest.approx(0.6)
    assert isinstance(hit.vector, dict)
    assert hit.vector[MEDIA] == pytest.approx([0.6, 0.8, 0, 0])


def test_payloads_come_back_as_plain_json(store: EdgeStore) -> None:
    given = {"i": np.int64(3), "f": np.float32(0.5), "t": (1, "a"), "ü": "日本", "big": 2**62}
    store.upsert([point(1, **given)])
    (row,) = store.retrieve([pid(1)])
    assert row.payload == {"n": 1, "i": 3, "f": 0.5, "t": [1, "a"], "ü": "日本", "big": 2**62}


@pytest.mark.parametrize(
    "value", [float("nan"), 2**64, {1: "a"}, {"a": object()}, "a\udcff", {"a\udcff": 1}, b"x"]
)
def test_payloads_without_a_json_form_are_refused(store: EdgeStore, value: object) -> None:
    with pytest.raises(StoreError, match="payload"):
        store.upsert([point(1), point(2, bad=value)])
    with pytest.raises(StoreError, match="payload"):
        store.set_payload([(pid(1), {"bad": value})])
    assert store.count() == 0


def test_ids_must_be_uuids(store: EdgeStore) -> None:
    store.upsert([models.PointStruct(id=uuid.UUID(pid(1)).hex, vector={MEDIA: [1.0] * 4})])
    assert [row.id for row in store.retrieve([pid(1).upper()])] == [pid(1)]
    for call in (lambda: store.delete(["7x"]), lambda: store.retrieve(["x"])):
        with pytest.raises(StoreError, match="not a UUID"):
            call()


def test_booleans_match(store: EdgeStore) -> None:
    store.upsert([point(1, flag=True), point(2, flag=False), point(3, flag=1)])
    assert [r.id for r in store.scroll(where("flag", True))] == [pid(1)]
    assert [r.id for r in store.scroll(where("flag", False))] == [pid(2)]
    assert [r.id for r in store.scroll(where("flag", 1))] == [pid(3)]


Slice = models.SliceCondition(slice=models.Slice(total=2, index=0))
Geo = models.FieldCondition(
    key="g", geo_radius=models.GeoRadius(center=models.GeoPoint(lon=0, lat=0), radius=1)
)


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (nearest(filter=models.Filter(must=[Slice])), "SliceCondition"),
        (nearest(filter=models.Filter(must_not=[models.Filter(should=[Geo])])), "geo_radius"),
        (nearest(lookup_from=models.LookupLocation(collection="x")), "lookup_from"),
        (nearest(shard_key="a"), "shard_key"),
        (
            models.QueryRequest(query=models.SampleQuery(sample=models.Sample.RANDOM)),
            "SampleQuery",
        ),
        (models.QueryRequest(query=pid(1), using=MEDIA), "point id"),
        (
            models.QueryRequest(
                query=models.NearestQuery(nearest=[1.0] * 4, mmr=models.Mmr()), using=MEDIA
            ),
            "NearestQuery",
        ),
    ],
)
def test_what_the_engine_lacks_is_named(
    store: EdgeStore, request_: models.QueryRequest, named: str
) -> None:
    with pytest.raises(StoreError, match=f"does not support.*{named}"):
        store.query_batch([request_])


def test_a_condition_needs_exactly_one_test(store: EdgeStore) -> None:
    for more in ({}, {"range": models.Range(gt=1), "match": models.MatchValue(value=1)}):
        with pytest.raises(StoreError, match="one is needed"):
            store.count(models.Filter(must=[models.FieldCondition(key="k", **more)]))


def test_text_is_ranked_by_its_words(store: EdgeStore) -> None:
    texts = ["a dog surfing", "a dog", "a cat", "surfing is fun for every dog and man"]
    store.upsert([point(n, captions=[{"text": t}]) for n, t in enumerate(texts)])
    query = models.QueryRequest(
        query=models.TextQuery(text="Surfing dog"), using="captions[].text", with_payload=["n"]
    )
    (hits,) = store.query_batch([query])
    assert [hit.payload["n"] for hit in hits if hit.payload] == [0, 3, 1]


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="flush_points is 0"):
        EdgeSettings(flush_points=0)


def test_flush_comes_after_some_thousand_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = EdgeStore(tmp_path / "s", settings=EdgeSettings(flush_points=10, batch_points=4))
    store.create(SPEC)
    flushed: list[int] = []
    engine = store._engine
    flush = engine.flush
    monkeypatch.setattr(engine, "flush", lambda: (flushed.append(store.count()), flush()))
    store.upsert([point(n) for n in range(25)])
    assert flushed == [12, 24]


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
