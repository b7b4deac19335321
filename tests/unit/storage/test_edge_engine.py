"""The engine on a folder: processes, crashes, full disks, flushes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cart_qdrant.errors import ConfigError, StoreError
from cart_qdrant.storage.edge import EdgeStore
from cart_qdrant.storage.edge_engine import EdgeSettings, disk_free
from cart_qdrant.storage.protocol import MEDIA
from tests.conftest import ROOT
from tests.unit.storage.points import SPEC, nearest, pid, point, where

KILLED = """
import os, signal, sys
from pathlib import Path
from tests.unit.storage.points import point
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
    """Run code in a new process, with this repository in its path."""
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(
        command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
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
from collections.abc import Callable
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


def test_a_full_disk_refuses_indexes_and_vectors_before_the_engine_is_killed(
    store: EdgeStore, tmp_path: Path
) -> None:
    store.close()
    full = EdgeStore(tmp_path / "store", free_bytes=lambda _: 1_000_000)
    made: list[Callable[[], None]] = [
        lambda: full.create_keyword_index("new"),
        lambda: full.create_text_index("words"),
        lambda: full.add_vector("more", 3),
        lambda: full.upsert([point(1)]),
    ]
    for make in made:
        with pytest.raises(StoreError, match="has 1 MB free; this needs"):
            make()
    full.create_keyword_index("cart.id")  # which it has
    assert "new" not in full.info().indexed and "more" not in full.info().vectors
    full.close()
