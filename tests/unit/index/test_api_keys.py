"""An API key goes to the server that it was given for, never to one that an index folder names."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cart_qdrant.errors import CartError, MismatchError, StoreError
from cart_qdrant.index.index import Index
from cart_qdrant.index.manifest import sealed
from cart_qdrant.search.retriever import Retriever
from cart_qdrant_cli.main import main

KEY = "s3cret-key"


class Listener:
    """A server on this machine that notes the key of each request."""

    def __init__(self) -> None:
        keys: list[str | None] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                keys.append(self.headers.get("api-key") or self.headers.get("authorization"))
                body = {"result": {"exists": True}, "status": "ok", "time": 0}
                there = self.path.endswith("/exists")
                self.send_response(200 if there else 403)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.keys = keys
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def listener() -> Iterator[Listener]:
    one = Listener()
    yield one
    one.server.shutdown()
    one.server.server_close()


@pytest.fixture
def folder(
    tmp_path: Path, open_index: Callable[..., Index], listener: Listener,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:  # fmt: skip
    """The folder of an index that others made: its manifest names the listener."""
    monkeypatch.setenv("CARTQ_CONFIG", str(tmp_path / "config"))
    monkeypatch.delenv("CARTQ_URL", raising=False)
    root = tmp_path / ".cartq"
    open_index(root).close()
    manifest = json.loads((root / "manifest.json").read_bytes())
    manifest["store"] |= {"kind": "server", "url": listener.url, "collection": "c"}
    (root / "manifest.json").write_bytes(sealed(manifest))
    return root


@pytest.mark.parametrize("door", [Index.open, Retriever.open])
def test_the_key_stays_here_unless_the_server_was_named(
    folder: Path, listener: Listener, door: Callable[..., Any]
) -> None:
    with pytest.raises(MismatchError, match=rf"{listener.url}.*not sent.*--url"):
        door(folder, api_key=KEY)
    assert listener.keys == []
    with pytest.raises(StoreError, match="without an API key"):
        door(folder)
    assert set(listener.keys) == {None}


def test_a_server_that_was_named_gets_the_key_from_then_on(
    folder: Path, listener: Listener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StoreError, match="the API key may not do this"):
        Index.open(folder, api_key=KEY, url=listener.url + "/")
    assert set(listener.keys) == {KEY}
    with pytest.raises(StoreError):
        Index.open(folder, api_key=KEY)
    assert set(listener.keys) == {KEY}
    kept = [path for path in (tmp_path / "config").rglob("*") if path.is_file()]
    assert kept and all(KEY.encode() not in path.read_bytes() for path in kept)
    listener.keys.clear()
    with pytest.raises(MismatchError, match="not sent"):
        Index.open(folder, api_key="another key")  # which was not given for this server
    manifest = (folder / "manifest.json").read_text().replace("127.0.0.1", "localhost")
    (folder / "manifest.json").write_bytes(sealed(json.loads(manifest)))
    with pytest.raises(MismatchError, match="not sent"):
        Index.open(folder, api_key=KEY)  # another name of the host
    assert listener.keys == []


def test_an_environment_variable_names_the_server(
    folder: Path, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARTQ_URL", "https://cloud.example")
    with pytest.raises(MismatchError, match=r"CARTQ_URL names https://cloud.example:443"):
        Index.open(folder, api_key=KEY)
    assert listener.keys == []
    monkeypatch.setenv("CARTQ_URL", listener.url + "/")
    with pytest.raises(StoreError):
        Index.open(folder, api_key=KEY)
    assert set(listener.keys) == {KEY}


@pytest.mark.parametrize(
    "words", [["search", "a dog"], ["info"], ["doctor"], ["sync"], ["ingest", "."], ["mcp"],
              ["migrate", "--embedded"], ["backup", "x.tar.gz"], ["eval"], ["train"]]
)  # fmt: skip
def test_no_command_sends_it(
    folder: Path, listener: Listener, words: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv("CARTQ_API_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cartq", *words, "--index", str(folder)])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code in (2, 3) and listener.keys == []
    assert KEY not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    "words",
    [
        ["ingest", "."], ["search", "a"], ["attach", "--collection", "c"],
        ["migrate"], ["restore", "x.tar.gz"], ["info"],
    ],
)  # fmt: skip
@pytest.mark.parametrize("url", ["localhost:6333", "http://user:pw@host:6333"])
def test_a_bad_address_is_told_before_anything_is_made(
    words: list[str], url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    option = "--to" if words[0] == "migrate" else "--url"
    monkeypatch.setattr(sys, "argv", ["cartq", *words, option, url])
    with pytest.raises(SystemExit) as done:
        main()
    told = capsys.readouterr().err
    assert done.value.code == 2 and list(tmp_path.iterdir()) == []
    assert ":pw@" not in told
    assert ("http://localhost:6333" if "localhost" in url else "CARTQ_API_KEY") in told


def test_a_collection_needs_a_server(
    tmp_path: Path, open_index: Callable[..., Index], patch_embedder: Any
) -> None:
    with pytest.raises(CartError, match="no server that has it"):
        Index.create(tmp_path / "new" / ".cartq", patch_embedder, collection="photos")
    assert not (tmp_path / "new").exists()
    open_index(tmp_path / ".cartq").close()
    with pytest.raises(MismatchError, match="not in a collection 'photos'"):
        Index.open(tmp_path / ".cartq", collection="photos")
