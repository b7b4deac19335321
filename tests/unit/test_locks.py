"""Locks between processes: who holds one, and that no end of a process keeps it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cart_qdrant.errors import StoreError
from cart_qdrant.locks import Holder, ProcessLock
from tests.conftest import ROOT

HOLD = """
import sys
from pathlib import Path
from cart_qdrant.locks import ProcessLock
lock = ProcessLock(Path(sys.argv[1]), b"head")
assert lock.try_acquire()
print("held", flush=True)
sys.stdin.read()
"""


def hold(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, path], text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_the_holder_is_named_and_its_end_frees_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    process = hold(path)
    lock = ProcessLock(path, b"head")
    assert not lock.try_acquire()
    told: list[Holder | None] = []
    assert not lock.acquire(0.05, told.append)
    (holder,) = told
    assert holder is not None and holder.pid == process.pid and holder.is_here
    assert f"process {process.pid} (-c {path})" in str(holder)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert lock.acquire(10, told.append)
    assert lock.held and path.read_bytes().startswith(b"head{")
    lock.release()
    lock.release()
    assert path.read_bytes() == b"head" and lock.holder() is None


def test_a_lock_of_the_same_process_counts_too(tmp_path: Path) -> None:
    one, two = (ProcessLock(tmp_path / "lock") for _ in "ab")
    assert one.try_acquire() and not two.try_acquire()
    one.release()
    assert two.try_acquire()
    two.release()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    lock, other = (ProcessLock(tmp_path / "lock") for _ in "ab")
    assert lock.try_acquire()
    go, started = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        held = lock.held
        os.write(started[1], b"1" if held else b"0")
        os.read(go[0], 1)
        os._exit(0)
    try:
        assert os.read(started[0], 1) == b"0"
        assert not other.try_acquire()  # the parent has it still
        lock.release()
        assert other.try_acquire()
        other.release()
    finally:
        os.write(go[1], b"x")
        os.waitpid(child, 0)


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    """An index folder may come from others, with a link to a file of the user in it."""
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "lock").symlink_to(precious)
    with pytest.raises(StoreError, match="cannot be opened"):
        ProcessLock(tmp_path / "lock").try_acquire()
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": 1}', b"\xff"])
def test_a_broken_record_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lock").write_bytes(content)
    assert ProcessLock(tmp_path / "lock").holder() is None
