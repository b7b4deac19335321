"""The shared store: several processes on one folder, whichever of them ends, stops or forks."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cart_qdrant.errors import MismatchError, StoreError, VectorError
from cart_qdrant.locks import ProcessLock
from cart_qdrant.storage import store_host
from cart_qdrant.storage.protocol import MEDIA, CollectionSpec
from cart_qdrant.storage.shared import SharedStore
from cart_qdrant.storage.store_host import socket_paths
from tests.unit.storage.points import SPEC, nearest, pid, point, where
from tests.unit.storage.test_edge_engine import run

Make = Callable[..., SharedStore]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[SharedStore] = []

    def one(patience: float = 30.0) -> SharedStore:
        lock_file = tmp_path / "store.lock"
        made.append(SharedStore(tmp_path / "store", lock_file=lock_file, patience=patience))
        return made[-1]

    yield one
    for store in made:
        store.close()


HOLD = """
import sys
from pathlib import Path
from cart_qdrant.storage.shared import SharedStore
folder = Path(sys.argv[1])
store = SharedStore(folder / "store", lock_file=folder / "store.lock")
print(store.count(), flush=True)
sys.stdin.read()
store.close()
"""


def hold(folder: Path, count: int) -> subprocess.Popen[str]:
    process = run(HOLD, folder)
    assert process.stdout is not None and process.stdout.readline() == f"{count}\n"
    return process


def test_processes_share_a_store_and_the_next_takes_over(make: Make, tmp_path: Path) -> None:
    one = make()
    one.create(SPEC)
    one.upsert([point(n) for n in range(50)])
    one.close()
    process = hold(tmp_path, 50)
    two, three = make(), make()
    assert two.count() == three.count() == 50
    two.upsert([point(60)])
    assert three.query_batch([nearest(filter=where("n", 60))])[0][0].id == pid(60)
    # It is killed between two requests; what it had acknowledged is there.
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert {two.count(), three.count()} == {51}
    assert [row.id for row in three.scroll(batch=7)] == [row.id for row in two.scroll()]
    # The one that has the engine now leaves in good order.
    host, guest = (two, three) if two._host else (three, two)
    assert guest._host is None
    host.close()
    assert guest.count() == 51 and guest._host is not None
    with pytest.raises(StoreError, match="was closed"):
        host.count()


def test_a_guest_writes_and_its_errors_are_its_own(make: Make) -> None:
    host, guest = make(), make()
    host.create(SPEC)
    with pytest.raises(VectorError, match="width 3; the collection has 4"):
        guest.query_ids([nearest(limit=1).model_copy(update={"using": MEDIA, "query": [1.0] * 3})])
    with pytest.raises(MismatchError, match="has vectors"):
        guest.create(CollectionSpec(vectors={MEDIA: 5}))
    guest.upsert([point(n, words=[f"w{n}", None, {"$": "x"}]) for n in range(3)])
    guest.set_payload([(pid(0), {"a": {"b": [1, 2.5]}})])
    guest.update_vectors(MEDIA, [(pid(1), [0.0, 1.0, 0.0, 0.0])])
    guest.create_keyword_index("a.b")
    guest.add_vector("more", 40)
    guest.delete([pid(2)])
    found = host.retrieve([pid(0), pid(1), pid(2)], with_vectors=[MEDIA])
    assert [row.id for row in found] == [pid(0), pid(1)]
    assert found == guest.retrieve([pid(0), pid(1)], with_vectors=[MEDIA])
    assert found[0].payload == {"n": 0, "words": ["w0", None, {"$": "x"}], "a": {"b": [1, 2.5]}}
    assert host.info() == guest.info() and "a.b" in guest.info().indexed
    assert guest.info().vectors["more"].size == 40


@pytest.fixture
def stopped(make: Make, tmp_path: Path) -> Iterator[tuple[SharedStore, subprocess.Popen[str]]]:
    """A store that has asked the process with the engine, and that process, stopped since."""
    one = make()
    one.create(SPEC)
    one.close()
    process = hold(tmp_path, 0)
    try:
        guest = make(patience=2.0)
        assert guest.count() == 0
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        yield guest, process
    finally:
        process.send_signal(signal.SIGCONT)
        process.communicate(timeout=60)


def test_one_that_does_not_answer_is_named(
    make: Make, stopped: tuple[SharedStore, subprocess.Popen[str]]
) -> None:
    guest, process = stopped
    for store in (guest, make(patience=0.1)):
        with pytest.raises(StoreError, match=rf"in use by process {process.pid} \(-c "):
            store.count()
    process.send_signal(signal.SIGCONT)
    assert guest.count() == 0


def test_requests_that_run_while_the_host_leaves_are_answered(make: Make) -> None:
    host, guest = make(), make()
    host.create(SPEC)
    host.upsert([point(n) for n in range(200)])
    begun = threading.Barrier(5)

    def ask(_: int) -> set[int]:
        begun.wait()
        return {len(list(guest.scroll(batch=20))) for _ in range(10)}

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, n) for n in range(4)]
        begun.wait()
        host.close()
        assert [one.result() for one in asked] == [{200}] * 4
    assert guest._host is not None


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("hosting", [True, False])
def test_a_forked_child_asks_the_process_with_the_store(make: Make, hosting: bool) -> None:
    one, two = make(), make()
    one.create(SPEC)
    one.upsert([point(1)])
    store = one if hosting else two
    assert store.count() == 1
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(20)
            store.upsert([point(2)])
            store.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert one.count() == two.count() == 2


def test_another_version_and_strange_methods_are_refused(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, guest = make(), make()
    host.create(SPEC)
    with pytest.raises(StoreError, match="no method 'build_graph'"):
        guest._call("build_graph")
    with pytest.raises(StoreError, match="no method '__init__'"):
        guest._call("__init__")
    monkeypatch.setattr(store_host, "PROTOCOL", 7)
    with pytest.raises(StoreError, match="protocol 7, here 1"):
        make().count()


def test_opening_is_lazy(make: Make, tmp_path: Path) -> None:
    store = make()
    assert not store.exists()
    with pytest.raises(StoreError, match="no collection at"):
        store.count()
    store.close()
    assert list(tmp_path.iterdir()) == []


def test_the_socket_is_private_and_goes_with_its_process(make: Make, tmp_path: Path) -> None:
    host = make()
    host.create(SPEC)
    place = tmp_path / "store.sock"
    assert place.stat().st_mode & 0o777 == 0o600
    host.close()
    assert not place.exists() and (tmp_path / "store.lock").read_bytes() == b""


def test_where_a_path_is_too_long_the_socket_is_in_a_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    (place,) = socket_paths(deep / "store.lock")
    assert place.parent == tmp_path / f"cart-qdrant-{os.getuid()}"
    host, guest = (SharedStore(deep / "store", lock_file=deep / "store.lock") for _ in "ab")
    host.create(SPEC)
    assert guest.count() == 0 and guest._host is None and place.exists()
    guest.close()
    host.close()
    # A folder that others may enter is not used: the store is this process's alone.
    place.parent.chmod(0o755)
    alone = SharedStore(deep / "store", lock_file=deep / "store.lock")
    other = SharedStore(deep / "store", lock_file=deep / "store.lock", patience=0.1)
    assert alone.count() == 0
    holder = ProcessLock(deep / "store.lock").holder()
    assert holder is not None and holder.address is None
    with pytest.raises(StoreError, match=f"in use by process {os.getpid()}"):
        other.count()
    alone.close()
    assert other.count() == 0
    other.close()


def test_a_process_on_another_machine_is_named(make: Make, tmp_path: Path) -> None:
    make().create(SPEC)
    lock_file = tmp_path / "store.lock"
    there = {"host": "elsewhere", "pid": 4, "address": str(tmp_path / "not-here.sock")}
    record = json.loads(lock_file.read_bytes()) | there
    lock_file.write_text(json.dumps(record))  # the lock itself stays with this process
    with pytest.raises(StoreError, match="in use by process 4 on elsewhere"):
        make(patience=0.1).count()


def test_garbage_at_the_socket_ends_that_connection_alone(make: Make, tmp_path: Path) -> None:
    host, guest = make(), make()
    host.create(SPEC)
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 64, b"\xff" * 64):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(str(tmp_path / "store.sock"))
            stranger.settimeout(30)
            with contextlib.suppress(ConnectionError):  # the other end may have left first
                stranger.sendall(garbage)
                stranger.shutdown(socket.SHUT_WR)
                stranger.recv(1 << 16)
    assert guest.count() == 0 and guest._host is None


FORK_AND_END = """
import os, sys, time
from pathlib import Path
from cart_qdrant.storage.shared import SharedStore
folder = Path(sys.argv[1])
store = SharedStore(folder / "store", lock_file=folder / "store.lock")
store.count()
if os.fork() == 0:
    sys.stdin.read()
    print(store.count(), flush=True)
os._exit(0)
"""


def test_a_forked_child_that_outlives_its_parent_leaves_the_store_to_others(
    make: Make, tmp_path: Path
) -> None:
    one = make()
    one.create(SPEC)
    one.close()
    process = run(FORK_AND_END, tmp_path)
    process.wait(60)
    # The child inherited the engine's lock; it waits for its input to end.
    after = make()
    assert after.count() == 0 and after._host is not None
    after.upsert([point(1)])
    output, _ = process.communicate(timeout=60)
    assert output == "1\n"


@pytest.mark.parametrize("hosting", [True, False])
def test_a_folder_that_was_made_again_is_opened_again(
    make: Make, tmp_path: Path, hosting: bool
) -> None:
    writer = make()
    writer.create(SPEC)
    writer.upsert([point(n) for n in range(5)])
    writer.close()
    old, guest = make(), make()
    assert old.count() == guest.count() == 5
    (tmp_path / "store.lock").unlink()
    shutil.rmtree(tmp_path / "store")
    new = make()
    new.create(SPEC)
    new.upsert([point(9)])
    reader = old if hosting else guest
    assert reader.count() == 1
    assert [row.id for row in reader.scroll()] == [pid(9)]
    # The old one is closed without taking the socket of the new one with it.
    old.close()
    last = make()
    assert last.count() == 1 and last._host is None


@pytest.mark.parametrize("hosting", [True, False])
def test_a_writer_does_not_go_on_in_a_folder_that_was_made_again(
    make: Make, tmp_path: Path, hosting: bool
) -> None:
    host, guest = make(), make()
    host.create(SPEC)
    writer = host if hosting else guest
    writer.upsert([point(1)])
    (tmp_path / "store.lock").unlink()
    shutil.rmtree(tmp_path / "store")
    new = make()
    new.create(SPEC)
    with pytest.raises(StoreError, match="was removed and made again"):
        writer.upsert([point(2)])
    assert new.count() == make().count() == 0
    with contextlib.suppress(StoreError):  # the host cannot flush what was written to it
        host.close()


def test_a_long_request_to_a_stopped_process_ends(
    stopped: tuple[SharedStore, subprocess.Popen[str]],
) -> None:
    guest, process = stopped
    long = [point(n, words=["x" * 1000]) for n in range(5000)]
    with pytest.raises(StoreError, match=rf"in use by process {process.pid} \(-c "):
        guest.upsert(long)
