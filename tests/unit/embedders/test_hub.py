"""Fetching of model files, from a server of our own."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cart_qdrant.embedders.hub import RemoteFile, download, models_folder
from cart_qdrant.errors import DownloadError

DATA = bytes(range(256)) * 20_000


class _Handler(BaseHTTPRequestHandler):
    ranges = True
    cut: int | None = None
    short: int | None = None
    refuse = False
    asked: list[str | None]

    def do_GET(self) -> None:
        given = self.headers.get("Range")
        type(self).asked.append(given)
        if self.path != "/model.bin":
            self.send_error(404)
            return
        if self.refuse:
            self.send_error(416)
            return
        begin = 0
        if given and self.ranges:
            begin = int(re.fullmatch(r"bytes=(\d+)-", given)[1])  # type: ignore[index]
            self.send_response(206)
        else:
            self.send_response(200)
        body = DATA[begin : self.short]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.cut])

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def handler() -> Iterator[tuple[type[_Handler], RemoteFile]]:
    kind = type("Handler", (_Handler,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/model.bin"
    yield kind, RemoteFile(url=url, sha256=hashlib.sha256(DATA).hexdigest(), bytes=len(DATA))
    server.shutdown()
    server.server_close()


def fetch(remote: RemoteFile, path: Path) -> int:
    """Fetches, and says how many bytes were counted."""
    counted = 0

    def advance(count: int) -> None:
        nonlocal counted
        counted += count

    download(remote, path, advance)
    return counted


def test_a_fetch_goes_on_where_it_stopped(
    handler: tuple[type[_Handler], RemoteFile], tmp_path: Path
) -> None:
    kind, remote = handler
    path = tmp_path / "models" / "model.bin"
    kind.cut = 1_000_000
    with pytest.raises(DownloadError, match="goes on where it stopped"):
        fetch(remote, path)
    part = path.with_name("model.bin.part")
    assert not path.exists() and 0 < part.stat().st_size <= 1_000_000
    there = part.stat().st_size
    kind.cut = None
    assert fetch(remote, path) == len(DATA)
    assert path.read_bytes() == DATA and not part.exists()
    assert kind.asked == [None, f"bytes={there}-"]


def test_a_server_without_ranges_begins_anew(
    handler: tuple[type[_Handler], RemoteFile], tmp_path: Path
) -> None:
    kind, remote = handler
    kind.ranges = False
    (tmp_path / "model.bin.part").write_bytes(DATA[:5_000])
    assert fetch(remote, tmp_path / "model.bin") == len(DATA)
    assert (tmp_path / "model.bin").read_bytes() == DATA


def test_a_body_that_ends_early_is_kept(
    handler: tuple[type[_Handler], RemoteFile], tmp_path: Path
) -> None:
    kind, remote = handler
    kind.short = 700_000  # and says so: nothing is missing for the transport
    with pytest.raises(DownloadError, match=r"ended after 700,000 of 5,120,000 bytes"):
        fetch(remote, tmp_path / "model.bin")
    assert (tmp_path / "model.bin.part").stat().st_size == 700_000
    kind.short = None
    assert fetch(remote, tmp_path / "model.bin") == len(DATA)
    assert kind.asked[-1] == "bytes=700000-"


def test_a_range_that_cannot_be_had_begins_anew_the_next_time(
    handler: tuple[type[_Handler], RemoteFile], tmp_path: Path
) -> None:
    kind, remote = handler
    (tmp_path / "model.bin.part").write_bytes(b"x" * 1000)
    kind.refuse = True
    with pytest.raises(DownloadError, match="416"):
        fetch(remote, tmp_path / "model.bin")
    assert not (tmp_path / "model.bin.part").exists()


@pytest.mark.parametrize("size", [len(DATA), len(DATA) + 9])
def test_what_is_whole_is_checked_and_not_fetched(
    handler: tuple[type[_Handler], RemoteFile], tmp_path: Path, size: int
) -> None:
    kind, remote = handler
    (tmp_path / "model.bin.part").write_bytes((DATA + b"more byte")[:size])
    fetch(remote, tmp_path / "model.bin")
    assert (tmp_path / "model.bin").read_bytes() == DATA
    assert len(kind.asked) == (0 if size == len(DATA) else 1)


def test_other_content_is_refused_and_removed(
    handler: tuple[type[_Handler], RemoteFile], tmp_path: Path
) -> None:
    _, remote = handler
    other = replace(remote, sha256="0" * 64)
    with pytest.raises(DownloadError, match=f"SHA-256 {remote.sha256}.*not {'0' * 64}"):
        fetch(other, tmp_path / "model.bin")
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_does_not_answer_is_named(
    handler: tuple[type[_Handler], RemoteFile], tmp_path: Path
) -> None:
    _, remote = handler
    with pytest.raises(DownloadError, match=r"model\.bin2 could not be fetched"):
        fetch(replace(remote, url=remote.url + "2"), tmp_path / "model.bin")
    with pytest.raises(DownloadError, match="could not be fetched"):
        fetch(replace(remote, url="http://127.0.0.1:1/model.bin"), tmp_path / "model.bin")


def test_the_folder_of_models_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CARTQ_MODELS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert models_folder() == tmp_path / "cart-qdrant" / "models"
    monkeypatch.setenv("CARTQ_MODELS", str(tmp_path / "mine"))
    assert models_folder() == tmp_path / "mine"
